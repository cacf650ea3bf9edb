"""Repair: cleaning changes what it says and nothing twice; repeats, contradictions and doubtful labels are settled."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prodsim.core import ProdsimError
from prodsim.data import attributes, load_pairs, save_pairs
from prodsim.quality.repair import (
    RULES,
    clean,
    clean_steps,
    clean_text,
    deduplicate,
    deduplicate_records,
    hard_negatives,
    majority_vote,
    pair_records,
    rebalance,
    repair_labels,
    resolve_conflicts,
    restore,
)


def pairs_of(rows):
    "Pairs with a title and a price from (left title, right title, label)."
    return Dataset.from_dict(
        {
            "left_id": [f"l{i}" for i in range(len(rows))],
            "right_id": [f"r{i}" for i in range(len(rows))],
            "left_title": [left for left, _, _ in rows],
            "left_price": [None] * len(rows),
            "right_title": [right for _, right, _ in rows],
            "right_price": ["9.50"] * len(rows),
            "label": [label for _, _, label in rows],
        }
    )


# --- one text

pieces = st.sampled_from(
    "1,000 1,024 0.5 .5 15.6 12 500 TB GB G gig oz. fl.oz ml L 升 毫升 克 千克 寸 英寸 米 万像素 \" ″ '' ' in in. "
    "inch can &amp; &lt; &gt; &#39; &#x26; <br> </b> <!-- --> ï¼ Ã© â€™ 鎵嬫満 １２ ＡＢ （ ） ， 。 “ ” ‘ ’ — – ‑ "
    "\u200b \u200d \ufeff \xad \xa0 \u3000 \ud800 ﬁ ㎏ ℃ ½ ² ™ Ⅱ ﾊﾞ 手机 苹果 DSC-W120 X100 / - x × . ,".split(" ")
)
messy = st.lists(pieces, max_size=12).map("".join) | st.lists(pieces, max_size=8).map(" ".join)
anything = st.text(st.characters(), max_size=60)
chinese = st.text(
    st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF) | st.sampled_from("0123456789GML寸升克米 ，（）"),
    max_size=40,
)


@settings(max_examples=500, deadline=None)
@given(messy | anything | chinese)
@example("&amp;amp;amp;amp;lt;br&gt;")
@example("１,０００ＧＢ")
@example("0.1升0.1升")
@example("1000000000000GB")
@example('"1" 2"')
def test_clean_text_is_idempotent(text):
    once = clean_text(text)
    assert clean_text(once) == once


@settings(max_examples=150, deadline=None)
@given(messy | chinese, st.sets(st.sampled_from(list(RULES))))
def test_any_subset_of_rules_is_idempotent(text, rules):
    once = clean_text(text, rules)
    assert clean_text(once, rules) == once


@settings(max_examples=200, deadline=None)
@given(messy | anything)
def test_steps_lead_from_the_raw_text_to_the_clean_one(text):
    now = text
    for rule, before, after in clean_steps(text):
        assert rule in RULES and before == now != after
        now = after
    assert now == clean_text(text)


@settings(max_examples=200, deadline=None)
@given(chinese)
def test_no_space_is_put_between_han_characters(text):
    def gaps(s):
        return sum(a.strip() != "" and b == " " for a, b in zip(s, s[1:], strict=False))

    assert gaps(clean_text(text)) <= gaps(text)


@settings(max_examples=200, deadline=None)
@given(
    st.from_regex(r"[A-Z]{1,4}-?[0-9]{2,5}[A-Z]{0,3}", fullmatch=True),
    st.sampled_from(["", "sony ", "索尼", "new "]),
    st.sampled_from(["", " black", " 16GB", "手机", "/B", '"']),
)
@example("X100", "", "-GB")
def test_model_numbers_stay_whole(model, before, after):
    assert model in clean_text(f"{before}{model}{after}")


@settings(max_examples=100, deadline=None)
@given(st.from_regex(r"[A-Z]{2} [0-9]{3}[1-9][A-Z]", fullmatch=True))
def test_model_numbers_with_a_space_stay_whole(model):
    "Sellers write SC-8858W as SC 8858W: not nine kilowatts."
    assert clean_text(model) == model


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("abcdefgh XYZ"), max_size=30))
def test_plain_words_are_left_alone(text):
    assert clean_text(text) == " ".join(text.split())


@pytest.mark.parametrize(
    "spellings",
    [
        ("1TB", "1 tb", "1000 GB", "1,000GB", "1,024 gigabytes", "1024GB", "1 terabyte", "１ＴＢ"),
        (
            "15.6inch",
            "15.6″",
            '15.6"',
            "15.6 inch",
            "15.6-inch",
            "15.6 in.",
            "15.6''",
            "15.6英寸",
            "15.60寸",
            "１５.６寸",
        ),
        ("a 355ml can", "a 12 oz can", "a 12-ounce can", "a 12 fl. oz. can", "a .355 L can", "a 0.355升 can"),
        ("500g", "500克", "0.5 kg", "500 grams", "0.5公斤"),
        ("净含量500ml装", "净含量500毫升装", "净含量0.5升装", "净含量５００ｍｌ装"),
        ("24MP", "2400万像素", "24 megapixels", "24 mpix"),
        ("1.5kW", "1500W", "1500 watts", "1.5千瓦"),
        ("2.4GHz", "2400 MHz", "2.40 ghz"),
    ],
)
def test_equal_amounts_become_equal_text(spellings):
    assert {clean_text(text) for text in spellings} == {spellings[0]}


@pytest.mark.parametrize(
    "text",
    [
        "iphone 8 5G", "2 in 1 laptop", "3in 1", "X100-GB", "DSC-W120/B", "WD10EZEX", "10-15 kg", "24 ' tv",
        "64GB/128GB",
        "版本2升级", "2023米色", "5克拉", "2尺1寸", "size 10 W", "SC 8858W", "IS 6931L", "IS 6931l", "42 L suit",
        "105mm lens", "802.11g", '"model 5"',
        "5½ m² ™", "AT&T R&D", "a < b > c", "“正品”，好", "👨‍👩‍👧 set", "v1.2.3", "1.0.0",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_fault_is_left(text):
    assert clean_text(text) == text


@pytest.mark.parametrize(
    ("rule", "raw", "wanted"),
    [
        ("mojibake", "CafÃ© crÃ¨me", "Café crème"),
        ("mojibake", "鎵嬫満16GB", "手机16GB"),
        ("html", "R&amp;D &lt;b&gt;x&lt;/b&gt;<br>y", "R&D x y"),
        ("html", "<script>alert(1)</script>lamp", " lamp"),
        ("unicode", "cafe\u0301 ﬁlter ㎏ Ⅱ ﾊﾞ", "café filter kg II バ"),
        ("width", "ＨＤＭＩ（２.０），好：A", "HDMI(2.0)，好：A"),
        ("invisible", "a\u200bb\x00\ufeff\xad\u200d", "ab"),
        ("punctuation", "DSC‑W120 “x” ’", 'DSC-W120 "x" \''),
        ("space", "  a \t\xa0b\u3000\n", "a b"),
        ("number", "1,299,000 pcs", "1299000 pcs"),
        ("number", "399.00", "399"),
        ("unit", "16 gigs 20 hrs", "16GB 20h"),
        ("amount", "2000MB 0.5TB", "2GB 500GB"),
    ],
)
def test_each_rule_alone(rule, raw, wanted):
    assert clean_text(raw, [rule]) == wanted
    assert clean_text(raw, []) == raw


def test_text_without_rest_stays_raw(monkeypatch):
    monkeypatch.setitem(RULES, "space", lambda text: text + "x")
    assert clean_steps("a") == [] and clean_text("a") == "a"


def test_unknown_rule():
    with pytest.raises(ProdsimError, match="no rule 'spel'"):
        clean_text("a", ["spel"])


@pytest.mark.data
def test_chinese_titles_are_not_taken_for_mojibake():
    "500 real pairs of Chinese offers: none is changed by the rule, and each survives a round trip through the fault."
    pairs = load_pairs("ecomgpt-zh:item-align")["test"]
    texts = [text for side in ("left", "right") for text in pairs[f"{side}_title"] if text]
    assert not [text for text in texts if clean_text(text, ["mojibake"]) != text]
    halves = ["".join(c for c in text if "\u4e00" <= c <= "\u9fff")[:8] for text in texts]
    faults = [(half, half.encode().decode("gb18030", "ignore")) for half in halves if len(half) == 8]
    mended = [
        clean_text(fault, ["mojibake"]) == half for half, fault in faults if fault.encode("gb18030") == half.encode()
    ]
    assert len(mended) > 300 and np.mean(mended) > 0.8


# --- tables

ROWS = [("TV 15.6″", "tv 15.6 inch", 1), ("R&amp;D", None, 0), ("lamp", "\u200b", 0)]


@pytest.mark.parametrize("form", ["dict", "dataset", "frame"])
def test_clean_keeps_the_raw_columns_and_restore_brings_them_back(form):
    pairs = pairs_of(ROWS)
    data = {"dict": DatasetDict(train=pairs, test=pairs), "dataset": pairs, "frame": pairs.to_pandas()}[form]
    cleaned, report = clean(data)
    part = cleaned["test"] if form == "dict" else cleaned
    assert list(part["left_title"]) == ["TV 15.6inch", "R&D", "lamp"]
    right = list(part["right_title"])
    assert right[0] == "tv 15.6inch" and pd.isna(right[1]) and pd.isna(right[2])
    assert list(part["raw_left_title"]) == [left for left, _, _ in ROWS]
    assert list(part["right_price"]) == ["9.5"] * 3
    row = report.set_index(["rule", "column"]).loc[("html", "left_title")]
    times = 2 if form == "dict" else 1
    assert row["cells"] == times and row["share"] == pytest.approx(1 / 3) and row["before"] == "R&amp;D"
    back = restore(cleaned)
    if form == "frame":
        pd.testing.assert_frame_equal(back, data)
    else:
        both = (back["test"], data["test"]) if form == "dict" else (back, data)
        assert both[0].to_dict() == both[1].to_dict() and both[0].column_names == both[1].column_names


def test_clean_twice_keeps_the_oldest_text():
    cleaned, _ = clean(pairs_of(ROWS))
    again, report = clean(cleaned)
    assert report.empty and again.to_dict() == cleaned.to_dict()
    assert attributes(again) == ["title", "price"]


def test_clean_chosen_columns_and_rules(tmp_path):
    pairs = DatasetDict(test=pairs_of([("１ＴＢ", "1000 GB", 1)]))
    cleaned, _ = clean(pairs, columns=["title"], rules=["width"])
    assert cleaned["test"]["left_title"] == ["1TB"] and cleaned["test"]["right_title"] == ["1000 GB"]
    assert "raw_left_price" not in cleaned["test"].column_names
    save_pairs(cleaned, tmp_path)
    assert attributes(load_pairs(tmp_path)) == ["title", "price"]
    one, _ = clean(pairs, columns=["left_title"])
    assert "raw_right_title" not in one["test"].column_names
    for bad in ({"columns": ["titel"]}, {"rules": ["x"]}):
        with pytest.raises(ProdsimError):
            clean(pairs, **bad)
    with pytest.raises(ProdsimError, match="nothing to restore"):
        restore(pairs)


def test_clean_records_leaves_ids_alone():
    records = pd.DataFrame({"id": ["ａ 1,000", "b"], "title": ["ａ 1,000", None], "stock": [1, 2]}, index=[5, 7])
    cleaned, report = clean(records)
    assert cleaned["id"].tolist() == ["ａ 1,000", "b"] and cleaned["title"].tolist()[0] == "a 1000"
    assert cleaned["stock"].tolist() == [1, 2] and cleaned.index.tolist() == [5, 7]
    assert set(report["column"]) == {"title"}


# --- repeats and contradictions

REPEATED = [("a", "b", 1), ("B!", "A", 1), ("a", "b", 0), ("c", "d", 0), ("c", "d", 0), ("e", "f", 1)]


def test_deduplicate_keeps_the_first_of_each_label():
    kept, dropped = deduplicate(pairs_of(REPEATED))
    # the price stands on the right alone, so that a turned pair is another one
    assert kept["left_title"] == ["a", "B!", "a", "c", "e"]
    assert dropped[["row", "kept_row"]].to_numpy().tolist() == [[4, 3]]
    turned = pairs_of(REPEATED).remove_columns(["left_price", "right_price"])
    kept, dropped = deduplicate(turned)
    assert kept["left_title"] == ["a", "a", "c", "e"] and dropped["row"].tolist() == [1, 4]


def test_deduplicate_across_takes_nothing_from_test():
    pairs = DatasetDict(train=pairs_of(REPEATED), test=pairs_of(REPEATED[3:4] + REPEATED[5:]))
    kept, dropped = deduplicate(pairs, across=True)
    assert kept["test"].to_dict() == pairs["test"].to_dict() and list(kept) == ["train", "test"]
    assert kept["train"]["left_title"] == ["a", "B!", "a"] and set(dropped["kept_split"]) == {"test"}
    assert len(deduplicate(pairs)[0]["train"]) == 5


def test_deduplicate_records():
    records = pd.DataFrame({"id": ["1", "2", "3", "4"], "title": ["A-1 x", "a1 X", "b", None]})
    kept, same = deduplicate_records(records)
    assert kept["id"].tolist() == ["1", "3", "4"] and same == {"2": "1"}
    kept, same = deduplicate_records(records, groups=[0, 1, 0, 0])
    assert kept["id"].tolist() == ["1", "2"] and same == {"3": "1", "4": "1"}
    with pytest.raises(ProdsimError, match="no column 'name'"):
        deduplicate_records(records, columns=["name"])
    with pytest.raises(ProdsimError, match="one per record"):
        deduplicate_records(records, groups=[1])


CONTESTED = [("a", "b", 1), ("a", "b", 1), ("a", "b", 0), ("c", "d", 0), ("c", "d", 1), ("e", "f", 1)]


@pytest.mark.parametrize(
    ("by", "labels"),
    [
        ("drop", {"e": [1]}),
        ("majority", {"a": [1, 1, 1], "e": [1]}),
        ("match", {"a": [1, 1, 1], "c": [1, 1], "e": [1]}),
        ("no match", {"a": [0, 0, 0], "c": [0, 0], "e": [1]}),
        (max, {"a": [1, 1, 1], "c": [1, 1], "e": [1]}),
        ({("l4", "r4"): 0}, {"c": [0, 0], "e": [1]}),
    ],
)
def test_resolve_conflicts(by, labels):
    settled, decided = resolve_conflicts(pairs_of(CONTESTED), by)
    found = {}
    for title, label in zip(settled["left_title"], settled["label"], strict=True):
        found.setdefault(title, []).append(label)
    assert found == labels
    assert decided["rows"].tolist() == [[0, 1, 2], [3, 4]] and settled.column_names == pairs_of(CONTESTED).column_names


def test_resolve_conflicts_refuses_what_is_no_verdict():
    for by in ("vote", lambda labels: 2):
        with pytest.raises(ProdsimError):
            resolve_conflicts(pairs_of(CONTESTED), by)


def test_majority_vote():
    table = majority_vote([[3, 3, 0], [1, 0, None], [None, None, 2], [np.nan] * 3])
    assert table["label"].tolist()[:1] == [3] and table["label"].tolist()[2] == 2
    assert table["label"].isna().tolist() == [False, True, False, True]
    assert table["votes"].tolist() == [3, 2, 1, 0] and table["share"].tolist()[0] == pytest.approx(2 / 3)


# --- balance, hard negatives, labels


def unbalanced(matches, others):
    return pairs_of([(f"m{i}", "x", 1) for i in range(matches)] + [(f"n{i}", "x", 0) for i in range(others)])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.sampled_from([0.5, 1, 3]), st.sampled_from(["drop", "repeat"]))
def test_rebalance_reaches_the_ratio(matches, others, ratio, how):
    labels = np.array(rebalance(unbalanced(matches, others), ratio, how)["label"])
    positives, negatives = labels.sum(), (1 - labels).sum()
    assert positives and negatives
    # one row more or less is all that whole numbers allow
    assert (positives - 1) * ratio - 1 <= negatives <= (positives + 1) * ratio + 1
    assert (
        (positives, negatives) <= (matches, others) if how == "drop" else positives >= matches and negatives >= others
    )


def test_rebalance_by_weight_and_by_hardness():
    pairs = unbalanced(2, 8)
    weights = np.array(rebalance(pairs, 1.0, "weight")["weight"])
    assert weights.mean() == pytest.approx(1) and weights[:2].sum() == pytest.approx(weights[2:].sum())
    kept = rebalance(pairs, 1.0, scores=np.arange(10.0))
    assert kept["left_title"] == ["m0", "m1", "n6", "n7"]
    for bad in ({"how": "smote"}, {"non_matches": 0}, {"scores": [1.0]}):
        with pytest.raises(ProdsimError):
            rebalance(pairs, **{"non_matches": 1.0} | bad)
    with pytest.raises(ProdsimError, match="one of them is missing"):
        rebalance(unbalanced(2, 0))


def test_hard_negatives_join_similar_records_of_other_products():
    texts = [
        "acme lamp 100 red",
        "acme lamp 100 blue",
        "acme lamp 200 red",
        "desk oak wide",
        "desk oak small",
        "acme lamp 200 red",
    ]
    mined = hard_negatives(texts, ["a", "a", "b", "c", "d", "e"], per_record=2)
    pairs = set(zip(mined["left"], mined["right"], strict=True))
    assert (0, 1) not in pairs and (3, 4) in pairs and (0, 2) in pairs
    assert (2, 5) not in pairs, "equal text of another product is above the ceiling"
    assert mined["score"].is_monotonic_decreasing and (mined["left"] < mined["right"]).all()
    assert (2, 5) in set(
        zip(*hard_negatives(texts, list("aabcde"), ceiling=1.1)[["left", "right"]].to_numpy().T.tolist(), strict=True)
    )


def test_hard_negatives_by_vectors_and_in_chunks():
    rng = np.random.default_rng(0)
    vectors, products = rng.normal(size=(40, 4)), np.repeat(np.arange(20), 2)
    mined = hard_negatives(["x"] * 40, products, 1, vectors, ceiling=1.1)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = np.where(products[:, None] == products, -1, unit @ unit.T)
    assert {tuple(sorted((i, int(j)))) for i, j in enumerate(cosines.argmax(1))} == set(
        zip(mined["left"], mined["right"], strict=True)
    )
    pd.testing.assert_frame_equal(mined, hard_negatives(["x"] * 40, products, 1, vectors, ceiling=1.1, chunk=7))
    for bad in ((["a"], [1, 2]), (["a"], [1])):
        with pytest.raises(ProdsimError):
            hard_negatives(*bad)


@pytest.fixture
def doubtful():
    "200 pairs, 20 of their labels wrong, and the probabilities of a model that knows better."
    truth = np.arange(200) % 2
    wrong = np.zeros(200, bool)
    wrong[::20] = wrong[5::20] = True
    p = np.where(truth == 1, 0.9, 0.1) + np.random.default_rng(0).uniform(-0.08, 0.08, 200)
    labels = np.where(wrong, 1 - truth, truth)
    return pairs_of([(f"a{i}", f"b{i}", int(label)) for i, label in enumerate(labels)]), p, truth, wrong


@pytest.mark.parametrize("how", ["drop", "weight", "flip"])
def test_repair_labels(doubtful, how):
    pairs, p, truth, wrong = doubtful
    repaired, table = repair_labels(pairs, p, how)
    assert set(table["row"]) == set(np.flatnonzero(wrong)) and table["turned"].min() >= 0.4
    if how == "drop":
        assert len(repaired) == 180 and repaired["label"] == truth[~wrong].tolist()
    elif how == "flip":
        assert repaired["label"] == truth.tolist() and repaired.column_names == pairs.column_names
    else:
        weights = np.array(repaired["weight"])
        assert weights.mean() == pytest.approx(1) and weights[wrong].max() < 0.6 * weights[~wrong].min()
        assert repaired["label"] == pairs["label"]


def test_repair_labels_refuses_what_is_no_probability(doubtful):
    pairs, p, *_ = doubtful
    for bad in (p[:-1], p + 1, np.full(200, np.nan)):
        with pytest.raises(ProdsimError, match="probabilities must be"):
            repair_labels(pairs, bad)
    with pytest.raises(ProdsimError, match="drop, weight or flip"):
        repair_labels(pairs, p, "delete")
    with pytest.raises(ProdsimError, match="one of them is missing"):
        repair_labels(unbalanced(3, 0), [0.5] * 3)


def test_raters_decide_by_majority_and_bad_votes_are_named():
    import pandas as pd

    from prodsim.quality.repair import label_by_raters

    table = pd.DataFrame(
        {
            "left_t": list("abcd"),
            "label_ann": [1, 0, 1, None],
            "label_bo": [1, 0, 0, None],
            "label_cy": [0, 0, None, None],
        }
    )
    kept, said = label_by_raters(table)
    assert kept["left_t"].tolist() == ["a", "b"] and kept["label"].tolist() == [1, 0]
    assert said["votes"].tolist() == [3, 3, 2, 0] and list(kept.columns) == ["left_t", "label"]
    with pytest.raises(ProdsimError, match="row 1, column label_ann"):
        label_by_raters(table.assign(label_ann=[1, "x", 1, 0]))
    with pytest.raises(ProdsimError, match="no columns label_"):
        label_by_raters(table[["left_t"]])


def test_deduplicate_by_keys_of_ones_own():
    pairs = Dataset.from_dict({"left_t": ["a", "b", "c"], "right_t": ["x", "y", "z"], "label": [1, 1, 0]})
    keys = Dataset.from_dict({"left_key": ["1", "2", "1"], "right_key": ["2", "1", "2"]})
    kept, dropped = deduplicate(pairs, keys=keys)
    assert kept["left_t"][:] == ["a", "c"] and dropped["row"].tolist() == [1]
    with pytest.raises(ProdsimError, match="2 keys for the 3 pairs"):
        deduplicate(pairs, keys=keys.select([0, 1]))


OFFERS = pd.DataFrame(
    {
        "id": [f"o{i}" for i in range(12)],
        "title": [f"acme lamp {n} {colour}" for n in (100, 200, 300, 400, 500, 600) for colour in ("red", "rot")],
        "gtin": [n for n in "abcdef" for _ in range(2)],
    }
)


def product_of(pairs, offers=OFFERS):
    owner = offers.set_index("id")["gtin"]
    return [owner[pairs[f"{side}_id"]].to_numpy() for side in ("left", "right")]


def test_pairs_of_offers_by_hand():
    pairs, report = pair_records(OFFERS, "gtin", non_matches=1)
    assert attributes(pairs) == ["title"] and report["left_out"] == 0
    found = [product_of(part) for part in pairs.values()]
    for (left, right), part in zip(found, pairs.values(), strict=True):
        assert (left == right).astype(int).tolist() == list(part["label"])
    products = [set(left) | set(right) for left, right in found]
    assert sorted(sum(map(list, products), [])) == list("abcdef")  # each in one split
    for part, size in zip(pairs.values(), report["splits"].values(), strict=True):
        assert size["positives"] == sum(part["label"]) == size["products"] and size["rows"] == len(part)
    again = pair_records(OFFERS.rename(columns={"id": "number"}), "gtin", ["title", "title"], non_matches=1)[0]
    assert [p["left_title"] for p in again.values()] == [p["left_title"] for p in pairs.values()]  # ids are made


def test_offers_without_product_or_text_make_no_pair():
    told = OFFERS.assign(gtin=OFFERS["gtin"].where(OFFERS.index > 1), note=None)
    told.loc[11, "title"] = " "
    told.loc[3, "title"] = told.loc[2, "title"]  # the same offer twice: nothing to learn
    pairs, report = pair_records(told, "gtin", ["title", "note"], shares=(1, 0, 0))
    assert report["left_out"] == 4 and list(pairs) == ["train"] and set(pairs["train"]["left_note"]) == {None}
    assert not {"o0", "o1", "o11"} & {*pairs["train"]["left_id"], *pairs["train"]["right_id"]}


def test_matches_of_a_large_product_are_drawn():
    many = pd.DataFrame({"title": [f"lamp number {i}" for i in range(30)] + ["a chair", "one chair"]})
    many["gtin"] = ["lamp"] * 30 + ["chair"] * 2
    drawn = [pair_records(many, "gtin", matches=7, shares=(1, 0, 0), seed=seed)[0]["train"] for seed in (0, 0, 1)]
    assert [sum(part["label"]) for part in drawn] == [8] * 3
    assert drawn[0].to_dict() == drawn[1].to_dict() != drawn[2].to_dict()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefghij"), st.sampled_from(["red lamp", "lamp 2", "chair x", "chair"])),
        min_size=30,
        max_size=60,
    )
)
def test_no_product_and_no_text_stands_in_two_splits(rows):
    offers = pd.DataFrame(rows, columns=["gtin", "title"])
    offers["title"] += [f" {ord(g) % 5}" for g in offers["gtin"]]  # some texts are of two products
    try:
        pairs, _ = pair_records(offers, "gtin", shares=(1, 1, 0))
    except ProdsimError:
        return  # too few
    texts = [set(part["left_title"]) | set(part["right_title"]) for part in pairs.values()]
    assert not set.intersection(*texts)


@pytest.mark.parametrize(
    "product, options, message",
    [
        ("ean", {}, "no column 'ean' in the records; there is id, title, gtin"),
        ("gtin", {"names": ["colour"]}, "no column 'colour'"),
        ("gtin", {"strata": "category"}, "no column 'category'"),
        ("gtin", {"names": ["gtin"]}, "an attribute besides 'gtin'"),
        ("id", {}, "no two different records share a 'id'"),
        ("gtin", {"shares": (1, 1)}, "three numbers"),
    ],
)
def test_offers_that_cannot_be_paired(product, options, message):
    with pytest.raises(ProdsimError, match=message):
        pair_records(OFFERS, product, **options)
