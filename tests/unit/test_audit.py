"""The audit: known answers on public data, injected faults on the shop, broken files, and the command line."""

import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from prodsim.cli import main
from prodsim.core import ProdsimError
from prodsim.data import load_pairs, repeated_pairs, seen_status
from prodsim.quality import audit
from prodsim.quality.audit import (
    ADVICE,
    LEVELS,
    audit_data,
    check_text,
    check_values,
    column_kinds,
    comparison_words,
    components,
    finding,
    html_report,
    label_suspects,
    leakage_counts,
    near_duplicates,
    one_to_one_scores,
    open_for_audit,
    out_of_fold,
    pair_features,
    rater_agreement,
    rater_columns,
    read_leniently,
    record_table,
    split_difference,
    to_date,
    to_number,
)
from prodsim.shop import simulate


@pytest.fixture(scope="module")
def little():
    "Clean pairs of a small shop."
    return simulate(products=300, seed=3, difficulty="easy", sizes=(400, 100, 150)).pairs


@pytest.fixture(scope="module")
def report(little):
    return audit_data(little)


def records_of(**columns):
    "A table of records as `record_table` gives it."
    n = len(next(iter(columns.values())))
    table = {"key": range(n), "where": [f"row {i}" for i in range(n)], **columns, "uses": [1] * n}
    return pd.DataFrame({k: pd.Series(list(v), dtype=object) for k, v in table.items()})


def names(findings):
    return {f["name"]: f for f in findings}


# Known answers

FACTS = {
    "abt-buy": {"one_to_one": 80.6, "train_only": 54.0, "again": 24, "contradicting": 10, "seen": 95.5, "unseen": 1.0},
    "amazon-google": {
        "one_to_one": 47.8, "train_only": 35.7, "again": 159, "contradicting": 7, "seen": 91.3, "unseen": 2.2
    },
}  # fmt: skip


@pytest.mark.data
@pytest.mark.long(60)
@pytest.mark.parametrize("name", FACTS)
def test_facts_of_public_benchmarks(name):
    known, found = FACTS[name], audit_data(name, label_model=False)
    leak, test = found["leakage"], found["splits"]["test"]["rows"]
    assert round(100 * found["shortcuts"]["one_to_one_f1"], 1) == known["one_to_one"]
    assert round(100 * found["shortcuts"]["one_to_one_train_only_f1"], 1) == known["train_only"]
    assert (leak["pairs_again"], leak["pairs_again_contradicting"]) == (known["again"], known["contradicting"])
    assert round(100 * leak["seen"] / test, 1) == known["seen"]
    assert round(100 * leak["unseen"] / test, 1) == known["unseen"]
    # normalising can only bring records together
    assert leak["near"]["pairs_again"] >= leak["normalised"]["pairs_again"] >= leak["pairs_again"]
    assert leak["near"]["unseen"] <= leak["normalised"]["unseen"] <= leak["unseen"]
    assert {"shortcut:one_to_one", "pairs_again", "records_seen", "labels_contradict"} <= set(names(found["findings"]))


@pytest.mark.data
@pytest.mark.long(30)
def test_offers_and_ratings_of_public_sets():
    from prodsim.data import cache_folder

    path = cache_folder() / "chorus/Broad_Query_Set_individual_ratings.csv"
    graded = audit_data(path)
    table = pd.read_csv(path)
    columns = [c for c in table if c.startswith("agent_")]
    assert [r["rater"] for r in graded["ratings"]["raters"]] == columns
    assert graded["ratings"]["items"] == len(table)
    # Krippendorff's alpha for interval grades, from its definition: all raters graded all rows
    values = table[columns].to_numpy(float)
    within = np.mean([(values[:, i] - values[:, j]) ** 2 for i in range(3) for j in range(3) if i != j])
    pool = values.ravel()
    n = len(pool)
    between = 2 * (n * (pool**2).sum() - pool.sum() ** 2) / (n * (n - 1))
    assert np.isclose(rater_agreement(table[columns], "interval")["alpha"], 1 - within / between)


# The report


def test_report_has_the_promised_keys(report, little):
    json.dumps(report, allow_nan=False)
    assert report["splits"] == {s: {"rows": len(p), "positives": int(np.sum(p["label"]))} for s, p in little.items()}
    assert {"pairs_again", "pairs_again_contradicting", "seen", "half_seen", "unseen"} <= set(report["leakage"])
    assert {"one_to_one", "one_to_one_train_only", "record_frequency", "pair_position", "price", "length", "id"} <= {
        k.removesuffix("_f1") for k in report["shortcuts"]
    }
    assert {"suspects", "suspect_ids"} <= set(report["labels"]) and {"exact", "near"} <= set(report["duplicates"])
    assert len(report["labels"]["suspect_ids"]) == report["labels"]["suspects"]
    levels = [LEVELS.index(f["level"]) for f in report["findings"]]
    assert levels == sorted(levels, reverse=True)
    for f in report["findings"]:
        assert 0 < f["count"] <= f["of"] and f["effect"] and f["advice"] and 1 <= len(f["examples"]) <= 3
        assert np.isclose(f["share"], f["count"] / f["of"])


def test_clean_pairs_have_no_errors_about_copies_or_text(report):
    found = names(report["findings"])
    assert not {"pairs_again", "labels_contradict", "mojibake", "html", "zero_width", "broken_file"} & set(found)
    counts = {s: sum(report["leakage"][s] for s in ("seen", "half_seen", "unseen")) for s in ("test",)}
    assert counts["test"] == report["splits"]["test"]["rows"]


def test_same_seed_same_report(little, report):
    again = audit_data(little)
    assert again["findings"] == report["findings"] and again["labels"] == report["labels"]


def test_order_of_files_and_missing_test_split(little):
    only = audit_data(DatasetDict(train=little["train"]), label_model=False)
    assert only["leakage"]["pairs_again"] is None and only["shortcuts"]["one_to_one_f1"] is None
    assert only["labels"] == {"suspects": 0, "suspect_ids": [], "suspect_rows": [], "from": None, "shown": []}


def test_injected_leaks_and_contradictions_are_named(little):
    test = little["test"].to_pandas()
    extra = test.iloc[:12].copy()
    extra.loc[extra.index[:5], "label"] = 1 - extra.loc[extra.index[:5], "label"]
    typed = test.iloc[20:32].copy()
    for column in ("left_title", "right_title"):
        typed[column] = typed[column].str.upper() + " !"
    train = pd.concat([little["train"].to_pandas(), extra, typed], ignore_index=True)
    found = audit_data(DatasetDict(little | {"train": Dataset.from_pandas(train)}), label_model=False)
    by_name = names(found["findings"])
    assert found["leakage"]["pairs_again"] == 12 and found["leakage"]["pairs_again_contradicting"] == 5
    assert found["leakage"]["normalised"]["pairs_again"] == 24
    assert set(by_name["pairs_again_contradicting"]["where"]) == {f"test {i}" for i in range(5)}
    assert set(by_name["pairs_again"]["where"]) == {f"test {i}" for i in [*range(12), *range(20, 32)]}
    assert by_name["labels_contradict"]["count"] == 10


def test_turned_labels_are_suspected(little):
    rng, train = np.random.default_rng(0), little["train"].to_pandas()
    turned = rng.choice(len(train), 40, replace=False)
    train.loc[turned, "label"] = 1 - train.loc[turned, "label"]
    found = audit_data(DatasetDict(little | {"train": Dataset.from_pandas(train)}))
    hit = {r["row"] for r in found["labels"]["suspect_rows"] if r["split"] == "train"} & set(turned.tolist())
    assert len(hit) >= 0.6 * len(turned)
    ids = {tuple(pair) for pair in found["labels"]["suspect_ids"]}
    assert all((train["left_id"][i], train["right_id"][i]) in ids for i in hit)


def test_own_probabilities_are_used_and_checked(little):
    table = pd.concat([p.to_pandas() for p in little.values()])
    y = table["label"].to_numpy()
    own = pd.DataFrame(
        {"left_id": table["left_id"], "right_id": table["right_id"], "probability": np.where(y, 0.9, 0.1)}
    )
    wrong = own["probability"].to_numpy().copy()
    wrong[:3] = 1 - wrong[:3]
    found = audit_data(little, probabilities=own.assign(probability=wrong))["labels"]
    assert found["from"] == "probabilities that were given" and found["suspects"] == 3
    with pytest.raises(ProdsimError, match="none for 1 pairs"):
        audit_data(little, probabilities=own.iloc[1:])
    with pytest.raises(ProdsimError, match="between 0 and 1"):
        audit_data(little, probabilities=own.assign(probability=2.0))


def test_embed_and_tokenizer_come_in_as_callables(little):
    asked = []

    def embed(texts):
        asked.append(len(texts))
        return np.eye(len(texts), 8)

    found = audit_data(little, embed, lambda texts: [200] * len(texts), max_tokens=128)
    assert len(asked) == 1 and found["lengths"]["cut"] == 1.0 and found["lengths"]["unit"] == "tokens"
    assert "too_long" in names(found["findings"])
    with pytest.raises(ProdsimError, match="embed"):
        audit_data(little, lambda texts: np.full((len(texts), 2), np.nan))


def test_page_is_one_offline_file(report):
    page = html_report(report)
    assert page.count("<svg") == 4 and "<script" not in page and "src=" not in page and "<link" not in page
    for f in report["findings"]:
        assert f["name"] in page
    hostile = {**report, "data": "<script>alert(1)</script>"}
    assert "<script>alert" not in html_report(hostile)


# Rules that read nothing


def keyed(rows):
    left, right, label = zip(*rows, strict=True)
    return Dataset.from_dict({"left_key": list(left), "right_key": list(right), "label": list(label)})


def test_one_to_one_by_hand():
    known = keyed([("a", "x", 1), ("b", "y", 0)])
    test = keyed([("a", "x", 1), ("a", "y", 0), ("b", "x", 0), ("b", "y", 1), ("c", "z", 1), ("x", "a", 1)])
    # sides are kept apart: x on the left is another record than x on the right
    assert one_to_one_scores([known], test).tolist() == [1, 0, 0, 1, 1, 1]


def test_an_id_that_tells_the_label_is_a_shortcut(little):
    def telling(split):
        table = split.to_pandas()
        n = np.arange(len(table)) * 1000
        return Dataset.from_pandas(
            table.assign(
                left_id=[f"o{v}" for v in n],
                right_id=[f"o{v + (7 if y else 500)}" for v, y in zip(n, table["label"], strict=True)],
            )
        )

    found = audit_data(DatasetDict({s: telling(p) for s, p in little.items()}), label_model=False)
    assert found["shortcuts"]["id_f1"] > 0.95
    assert names(found["findings"])["shortcut:id"]["level"] == "error"


# Near-duplicates


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Sony WH-1000XM4 headphones", "sony headphones (wh 1000xm4)", True),
        ("canon lbp2900 laser printer", "canon lbp2900 laser pritner", True),
        ("caf&eacute; crème dg450 grinder", "Café creme ＤＧ４５０ grinder", True),
        ("海尔 BCD-215 冰箱 白色", "海尔冰箱BCD215白色", True),
        ("samsung 55tu7000 tv", "samsung 65tu7000 tv", False),
        ("acme l100 lamp black", "acme l100 lamp white", False),
        ("iphone 8 64gb a1905", "iphone 8 plus 64gb a1905", False),
        ("海尔 BCD-215 冰箱 白色", "海尔 BCD-215 冰箱 黑色", False),
        ("free standing freezer", "free standing fridge freezer", False),
        ("", "", False),
    ],
)
def test_near_duplicates_read_the_words(a, b, same):
    texts = [" ".join(comparison_words(t)) for t in (a, b)]
    assert len(near_duplicates(texts)) == same


def test_near_duplicates_on_the_shop():
    shop = simulate(products=400, seed=23, difficulty="medium")
    titles = shop.offers["title"] + " " + shop.offers["description"].fillna("")
    rng = np.random.default_rng(0)
    chosen = [
        i for i in rng.permutation(len(titles)) if any(c.isdigit() for c in titles[i]) and len(titles[i].split()) > 7
    ][:120]
    copies = []
    for i in chosen:
        words = titles[i].split()
        j = int(rng.integers(len(words) - 1))
        words[j], words[j + 1] = words[j + 1], words[j]
        copies.append(" ".join(words).upper())
    texts = [" ".join(comparison_words(t)) for t in [*titles, *copies]]
    numbers = [*shop.offers["price"].fillna(""), *shop.offers["price"].fillna("").iloc[chosen]]
    pairs = near_duplicates(texts, numbers)
    product = np.array([*shop.offers["product_id"], *shop.offers["product_id"].iloc[chosen]])
    assert (product[pairs["left"]] == product[pairs["right"]]).mean() >= 0.97
    group = components(len(texts), pairs["left"].to_numpy(), pairs["right"].to_numpy())
    assert (group[len(titles) :] == group[chosen]).mean() >= 0.95


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_normalisation_is_idempotent(text):
    words = comparison_words(text)
    assert comparison_words(" ".join(words)) == words


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 1)), min_size=2, max_size=30), st.randoms()
)
def test_leakage_counts_agree_with_counting_by_hand(rows, random):
    cut = random.randint(1, len(rows) - 1)
    name = [(f"r{a}", f"r{b}", y) for a, b, y in rows]
    pairs = DatasetDict(train=keyed(name[:cut]), test=keyed(name[cut:]))
    counts = leakage_counts(pairs)
    known = {k for a, b, _ in name[:cut] for k in (a, b)}
    status = [(a in known) + (b in known) for a, b, _ in name[cut:]]
    assert (counts["seen"], counts["half_seen"], counts["unseen"]) == tuple(status.count(k) for k in (2, 1, 0))
    labels = {}
    for a, b, y in name[:cut]:
        labels.setdefault(frozenset((a, b)), set()).add(y)
    again = [(a, b, y) for a, b, y in name[cut:] if frozenset((a, b)) in labels]
    assert counts["pairs_again"] == len(again) == len(repeated_pairs(pairs))
    assert counts["pairs_again_contradicting"] == sum(1 - y in labels[frozenset((a, b))] for a, b, y in again)
    assert len(seen_status(pairs)) == len(name) - cut


# Values and text


def test_numbers_and_dates():
    numbers = to_number(pd.Series(["$1,299.00", "1.299,00 €", "12,5", "￥99", "-3", "5-7", "abc", None], dtype=object))
    assert numbers[:5].tolist() == [1299.0, 1299.0, 12.5, 99.0, -3.0] and numbers[5:].isna().all()
    days = to_date(pd.Series(["2024-05-31", "31.05.2024", "5/31/2024", "2024-02-30", "soon"], dtype=object))
    assert (days[:3] == pd.Timestamp("2024-05-31")).all() and days[3:].isna().all()


def test_impossible_values_are_named():
    price = [f"{10 + i % 7}.99" for i in range(60)]
    price[3], price[5], price[7], price[9] = "0", "9999999", "call us", "€12"
    price[20:50] = [f"${p}" for p in price[20:50]]
    day = [f"2024-01-{1 + i % 28:02d}" for i in range(60)]
    day[1], day[2] = "2024-02-31", "2999-01-01"
    text = [f"lamp {i} with a cable of {i} cm" if i % 2 else f"lamp {i} with a cable of {i} inch" for i in range(60)]
    text[4], text[6:40] = "???", [None] * 34
    records = records_of(title=text, price=price, day=day)
    kinds = column_kinds(records)
    assert kinds == {"title": "text", "price": "price", "day": "date"}
    found = names(check_values(records, kinds))
    where = {
        "price_not_positive:price": ["row 3"],
        "price_far_out:price": ["row 5"],
        "not_a_number:price": ["row 7"],
        "not_a_date:day": ["row 1"],
        "date_out_of_range:day": ["row 2"],
        "no_letter_or_digit:title": ["row 4"],
    }
    for name, places in where.items():
        assert found[name]["where"] == places, name
    assert found["missing:title"]["count"] == 34 and {"currencies_mixed:price", "units_mixed:title"} <= set(found)


BROKEN = {
    "mojibake": "CafetiÃ¨re dâ€™acier",
    "html": "lamp <b>new</b> &amp; bright",
    "control_characters": "lamp\x07 lamp",
    "zero_width": "la\u200bmp",
    "full_width": "ｌａｍｐ １２",
    "replacement_character": "Num\ufffdrique",
    "simplified_traditional_mix": "蓝牙耳机 藍牙",
    "mixed_scripts": "Nikоn camera",  # the o is Cyrillic
}
SOUND = ["Cafetière d’acier 5″", "lamp < 5 & > 3", "lampe à poser", "液晶电视，黑色（新款）", "Никон camera"]
SOUND += ["a\tb", "50 µm", "AT&T phone"]


def test_damaged_text_is_named_and_sound_text_is_not():
    records = records_of(title=[*BROKEN.values(), *SOUND])
    found = names(check_text(records, {"title": "text"}))
    for i, name in enumerate(BROKEN):
        assert found[name]["where"] == [f"row {i}"], name


def test_languages_side_by_side():
    german = ["die Lampe mit dem Schalter für das Bad und den Flur", "das Kabel ist nicht bei der Lampe"] * 5
    english = ["the lamp with a switch for your bath and the hall", "this cable is not with the lamp by us"] * 20
    found = check_text(records_of(title=german + english), {"title": "text"})
    assert names(found)["languages_mixed:title"]["count"] == 10
    assert not check_text(records_of(title=english), {"title": "text"})


# Files that are broken


def test_a_broken_file_is_reported_as_far_as_it_reads(tmp_path, little):
    path = tmp_path / "pairs.csv"
    table = little["train"].to_pandas()[["left_title", "right_title", "label"]].head(60)
    table.to_csv(path, index=False)
    lines = path.read_bytes().split(b"\n")
    lines[3], lines[5], lines[8] = b"only one field", b'"never closed,x,1', "Cafetière,Café,1".encode("latin-1")
    lines[10] = lines[10].rsplit(b",", 1)[0] + b",perhaps"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ProdsimError):
        load_pairs(path)
    found = audit_data(path, label_model=False)
    assert found["rows"] == 57  # three lines give no pair, the one in Latin-1 does
    broken = names(found["findings"])["broken_file"]
    assert broken["level"] == "error" and any("line 9" in w for w in broken["where"])
    assert {"pairs.csv, line 4", "pairs.csv, line 6"} <= set(broken["where"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.tsv"])
def test_each_format_is_read_on_after_a_bad_line(tmp_path, name):
    rows = {
        "a.jsonl": '{"left_title": "a", "right_title": "b", "label": 1}\n{"left_title": \n'
        '{"left_title": "c", "right_title": "d", "label": "0"}\n',
        "a.txt": "COL title VAL a\tCOL title VAL b\t1\nnonsense\nCOL title VAL c\tCOL title VAL d\t0\n",
        "a.tsv": "left_title\tright_title\tlabel\na\tb\t1\nx\nc\td\t0\n",
    }
    (tmp_path / name).write_text(rows[name])
    table, problems = read_leniently(tmp_path / name)
    assert table["left_title"].tolist() == ["a", "c"] and [p["where"] for p in problems] == [
        f"{name}, line {3 if name == 'a.tsv' else 2}"
    ]


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_give_rows_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "x.csv"
    path.write_bytes(b"left_title,right_title,label\na,b,1\n" + data)
    table, _ = read_leniently(path)
    assert table["left_title"][0] == "a"


def test_nothing_to_read_is_one_line(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    (tmp_path / "empty.csv").write_bytes(b"")
    for path in (tmp_path / "x.parquet", tmp_path / "empty.csv", tmp_path / "none.csv"):
        with pytest.raises(ProdsimError) as caught:
            audit_data(path)
        assert "\n" not in str(caught.value)


def test_one_id_for_two_offers(tmp_path):
    (tmp_path / "offers.csv").write_text("id,title\n1,red lamp\n1,blue desk\n2,green chair\n")
    found = names(audit_data(tmp_path / "offers.csv")["findings"])
    assert found["id_twice"]["count"] == 1 and found["id_twice"]["level"] == "error"


# Labels, raters, splits


def test_confident_learning_finds_what_was_turned():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 600)
    x = y[:, None] * 2.0 + rng.normal(0, 0.5, (600, 3))
    turned = rng.choice(600, 30, replace=False)
    noisy = y.copy()
    noisy[turned] = 1 - noisy[turned]
    p = out_of_fold(x, noisy)
    found = set(label_suspects(noisy, p).tolist())
    assert len(found & set(turned.tolist())) >= 28 and len(found) <= 36
    with pytest.raises(ProdsimError, match="too few"):
        out_of_fold(x[:20], np.array([1] + [0] * 19))


def test_pair_features_are_symmetric_in_likeness(little):
    kind, tables, _, _ = open_for_audit(little)
    kinds = column_kinds(record_table(kind, tables))
    table = tables["train"].head(80).reset_index(drop=True)
    swap = {c: c.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right") for c in table}
    features, lexical = pair_features(table, kinds)
    turned, again = pair_features(table.rename(columns=swap)[list(table)], kinds)
    assert np.allclose(lexical, again, atol=1e-4) and np.isfinite(features).all()
    assert ((lexical >= -1e-6) & (lexical <= 1 + 1e-6)).all()
    assert np.allclose(features, turned, atol=1e-2)


def test_agreement_by_hand():
    # Krippendorff (2011), "Computing Krippendorff's alpha-reliability", the example with four observers
    data = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, np.nan, np.nan, np.nan],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, np.nan, 3],
            [np.nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, np.nan],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, np.nan],
        ]
    ).T
    ratings = pd.DataFrame(data, columns=list("abcd"))
    for level, alpha in (("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)):
        assert round(rater_agreement(ratings, level)["alpha"], 3) == alpha
    with pytest.raises(ProdsimError):
        rater_agreement(ratings[["a"]])
    assert rater_columns(pd.DataFrame({"r1": ["1", "x"], "r2": ["1", "2"]})) == []


def test_splits_that_differ_and_splits_that_do_not(little):
    kind, tables, _, _ = open_for_audit(little)
    kinds = column_kinds(record_table(kind, tables))
    rng = np.random.default_rng(0)
    whole = pd.concat(tables.values(), ignore_index=True).iloc[rng.permutation(650)].reset_index(drop=True)
    halves = {"valid": whole[:325].reset_index(drop=True), "test": whole[325:].reset_index(drop=True)}
    other = halves["test"].assign(left_title=halves["test"]["left_title"] + " refurbished", label=0)
    differs = split_difference({"valid": halves["valid"], "test": other}, kinds)
    assert differs["auc"] > 0.9
    drift = {(c["column"], c["what"]): c["p_value"] for c in differs["columns"]}
    assert drift["label", "share of matches"] < 1e-6 and drift["price", "share missing"] > 0.001


def test_every_finding_has_its_advice():
    for name, (effect, advice) in ADVICE.items():
        assert effect.endswith(".") and advice.endswith("."), name
    with pytest.raises(KeyError):
        finding("note", "no such finding", 1, 1, [])


# The command line


@pytest.fixture(scope="module")
def file(little, tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "pairs.csv"
    parts = [p.to_pandas().assign(split=s) for s, p in little.items()]
    pd.concat(parts).to_csv(path, index=False)
    return path


def test_command_prints_json_and_writes_the_page(file, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert main(["audit", str(file), "--json", "--model", "tfidf", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["splits"]["test"]["rows"] == 150 and page.read_text().startswith("<!doctype html>")


def test_fail_on(file, capsys):
    worst = json.loads(_json(file, capsys))["levels"]
    assert worst["note"] > 0
    assert main(["audit", str(file), "--model", "tfidf", "--fail-on", "note"]) == 1
    assert main(["audit", str(file), "--model", "tfidf", "--fail-on", "error"]) == int(worst["error"] > 0)
    capsys.readouterr()


def _json(file, capsys):
    assert main(["audit", str(file), "--json", "--model", "tfidf"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--fail-on", "fatal"],
        ["--html", "report.pdf"],
        ["--probabilities", "none.csv"],
        ["--rater", "nobody"],
        ["--bad"],
    ],
)
def test_mistakes_are_one_line(file, options, capsys):
    assert main(["audit", str(file), "--model", "tfidf", *options]) == 2
    captured = capsys.readouterr()
    assert not captured.out and len(captured.err.strip().splitlines()) == 1
    assert main(["audit", "no-such-data-set"]) == 2


def test_import_stays_light():
    import subprocess
    import sys

    code = "import sys, prodsim, prodsim.quality; print({'cleanlab', 'pandera', 'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()" and audit.LEVELS == ("note", "warning", "error")
