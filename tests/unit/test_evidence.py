"""The evidence contract: what is stored recomputes, what is looked at is noted, and every stored result keeps to it."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import DatasetDict, concatenate_datasets
from little_shop import listing, little_pairs

from prodsim import evidence
from prodsim.cli import main
from prodsim.comparisons import VERSION
from prodsim.core import RESULTS, ProdsimError, disagreements
from prodsim.data import attributes, data_hash, save_pairs, seen_status
from prodsim.encoders import pretrained
from prodsim.evaluation import best_threshold, lexical_scores, pair_metrics
from prodsim.evidence import (
    differences,
    evaluate,
    ledger,
    markdown_table,
    note_look,
    pending,
    queue,
    recompute,
    run_cell,
    scored_pairs,
    store,
    stored,
    summary,
)
from prodsim.registry import is_registered


def half_known_pairs():
    "The little pairs, with some test pairs that stand in train."
    pairs = little_pairs()
    return DatasetDict(pairs | {"test": concatenate_datasets([pairs["test"], pairs["train"].select(range(10))])})


PAIRS = half_known_pairs()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    "Results and ledger of the test's own."
    monkeypatch.setenv("PRODSIM_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PRODSIM_LEDGER", str(tmp_path / "ledger.jsonl"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


class Judge:
    "A model that says what it was told to."

    def __init__(self, scores, threshold=None):
        self.scores, self.threshold = scores, threshold

    def score(self, pairs, progress=False):
        return self.scores[len(pairs)]


def judge(threshold=None, seed=0, dtype=np.float64):
    random = np.random.default_rng(seed)
    said = {len(p): (0.6 * np.array(p["label"]) + random.random(len(p))).astype(dtype) for p in PAIRS.values()}
    return Judge(said, threshold)


def keep(name="toy.test.judge.seed0", seed=0, system="judge", data="toy"):
    metrics, scores = evaluate(judge(0.7, seed), PAIRS, n_resamples=1000)
    path = store(
        name, PAIRS, scores, metrics, {"data": data, "system": system, "seed": seed, "why": "a test", "command": "x"}
    )
    return json.loads(path.read_text()), scores


# --- measuring


def test_evaluate_measures_at_the_models_threshold():
    metrics, scores = evaluate(judge(0.7), PAIRS, n_resamples=20)
    labels = np.array(PAIRS["test"]["label"])
    expected = pair_metrics(labels, scores, 0.7)
    assert {k: metrics[k] for k in expected} == expected and metrics["threshold_from"] == "valid (in training)"
    seen = seen_status(PAIRS, "test")
    assert {k: v["n"] for k, v in metrics["by_seen"].items()} == {"seen": 10, "half_seen": 0, "unseen": 40}
    assert metrics["by_seen"]["unseen"] == pair_metrics(labels[seen == "unseen"], scores[seen == "unseen"], 0.7)
    assert metrics["pairs_per_second"] > 0


def test_evaluate_chooses_a_missing_threshold_on_valid_alone():
    model = judge()
    metrics, _ = evaluate(model, PAIRS, n_resamples=20)
    expected = best_threshold(np.array(PAIRS["valid"]["label"]), model.scores[40])
    assert (metrics["threshold"], metrics["threshold_from"]) == (expected, "valid (now)")
    only_test = DatasetDict(test=PAIRS["test"])
    with pytest.raises(ProdsimError, match="no split valid"):
        evaluate(model, only_test)
    with pytest.raises(ProdsimError, match="no split 'holdout'"):
        evaluate(model, PAIRS, "holdout")


# --- store and recompute


def test_stored_scores_give_the_stored_metrics_again(folder):
    result, scores = keep()
    assert stored() == [result]
    table = scored_pairs(result)
    np.testing.assert_array_equal(table["score"], scores.astype(np.float32))
    assert table["label"].tolist() == list(PAIRS["test"]["label"])
    assert table["left_id"].tolist() == list(PAIRS["test"]["left_id"])
    assert table["seen"].tolist() == seen_status(PAIRS, "test").tolist()
    assert differences(result) == []
    again = recompute(result)
    assert {k: result["metrics"][k] for k in again} == again, "to the last digit, intervals too"
    assert result["data_hash"] == data_hash(PAIRS)
    assert {"commit", "clean", "version"} == set(result["revision"]) and result["machine"]["versions"]["prodsim"]


def test_scores_that_only_differ_beyond_single_precision_are_measured_as_stored():
    labels = np.array(PAIRS["test"]["label"])
    close = {len(p): 0.5 + 1e-12 * np.array(p["label"]) for p in PAIRS.values()}
    metrics, scores = evaluate(Judge(close, 0.5), PAIRS, n_resamples=20)
    assert metrics["average_precision"] == pytest.approx(labels.mean()), "what is stored cannot tell them apart"
    store("close", PAIRS, scores, metrics, {"data": "toy"})
    assert recompute(stored()[0], 20)["average_precision"] == metrics["average_precision"]


@pytest.mark.parametrize("path", [("f1",), ("average_precision_interval", 0), ("by_seen", "seen", "recall"), ("n",)])
def test_a_changed_metric_is_noticed(path):
    result, _ = keep()
    *outer, last = path
    place = result["metrics"]
    for key in outer:
        place = place[key]
    place[last] = place[last] + 1e-6
    (line,) = differences(result)
    assert result["name"] in line and str(path[0]) in line


def test_a_changed_score_or_label_is_noticed(folder):
    result, _ = keep()
    for file, column, change in (("scores_file", "score", lambda v: 1.9 - v), ("pairs_file", "label", lambda v: 1 - v)):
        path = folder / result[file]
        original = path.read_bytes()
        table = pd.read_csv(path)
        table.loc[3, column] = change(table.loc[3, column])
        table.to_csv(path, index=False)
        assert differences(result), column
        path.write_bytes(original)
        assert differences(result) == []


def test_missing_or_short_scores_are_one_line(folder):
    result, _ = keep()
    path = folder / result["scores_file"]
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[:-1])))
    with pytest.raises(ProdsimError, match="50 pairs but 49 scores"):
        differences(result)
    path.write_bytes(b"no gzip")
    with pytest.raises(ProdsimError, match="missing or unreadable"):
        differences(result)
    path.unlink()
    with pytest.raises(ProdsimError, match="missing or unreadable"):
        differences(result)


def test_the_same_result_gives_the_same_files(folder):
    keep()
    first = {k: v for k, v in listing(folder).items() if k.endswith(".gz")}
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    keep()
    assert {k: v for k, v in listing(folder).items() if k.endswith(".gz")} == first and len(first) == 2
    keep("toy.test.judge.seed1", 1)
    assert len(list((folder / "pairs").iterdir())) == 1, "pairs are kept once per data set"


def test_check_by_the_command_line(folder, capsys):
    keep()
    assert main(["results", "--check"]) == 0 and "1 results" in capsys.readouterr().out
    (path,) = (folder / "runs").glob("*.json")
    result = json.loads(path.read_text())
    result["metrics"]["f1"] += 0.01
    path.write_text(json.dumps(result))
    assert main(["results", "--check"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "f1" in err


# --- the ledger


def test_looks_are_appended(tmp_path):
    assert ledger().empty
    note_look("abt-buy", "model a", "first")
    before = (tmp_path / "ledger.jsonl").read_text()
    note_look("abt-buy", "模型 b", "second")
    assert (tmp_path / "ledger.jsonl").read_text().startswith(before), "nothing written is ever changed"
    table = ledger()
    assert table["what"].tolist() == ["model a", "模型 b"] and table["why"].tolist() == ["first", "second"]
    assert set(table["data"]) == {"abt-buy"} and table["when"].notna().all()


def test_ledger_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODSIM_LEDGER", str(tmp_path / "new" / "ledger.jsonl"))
    note_look("abt-buy", "model", "why")
    assert len(ledger()) == 1


# --- the queue

QUEUE = """
[[cell]]
data = "{data}"
system = "lexical"
why = "baseline"

[[cell]]
data = "{data}"
system = "bi"
seeds = [2, 0]
why = "two seeds"
[cell.changes]
model = "{model}"
epochs = 2
batch_size = 16
learning_rate = 3e-3
max_length = 32
"""


@pytest.fixture
def own_queue(folder, tiny_model):
    def write():
        save_pairs(PAIRS, folder.parent / "data")
        folder.mkdir(exist_ok=True)
        text = QUEUE.format(data=folder.parent / "data", model=tiny_model)
        (folder / "queue.toml").write_text(text)
        return queue()

    return write


def test_queue_is_read_in_order_seed_by_seed(own_queue, folder):
    cells = own_queue()
    assert [(c["system"], c["seed"], c["split"]) for c in cells] == [
        ("lexical", 0, "test"),
        ("bi", 2, "test"),
        ("bi", 0, "test"),
    ]
    assert len({c["name"] for c in cells}) == 3 and cells[0]["changes"] == {} and cells[1]["changes"]["epochs"] == 2
    assert pending() == cells
    keep(cells[1]["name"])
    assert pending() == [cells[0], cells[2]]
    (folder / "queue.toml").write_text("[[cell]\n")
    with pytest.raises(ProdsimError, match="queue cannot be read"):
        queue()
    (folder / "queue.toml").unlink()
    with pytest.raises(ProdsimError, match="queue cannot be read"):
        queue()


def test_lexical_cell(own_queue, tmp_path):
    cell = own_queue()[0]
    result = run_cell(cell, tmp_path / "work", progress=False)
    scores = scored_pairs(result)["score"]
    np.testing.assert_array_equal(scores, lexical_scores(PAIRS["train"], PAIRS["test"]).astype(np.float32))
    assert differences(result) == [] and result["metrics"]["threshold_from"] == "valid (now)"
    assert result["command"] == f"prodsim results --only {cell['name']}" and result["why"] == "baseline"


def test_pretrained_cell_takes_another_encoder(own_queue, tiny_model, tmp_path):
    cell = own_queue()[0] | {"system": "pretrained", "row": "tiny", "split": "valid", "name": "toy.valid.tiny"}
    result = run_cell({**cell, "changes": {"model": str(tiny_model)}}, tmp_path / "work", progress=False)
    tiny = pretrained(tiny_model, names=attributes(PAIRS)).score(PAIRS["valid"])
    np.testing.assert_array_equal(scored_pairs(result)["score"], tiny)
    assert stored()[-1]["system"] == "tiny", "a row of its own in the tables"
    assert not ledger().shape[0], "a validation split is no look"


def test_a_row_of_its_own_names_the_cell(own_queue, folder):
    plain = own_queue()
    text = (folder / "queue.toml").read_text()
    (folder / "queue.toml").write_text(text.replace('system = "bi"', 'system = "bi"\nrow = "bi-other"', 1))
    cells = queue()
    assert [c["row"] for c in plain] == [c["system"] for c in plain]
    assert [c["system"] for c in cells] == [c["system"] for c in plain], "what is trained stays the same"
    named = [c["name"].split(".")[-2] for c in cells if c["row"] == "bi-other"]
    assert named == ["bi-other"] * 2, "one for each seed"


def test_stopped_queue_goes_on_where_it_was(own_queue, tmp_path, monkeypatch, capsys):
    cells = own_queue()
    original = evidence.evaluate

    def interrupt(model, pairs, *args, **options):
        if len(stored()) == 1:
            raise KeyboardInterrupt
        return original(model, pairs, *args, **options)

    monkeypatch.setattr(evidence, "evaluate", interrupt)
    assert main(["results"]) == 130
    assert [r["name"] for r in stored()] == [cells[0]["name"]] and pending() == cells[1:]
    monkeypatch.setattr(evidence, "evaluate", original)
    first = listing(tmp_path / "results")
    model = next((tmp_path / "_run" / "results").glob("*seed2"))
    trained = (model / "run.json").stat().st_mtime_ns
    assert main(["results"]) == 0
    assert (model / "run.json").stat().st_mtime_ns == trained, "the model that stood there was used"
    assert {r["name"] for r in stored()} == {c["name"] for c in cells} and pending() == []
    now = listing(tmp_path / "results")
    assert {k: now[k] for k in first} == first, "what was stored is left as it was"
    for result in stored():
        assert differences(result) == []
    trained_cells = [r for r in stored() if r["system"] == "bi"]
    assert {r["seed"] for r in trained_cells} == {0, 2}
    assert {r["training"]["arguments"]["recipe"]["epochs"] for r in trained_cells} == {2}
    assert all("--set epochs=2" in r["command"] and "prodsim evaluate" in r["command"] for r in trained_cells)
    assert len(ledger()) == 4, "each cell looks once, and the interrupted one twice"
    capsys.readouterr()
    assert main(["results"]) == 0 and capsys.readouterr().out == "", "nothing is left to do"


def test_a_cell_takes_over_what_other_cells_trained(tmp_path, monkeypatch):
    save_pairs(PAIRS, tmp_path / "data")
    asked = []

    def stop(data, out, recipe, **options):
        asked.append((recipe, [path.name for path in options["start"]], options["seed"]))
        raise KeyboardInterrupt

    monkeypatch.setattr("prodsim.recipes.train_recipe", stop)
    about = {"data": str(tmp_path / "data"), "seed": 1, "split": "test", "changes": {}, "why": "a test"}
    trained = [tmp_path / "work" / evidence._slug(f"{about['data']}.test.{part}.seed1") for part in ("bi", "products")]
    for cell in ({"system": "best"}, {"system": "cross-start"}, {"system": "fast"}, {"system": "bi"}):
        with pytest.raises(KeyboardInterrupt):
            run_cell({**about, **cell, "name": f"toy.test.{cell['system']}.seed1"}, tmp_path / "work", progress=False)
        trained[len(asked) > 1].mkdir(parents=True, exist_ok=True)
    bi, trees = (path.name for path in trained)
    assert asked == [("best", [], 1), ("cross-start", [bi], 1), ("fast", [trees], 1), ("bi", [], 1)]


def test_cell_on_valid_is_no_look_at_the_test_split(own_queue, tmp_path):
    result = run_cell(own_queue()[0] | {"split": "valid"}, tmp_path / "work", progress=False)
    assert result["metrics"]["split"] == "valid" and result["metrics"]["n"] == 40
    assert ledger().empty and summary().empty


# --- the table


def test_summary_by_hand(folder):
    results = [keep(f"toy.test.judge.seed{s}", s)[0] for s in range(3)]
    keep("toy.test.once.seed0", 5, "once")
    table = summary().set_index("system")
    values = [r["metrics"]["f1"] for r in results]
    mean = sum(values) / 3
    assert len(set(values)) > 1
    row = table.loc["judge"]
    assert row["seeds"] == 3 and row["f1"] == pytest.approx(mean)
    assert row["f1_sd"] == pytest.approx((sum((v - mean) ** 2 for v in values) / 2) ** 0.5)
    assert row["f1_low"] == pytest.approx(sum(r["metrics"]["f1_interval"][0] for r in results) / 3)
    assert row["f1_unseen"] == pytest.approx(sum(r["metrics"]["by_seen"]["unseen"]["f1"] for r in results) / 3)
    assert (row["n"], row["n_seen"], row["n_unseen"]) == (50, 10, 40)
    assert pd.isna(table.loc["once", "f1_sd"]) and pd.isna(table.loc["once", "f1_half_seen"])
    (folder / "published.toml").write_text(
        '[[system]]\nname = "Peer"\nparameters = 9\nf1 = { toy = 61.5, other = 3.0 }\n'
    )
    names, _, size, judge, once, peer = markdown_table().splitlines()
    assert names == "|  | toy |" and size.startswith("| test pairs (matches) | 50 (")
    assert judge.startswith(f"| judge | {100 * mean:.1f} ± {100 * row['f1_sd']:.1f} (") and once.startswith("| once | ")
    assert peer == "| *Peer as published (9 M)* | *61.5* |"


def test_table_without_results():
    assert "make results" in markdown_table()


# --- the contract: every result in the package


def package_results():
    return sorted((RESULTS / "runs").glob("*.json"))


def test_package_has_a_queue_and_results(monkeypatch):
    monkeypatch.delenv("PRODSIM_RESULTS")
    cells = queue()
    assert len(cells) >= 9 and len({c["name"] for c in cells}) == len(cells)
    assert all(is_registered(c["data"]) for c in cells)
    if (RESULTS / "runs").exists():
        assert package_results(), f"{RESULTS / 'runs'} is empty: make results"
    used = {r[k] for r in stored() for k in ("pairs_file", "scores_file")}
    for path in (RESULTS / "faults").glob("*.json"):  # of `prodsim faults`
        used |= {
            f"faults/{r[k]}"
            for r in json.loads(path.read_text())["seeds"].values()
            for k in ("scores", "flags", "draws")
            if k in r
        }
    for path in RESULTS.glob("*/*.json"):  # of the commands that keep their results in a folder of their own
        result = json.loads(path.read_text())
        used |= {
            f"{path.parent.name}/{v}" for k, v in result.items() if path.parent.name != "runs" and k.endswith("_file")
        }
    kept = {str(p.relative_to(RESULTS)) for p in RESULTS.rglob("*.csv.gz")}
    assert kept == used, "every file of scores belongs to a result, and every result has its files"


@pytest.mark.parametrize("path", package_results(), ids=lambda path: path.stem)
def test_stored_result_keeps_the_contract(path, monkeypatch):
    monkeypatch.delenv("PRODSIM_RESULTS")
    monkeypatch.delenv("PRODSIM_LEDGER")
    result = json.loads(path.read_text(encoding="utf-8"))
    assert (RESULTS / result["scores_file"]).is_file() and (RESULTS / result["pairs_file"]).is_file()
    assert differences(result) == []
    assert result["metrics"]["n"] == len(scored_pairs(result)) > 0
    made_at = [part["revision"] for part in (result, result.get("training")) if part]
    for revision in made_at:
        assert revision["clean"] is True and len(revision["commit"]) == 40, "made from a committed, clean tree"
    assert {"processor", "cores", "precision", "versions"} <= set(result["machine"])
    assert result["command"].startswith("prodsim ") and result["why"]
    if result["metrics"]["split"] == "test" and is_registered(result["data"]):
        looks = ledger()
        looked_as = result.get("looked_as", result["name"])  # what is renamed later keeps its look
        looks = looks[(looks["data"] == result["data"]) & (looks["what"] == looked_as)]
        assert len(looks), "a look at a registered test split that the ledger does not know"
        assert looks["when"].min() <= result["when"]
    if "training" in result:
        assert result["metrics"]["threshold_from"] == "valid (in training)"
        training = result["training"]
        assert result["metrics"]["threshold"] == training["valid"]["threshold"], "chosen on validation pairs"
        if result["system"] == "comparisons":
            assert training["arguments"]["comparisons"] == VERSION, "a model of the vectors it was scored by"
        if training["arguments"].get("recipe"):  # an encoder, of which one checkpoint was kept
            measured = [r[k] for k in [training["best_metric"]["name"]] for r in training["history"] if k in r]
            assert max(measured) == training["best_metric"]["value"], "chosen on validation pairs"


def test_the_contract_has_a_line_for_every_look():
    path = RESULTS / "test_ledger.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        look = json.loads(line)
        assert (
            all(look[k] for k in ("when", "data", "what", "why", "version")) and Path(look["data"]).name == look["data"]
        )


@pytest.mark.parametrize(
    "kept, again, lines",
    [
        ({"f1": 0.5, "seconds": 3}, {"f1": 0.5 + 1e-12}, []),
        ({"f1": 0.5}, {"f1": 0.6}, ["run.f1: 0.5, 0.6"]),
        ({"f1": 0.5}, {"f1": 0.5, "n": 2}, ["run.n: None, 2"]),
        ({"by": [1, 2, 3]}, {"by": [1, 2]}, ["run.by: 3 entries, 2"]),
        ({"by": None}, {"by": [1.0]}, ["run.by: None entries, 1"]),
        ({"5": {"recall": 1.0}}, {5: {"recall": 0.9}}, ["run.5.recall: 1.0, 0.9"]),
        ({"f1": float("nan")}, {"f1": 0.5}, ["run.f1: nan, 0.5"]),
        ({"f1": None}, {"f1": None}, []),
    ],
)
def test_disagreements_name_the_place(kept, again, lines):
    assert disagreements("run", kept, again) == lines
