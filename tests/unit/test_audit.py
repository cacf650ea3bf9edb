"""The whole report: known answers on public data, injected faults on the shop, broken files, the command line."""

import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from little_shop import little_pairs

from prodsim.cli import main
from prodsim.core import ProdsimError
from prodsim.data import load_pairs, save_pairs
from prodsim.quality.audit import audit_data, html_report, read_cost
from prodsim.quality.labels import rater_agreement
from prodsim.quality.reading import LEVELS
from prodsim.shop import simulate


@pytest.fixture(scope="module")
def little():
    "Clean pairs of a small shop."
    return simulate(products=300, seed=3, difficulty="easy", sizes=(400, 100, 150)).pairs


@pytest.fixture(scope="module")
def report(little):
    return audit_data(little)


def names(findings):
    return {f["name"]: f for f in findings}


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
    from prodsim.registry import cache_folder

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
        if f["what"] not in ("test pairs", "slices"):  # of drift and slices the examples are numbers
            assert len(f["examples"]) == min(3, f["count"]), f["name"]
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
    assert only["labels"] == {
        **{"suspects": 0, "suspect_ids": [], "suspect_rows": [], "from": None, "shown": [], "auc": None},
        "also_named": 0,
    }


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
    twice = found["duplicates"]
    assert twice["exact_across_splits"] >= 24 and twice["exact"] == sum(
        twice[f"exact_{where}"] for where in ("inside_a_split", "across_splits")
    )


def test_near_duplicates_are_counted_inside_a_split_and_across(little):
    train, test = (little[s].to_pandas() for s in ("train", "test"))
    typed = pd.concat([train.iloc[:7], test.iloc[:4]])
    for column in ("left_title", "right_title"):
        typed[column] = [" ".join([*t.split()[2:], *t.split()[:2]]) for t in typed[column]]
    spoilt = Dataset.from_pandas(pd.concat([train, typed], ignore_index=True))
    before, after = (
        audit_data(DatasetDict(little | {"train": part}), label_model=False)["duplicates"]
        for part in (little["train"], spoilt)
    )
    grown = {k: after[k] - before[k] for k in ("near", "near_inside_a_split", "near_across_splits", "exact")}
    assert grown == {"near": 11, "near_inside_a_split": 7, "near_across_splits": 4, "exact": 0}


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


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 500, b"PK\x03\x04 and more"])
def test_a_split_that_cannot_be_read_leaves_the_others(tmp_path, content):
    save_pairs(little_pairs(seed=1, train=40, valid=20, test=20), tmp_path / "pairs")
    (tmp_path / "pairs" / "test.csv").write_bytes(content)
    found = audit_data(tmp_path / "pairs", label_model=False)
    assert {s: part["rows"] for s, part in found["splits"].items()} == {"train": 40, "valid": 20}
    assert names(found["findings"])["broken_file"]["where"] == ["test.csv"]
    (tmp_path / "pairs" / "test.csv").rename(tmp_path / "pairs" / "test.parquet")
    assert set(audit_data(tmp_path / "pairs", label_model=False)["splits"]) == {"train", "valid"}
    (tmp_path / "pairs" / "test.parquet").rename(tmp_path / "pairs" / "test.csv")
    for split in ("train", "valid"):
        (tmp_path / "pairs" / f"{split}.csv").write_bytes(content)
    with pytest.raises(ProdsimError, match="nothing of it can be read"):
        audit_data(tmp_path / "pairs", label_model=False)


def test_one_broken_line_is_one_place(tmp_path):
    save_pairs(little_pairs(seed=1, train=40, valid=20, test=20), tmp_path / "pairs")
    path = tmp_path / "pairs" / "test.csv"
    path.write_bytes(path.read_bytes().rsplit(b",", 3)[0])  # cut off in the last line
    found = names(audit_data(tmp_path / "pairs", label_model=False)["findings"])["broken_file"]
    assert found["count"] == 1 and found["where"] == ["test.csv, line 21"]


def test_nothing_to_read_is_one_line(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    (tmp_path / "empty.csv").write_bytes(b"")
    for path in (tmp_path / "x.parquet", tmp_path / "empty.csv", tmp_path / "none.csv"):
        with pytest.raises(ProdsimError) as caught:
            audit_data(path)
        assert "\n" not in str(caught.value)


BAD = {  # what stands in a folder: file → bytes
    "an empty folder": {},
    "a folder of other things": {"notes.md": b"hello"},
    "an empty file": {"pairs.csv": b""},
    "a header alone": {"pairs.csv": b"left_title,right_title,label\n"},
    "no label": {"pairs.csv": b"left_title,right_title\nred lamp,red lamp\n"},
    "labels that are none": {"pairs.csv": b"left_title,right_title,label\nred lamp,lamp red,maybe\n"},
}


@pytest.mark.parametrize("what", BAD)
def test_where_no_pair_can_be_read_there_is_one_line(tmp_path, capsys, what):
    for name, content in BAD[what].items():
        (tmp_path / name).write_bytes(content)
    data = tmp_path / "pairs.csv" if "pairs.csv" in BAD[what] else tmp_path
    assert main(["audit", str(data), "--model", "none", "--html", str(tmp_path / "page.html")]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and str(tmp_path) in err
    assert {p.name for p in tmp_path.iterdir()} == set(BAD[what])  # no page of nothing


def test_a_binary_file_is_said_to_be_one(tmp_path, capsys):
    (tmp_path / "offers.csv").write_bytes(b"id,title\n" + bytes(range(256)) * 20)
    code = main(["audit", str(tmp_path / "offers.csv"), "--model", "none", "--json"])
    out, err = capsys.readouterr()
    assert code in (0, 2) and (code == 0 or err.count("\n") == 1)
    assert code == 2 or names(json.loads(out)["findings"])["broken_file"]["level"] == "error"


def test_one_id_for_two_offers(tmp_path):
    (tmp_path / "offers.csv").write_text("id,title\n1,red lamp\n1,blue desk\n2,green chair\n")
    found = names(audit_data(tmp_path / "offers.csv")["findings"])
    assert found["id_twice"]["count"] == 1 and found["id_twice"]["level"] == "error"


def test_pairs_that_several_people_labelled(tmp_path, capsys):
    "Their agreement is told of the pairs, their majority is the label, ties and slips are named."
    pairs = little_pairs(seed=4, train=60, valid=30, test=30)
    votes = {s: part.to_pandas() for s, part in pairs.items()}
    for table in votes.values():
        for name in ("ann", "bob", "cy"):
            table[f"label_{name}"] = table["label"].astype(object)
        table.loc[table.index % 4 == 0, "label_cy"] = 1 - table["label"]
        table.loc[2, ["label_ann", "label_bob", "label_cy"]] = [1, 0, None]  # a tie
    votes["train"].loc[5, "label_bob"] = "maybe"
    for s, table in votes.items():
        table.drop(columns="label").to_csv(tmp_path / f"{s}.csv", index=False)
    found = audit_data(tmp_path, label_model=False)
    kept = {s: table["label"].drop(index=2) for s, table in votes.items()}
    assert found["splits"] == {s: {"rows": len(y), "positives": int(y.sum())} for s, y in kept.items()}
    whole = pd.concat([t.drop(index=2) for t in votes.values()])[["label_ann", "label_bob", "label_cy"]]
    agreement = rater_agreement(whole.apply(pd.to_numeric, errors="coerce"))
    assert found["ratings"] == json.loads(json.dumps(agreement)) and agreement["raters"][2]["alpha_without"] == 1
    by_name = names(found["findings"])
    assert by_name["rater_stands_apart:label_cy"]["level"] == "warning" and "label" not in by_name
    assert by_name["raters_disagree"]["examples"][0]["where"].startswith("train ")
    places = [f"{s}, row 2" for s in ("test", "train", "valid")]
    assert sorted(by_name["broken_file"]["where"]) == sorted([*places, "train, row 5"])
    votes["train"].to_csv(tmp_path / "one.csv", index=False)  # a label of its own stays the label
    assert audit_data(tmp_path / "one.csv", label_model=False)["splits"]["test"]["rows"] == 60
    command = ["audit", str(tmp_path / "one.csv"), "--model", "none", "--rater"]
    assert main([*command, "label_ann", "--rater", "label_bob", "--html", str(tmp_path / "page.html")]) == 0
    assert "label_bob" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert main([*command, "label_ann", "--rater", "label_ann"]) == 2 and "twice" in capsys.readouterr().err


def test_grades_whose_agreement_cannot_be_told_are_columns_like_others(tmp_path):
    n = 40
    columns = {"rating_1": [3] * n, "rating_2": [3] * n}  # one grade alone
    table = pd.DataFrame({"title": [f"acme lamp {i}" for i in range(n)], **columns})
    assert "ratings" not in audit_data(table)
    table["rating_1"] = np.arange(n) % 4
    table["rating_3"] = [2] + [None] * (n - 1)
    ratings = audit_data(table)["ratings"]  # without the first, the others gave one grade
    assert ratings["raters"][0]["alpha_without"] is None and ratings["raters"][2]["n"] == 1
    table["rating_2"], table["rating_3"] = table["rating_1"], table["rating_1"]
    report = audit_data(table)
    assert report["ratings"]["alpha"] == 1 and "raters_disagree" not in names(report["findings"])
    assert "–" in html_report({**report, "ratings": ratings})


def test_stored_costs_keep_their_bounds():
    "A million titles: twenty minutes and 6 GB on two cores; the 35,311 offers of PriceRunner: two minutes."
    million = read_cost()["rows"][-1]
    assert million["titles"] == 10**6 and million["seconds"] < 20 * 60 and million["peak_gib"] * 2**30 < 6e9
    (offers,) = read_cost("audit_cost.pricerunner")["rows"]
    assert offers["titles"] == 35_311 and offers["cpu_seconds"] < 2 * 60


@pytest.fixture(scope="module")
def file(little, tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "pairs.csv"
    parts = [p.to_pandas().assign(split=s) for s, p in little.items()]
    pd.concat(parts).to_csv(path, index=False)
    return path


def test_command_prints_json_and_writes_the_page(file, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert main(["audit", str(file), "--json", "--model", "none", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["splits"]["test"]["rows"] == 150 and page.read_text().startswith("<!doctype html>")


def test_labels_are_doubted_by_a_recipe_that_is_trained_fold_by_fold(tmp_path, capsys):
    pairs = little_pairs(seed=2, train=40, valid=20, test=20)
    save_pairs(pairs, tmp_path / "pairs")
    quick = ["--labels", "comparisons", "--set", "rounds=20", "--set", "vocabulary=known"]  # in a second
    command = ["audit", str(tmp_path / "pairs"), "--json", "--model", "none", *quick]
    kept = [*command, "--work", str(tmp_path / "folds")]
    assert main(kept) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["labels"]["from"] == "recipe comparisons, rounds 20, vocabulary known, trained fold by fold"
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "folds").rglob("*.safetensors")}
    assert len({p.relative_to(tmp_path / "folds").parts[0] for p in times}) == 5
    assert main(kept) == 0  # nothing is trained twice
    assert json.loads(capsys.readouterr().out)["labels"] == first["labels"]
    assert {p: p.stat().st_mtime_ns for p in times} == times
    command = ["faults", str(tmp_path / "pairs"), "--draws", "1", "--out", str(tmp_path / "out"), "--json", *quick]
    assert main(command) == 0
    (told,) = json.loads(capsys.readouterr().out)["tables"]
    named = "recipe comparisons, rounds 20, vocabulary known, trained fold by fold"
    assert [row["model"] for row in told][-2:] == [named, f"{named}, and trees"]
    assert [p.name.rsplit(".draws.", 1)[1] for p in (tmp_path / "out").glob("*.json")] == ["comparisons.json"]
    assert main(["faults", str(tmp_path / "pairs"), "--out", str(tmp_path / "out"), *quick]) == 2  # no draws


def test_fail_on(file, capsys):
    worst = json.loads(_json(file, capsys))["levels"]
    assert worst["note"] > 0
    assert main(["audit", str(file), "--model", "none", "--fail-on", "note"]) == 1
    assert main(["audit", str(file), "--model", "none", "--fail-on", "error"]) == int(worst["error"] > 0)
    capsys.readouterr()


def _json(file, capsys):
    assert main(["audit", str(file), "--json", "--model", "none"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--fail-on", "fatal"],
        ["--html", "report.pdf"],
        ["--probabilities", "none.csv"],
        ["--labels", "no-such-recipe"],
        ["--work", "folds"],
        ["--labels", "linear"],
        ["--labels", "linear", "--set", "epochs=2"],
        ["--set", "epochs=2"],
        ["--rater", "nobody"],
        ["--bad"],
    ],
)
def test_mistakes_are_one_line(file, options, capsys):
    assert main(["audit", str(file), "--model", "none", *options]) == 2
    captured = capsys.readouterr()
    assert not captured.out and len(captured.err.strip().splitlines()) == 1
    assert main(["audit", "no-such-data-set"]) == 2


def test_import_stays_light():
    import subprocess
    import sys

    code = "import sys, prodsim, prodsim.quality; print({'cleanlab', 'pandera', 'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()" and LEVELS == ("note", "warning", "error")
