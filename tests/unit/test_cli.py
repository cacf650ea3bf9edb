"""The command line: the whole way on a data set of one's own, and one line for every mistake."""

import ast
import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, concatenate_datasets
from little_shop import listing, little_pairs

from prodsim import __version__, cli
from prodsim.cli import ROOMS, main
from prodsim.collective import settle
from prodsim.data import save_pairs
from prodsim.encoders import load_model
from prodsim.evaluation import pair_metrics
from prodsim.registry import catalog

PRODSIM = Path(sys.executable).with_name("prodsim")
METRICS = {"f1", "precision", "recall", "average_precision", "n"}


def own_pairs():
    "The little pairs; of the test pairs 40 are unseen, 8 stand in train, 8 have one record there."
    pairs = little_pairs()
    train, test = pairs["train"], pairs["test"]
    half = train.select(range(8)).remove_columns(["right_id", "right_title", "right_price", "label"])
    rest = test.select(range(8)).select_columns(["right_id", "right_title", "right_price", "label"])
    half = concatenate_datasets([half, rest], axis=1).select_columns(test.column_names)
    return DatasetDict(pairs | {"test": concatenate_datasets([test, train.select(range(8, 16)), half])})


PAIRS = own_pairs()
FORMS = {"csv": "csv", "magellan": "magellan", "ditto": "txt", "jsonl": "jsonl", "parquet": "parquet"}


@pytest.fixture(autouse=True)
def own_ledger(tmp_path_factory, monkeypatch):
    "What tests look at is nobody's evidence."
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    monkeypatch.setenv("PRODSIM_LEDGER", str(path))
    monkeypatch.delenv("PRODSIM_PROGRESS", raising=False)
    return path


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    "A folder with the pairs as CSV, and a model of each kind trained on them by the command line."
    folder = tmp_path_factory.mktemp("cli")
    save_pairs(PAIRS, folder / "data")
    for kind, more in (("bi", ["--batch-size", "16"]), ("cross", ["--batch-size", "8", "--learning-rate", "5e-3"])):
        options = ["--kind", kind, "--model", tiny_model, "--epochs", "2", "--out", str(folder / kind), *more]
        assert main(["train", str(folder / "data"), *options]) == 0
    return folder


@pytest.fixture
def prodsim(capsys):
    "Run a command in this process: exit code, stdout, stderr."

    def run(*args):
        capsys.readouterr()
        code = main([str(a) for a in args])
        return code, *capsys.readouterr()

    return run


def plain_json(text):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


# --- the way through


@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_evaluate_prints_one_json_object(prodsim, trained, own_ledger, kind):
    code, out, err = prodsim("evaluate", trained / kind, trained / "data", "--json", "--resamples", 50)
    assert (code, err) == (0, "")
    shown = plain_json(out)
    assert METRICS | {"threshold", "pairs_per_second", "by_seen"} <= set(shown)
    assert {k: v["n"] for k, v in shown["by_seen"].items()} == {"seen": 8, "half_seen": 8, "unseen": 40}
    assert all(METRICS <= set(part) for part in shown["by_seen"].values())
    assert shown["n"] == 56 and shown["pairs_per_second"] > 0
    model = load_model(trained / kind)
    assert shown["threshold"] == model.threshold, "chosen on valid, kept with the model"
    expected = pair_metrics(PAIRS["test"]["label"], model.score(PAIRS["test"]), model.threshold)
    assert {k: shown[k] for k in expected} == expected
    low, high = shown["f1_interval"]
    assert low <= shown["f1"] <= high
    assert not own_ledger.exists(), "one's own test split is one's own business"


def test_evaluate_in_words_and_on_another_split(prodsim, trained):
    code, out, err = prodsim("evaluate", trained / "bi", trained / "data", "--split", "valid", "--resamples", 50)
    assert (code, err) == (0, "")
    assert "half_seen" in out and "95 % intervals" in out and "pairs/s" in out
    shown = plain_json(prodsim("evaluate", trained / "bi", trained / "data", "--split", "valid", "--json")[1])
    assert shown["f1"] == load_model(trained / "bi").run["valid"]["f1"]


def test_evaluate_in_words_where_a_metric_is_unknown(prodsim, trained, tmp_path):
    for label, f1 in ((1, True), (0, False)):
        one = PAIRS["test"].filter(lambda row, label=label: row["label"] == label)
        save_pairs(DatasetDict({**PAIRS, "test": one}), tmp_path / str(label))
        code, out, err = prodsim("evaluate", trained / "bi", tmp_path / str(label), "--resamples", 20)
        assert (code, err) == (0, "") and "–" in out and ("95 % intervals: F1 0." in out) == f1
        assert "average precision 0" not in out


def test_evaluate_settles_where_labels_show_one_partner(prodsim, trained, tmp_path):
    code, out, err = prodsim("evaluate", trained / "bi", trained / "data", "--settle", "--resamples", 20)
    assert code == 2 and out == "" and "may have several partners" in err and err.count("\n") == 1
    titles = [f"{a} {b} {n}" for a in ("red", "green") for b in ("lamp", "mug", "chair") for n in range(3)]
    rows = [(i, j) for i in range(len(titles)) for j in (i, (i + 1) % len(titles), (i + 5) % len(titles))]
    table = {"left_id": [f"l{i}" for i, _ in rows], "right_id": [f"r{j}" for _, j in rows]}
    table |= {"left_title": [titles[i] for i, _ in rows], "right_title": [titles[j] for _, j in rows]}
    some = Dataset.from_dict(table | {"label": [int(i == j) for i, j in rows]})
    save_pairs(DatasetDict(dict.fromkeys(("train", "valid", "test"), some)), tmp_path / "tables")
    code, out, err = prodsim("train", tmp_path / "tables", "--kind", "comparisons", "--out", tmp_path / "m")
    assert code == 0, err
    asked = ("evaluate", tmp_path / "m", tmp_path / "tables", "--resamples", 20, "--json")
    plain, settled = (plain_json(prodsim(*asked, *more)[1]) for more in ((), ("--settle",)))
    assert settled["settled"] == ["left", "right"] and "settled" not in plain
    model, (a, b) = load_model(tmp_path / "m"), (some["left_id"][:], some["right_id"][:])
    scores = settle(a, b, model.score(some), model.threshold)
    assert settled["f1"] == pair_metrics(some["label"], scores, model.threshold)["f1"]
    assert {"precision", "by_seen", "f1_interval", "pairs_per_second"} <= set(settled)
    assert "competing pairs settled" in prodsim(*asked[:-1], "--settle")[1]


def test_train_prints_one_json_object(prodsim, trained, tiny_model, tmp_path):
    options = ("--kind", "bi", "--model", tiny_model, "--epochs", 1, "--batch-size", 48, "--out", tmp_path / "m")
    code, out, err = prodsim("train", trained / "data", *options, "--json", "--attribute", "title")
    assert (code, err) == (0, "")
    shown = plain_json(out)
    model = load_model(tmp_path / "m")
    assert shown["threshold"] == model.threshold and shown["valid"] == model.run["valid"]
    assert shown["steps"] == model.run["steps"] > 0
    assert model.text_format.attributes == ("title",)
    code, out, _ = prodsim("train", trained / "data", *options, "--attribute", "title", "--resume", "--json")
    assert code == 0 and plain_json(out) == shown


@pytest.mark.parametrize("form", FORMS)
def test_own_data_in_every_format_is_the_same_data(prodsim, trained, tiny_model, tmp_path, form):
    save_pairs(PAIRS, tmp_path / "data", FORMS[form])
    before = listing(tmp_path / "data")
    options = ("--kind", "bi", "--model", tiny_model, "--epochs", 2, "--batch-size", 16, "--out", tmp_path / "m")
    if form == "magellan":
        assert prodsim("train", tmp_path / "data", *options)[0] == 0
        assert load_model(tmp_path / "m").run["history"] == load_model(trained / "bi").run["history"]
    code, out, _ = prodsim("evaluate", trained / "bi", tmp_path / "data", "--json", "--resamples", 20)
    expected = plain_json(prodsim("evaluate", trained / "bi", trained / "data", "--json", "--resamples", 20)[1])
    ours = plain_json(out)
    assert code == 0
    for changing in ("data", "pairs_per_second"):
        ours.pop(changing), expected.pop(changing)
    assert ours == expected
    assert listing(tmp_path / "data") == before, "data is only read"


def test_score_writes_what_the_model_says(prodsim, trained, tmp_path):
    model = load_model(trained / "cross")
    for name, separator in (("scores.csv", ","), ("scores.tsv", "\t")):
        code, out, err = prodsim("score", trained / "cross", trained / "data" / "test.csv", "--out", tmp_path / name)
        assert (code, err) == (0, "") and "56" in out
        table = pd.read_csv(tmp_path / name, sep=separator)
        assert list(table) == ["left_id", "right_id", "score", "match"]
        assert table["left_id"].tolist() == list(PAIRS["test"]["left_id"])
        np.testing.assert_allclose(table["score"], model.score(PAIRS["test"]), atol=1e-6)
        assert (table["match"] == (table["score"] >= model.threshold)).all()


def test_score_needs_no_labels(prodsim, trained, tmp_path):
    PAIRS["test"].remove_columns(["label", "left_id"]).to_csv(tmp_path / "pairs.csv")
    assert prodsim("score", trained / "bi", tmp_path / "pairs.csv", "--out", tmp_path / "s.csv")[0] == 0
    assert len(pd.read_csv(tmp_path / "s.csv")) == 56


def test_embed_writes_unit_vectors(prodsim, trained, tmp_path):
    records = pd.DataFrame(
        {"id": ["a", "b", "c"], "title": ["acme lamp 1", "bolt desk 2", "灯"], "price": ["1", None, "2"]}
    )
    records.to_csv(tmp_path / "r.csv", index=False)
    for name in ("e.npy", "e.parquet"):
        code, out, err = prodsim("embed", trained / "bi", tmp_path / "r.csv", "--out", tmp_path / name)
        assert (code, err) == (0, "") and "3" in out and "32" in out
    vectors = np.load(tmp_path / "e.npy")
    assert vectors.dtype == np.float32 and vectors.shape == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    table = pd.read_parquet(tmp_path / "e.parquet")
    assert table["id"].tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(np.stack(table["embedding"]), vectors)


def test_registered_name_is_evaluated(prodsim, tiny_model, own_ledger):
    code, out, err = prodsim("evaluate", tiny_model, "shop:easy", "--json", "--resamples", 10)
    assert (code, err) == (0, "")
    shown = plain_json(out)
    assert shown["n"] > 100 and shown["data"] == "shop:easy"
    assert not own_ledger.exists(), "the simulated shop can be made anew at will"


def test_published_encoder_is_evaluated_without_training(prodsim, trained, tiny_model):
    code, out, _ = prodsim("evaluate", tiny_model, trained / "data", "--json", "--resamples", 10)
    assert code == 0 and plain_json(out)["threshold_from"] == "valid (now)"


def test_datasets_lists_what_is_registered(prodsim):
    code, out, err = prodsim("datasets", "--json")
    assert (code, err) == (0, "")
    rows = plain_json(out)["datasets"]
    assert {r["name"] for r in rows} == set(catalog()["name"]) and len(rows) > 10
    code, out, _ = prodsim("datasets")
    assert code == 0 and "abt-buy" in out and "shop" in out


def test_time_to_quality_prints_a_dash_where_it_is_never_reached(prodsim, monkeypatch, tmp_path):
    from prodsim import bench

    row = lambda seconds, f1: [{"epoch": 1, "seconds": seconds, "cpu_seconds": seconds, "f1": f1}]  # noqa: E731
    curves = {"prodsim fast": row(10, 0.9), bench.USUAL[0]: row(300, 0.8), bench.USUAL[1]: row(200, 0.7)}
    measured = {"curves": curves, "data": "abt-buy", "machine": {"processor": "a chip", "threads": 1}}
    monkeypatch.setattr(bench, "time_to_quality", lambda data, work, log: measured | {"asked": [data, str(work)]})
    out = tmp_path / "quality.json"
    code, text, err = prodsim("bench", "--time-to-quality", "--work", "here", "--out", out)
    assert (code, err) == (0, "") and "30.000" in text and "–" in text and "a chip" in text
    stored = json.loads(out.read_text())
    assert stored["command"] == "prodsim bench --time-to-quality --data abt-buy" and stored["asked"][1] == "here"


def test_bench_names_an_environment_that_is_not_there(prodsim, tiny_model, monkeypatch):
    from prodsim import bench

    monkeypatch.setattr(bench, "_some_texts", lambda *arguments: ["a lamp"])
    code, text, err = prodsim("bench", "--job", "embed", "--data", "shop:easy-20", "--onnx", "nowhere/python")
    assert code == 2 and "--onnx nowhere/python: no such Python" in err and err.count("\n") == 1


def test_bench_compares_in_turns_and_stores_what_it_measured(prodsim, monkeypatch, tiny_model, tmp_path):
    from prodsim import bench

    given = bench.bench.__defaults__
    monkeypatch.setattr(bench.bench, "__defaults__", (*given[:4], tiny_model, *given[5:]))
    out = tmp_path / "speed.json"
    options = ("--data", "shop:easy-40", "--pairs", 16, "--repeats", 2)
    code, text, err = prodsim("bench", *options, "--out", out, "--json")
    assert (code, err) == (0, "")
    measured = plain_json(text)
    assert {r["job"] for r in measured["rows"]} == set(bench.JOBS)
    assert all(len(r["seconds"]) == len(r["cpu_seconds"]) == 2 for r in measured["rows"])
    stored = json.loads(out.read_text())
    assert stored["command"].startswith("prodsim bench --job score") and stored["rows"] == measured["rows"]
    table = bench.compare_speed(stored, "seconds")
    first = table.groupby("job").head(1)
    assert (first["ratio"] == 1).all() and (table["per_second"] > 0).all() and (table["of_floor"].dropna() > 0).all()
    for options in (("--job", "fly"), ("--out", tmp_path / "x.txt"), ("--data", "abt-bye")):
        code, text, err = prodsim("bench", *options)
        assert (code, text) == (2, "") and err.count("\n") == 1


# --- mistakes: one line, exit code 2, nothing written

HEAD = "left_title,left_price,right_title,right_price,label\n"
ROW = "acme lamp 1,1,lamp acme 1,,1\nbolt desk 2,,desk bolt 3,,0\n"


def with_file(name, content):
    "The good folder with one file replaced."

    def make(folder):
        save_pairs(PAIRS, folder / "data")
        path = folder / "data" / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / "data"

    return make


def missing_file(folder):
    save_pairs(PAIRS, folder / "data")
    (folder / "data" / "valid.csv").write_text(HEAD)
    return folder / "data"


BAD_DATA = {
    "no such data set": (lambda folder: "abt-bye", "abt-buy"),
    "no such folder": (lambda folder: folder / "nothing", "no such"),
    "no label column": (with_file("train.csv", (HEAD + ROW).replace(",label", ",labels")), "label"),
    "a label of 2": (with_file("train.csv", HEAD + ROW + "a,,b,,2\n"), "line 4"),
    "a label that is no number": (with_file("valid.csv", HEAD + "a,,b,,yes\n"), "line 2"),
    "a missing label": (with_file("test.csv", HEAD + "a,,b,,\n"), "line 2"),
    "an empty split": (missing_file, "valid.csv"),
    "an empty file": (with_file("train.csv", ""), "train.csv"),
    "a binary file": (with_file("train.csv", HEAD.encode() + b"\x00\x01\x02"), "not a text file"),
    "another encoding": (with_file("train.csv", HEAD.encode() + "灯,1,灯,1,1\n".encode("gb18030")), "UTF-8"),
    "ragged rows": (with_file("train.csv", HEAD + ROW + "a,b\n"), "line 4"),
    "an unclosed quote": (with_file("train.csv", HEAD + '"a,,b,,1\n'), "quotes"),
    "an empty record": (with_file("train.csv", HEAD + ROW + ",,b,,1\n"), "line 4"),
    "a registered variant that is not": (lambda folder: "wdc-computers:huge", "huge"),
    "data without pairs": (lambda folder: "pricerunner", "pairs"),
}


def refused(run, folder, *args):
    "Run a command that must be refused; its one line."
    before = listing(folder)
    code, out, err = run(*args)
    assert code == 2 and out == "", (code, out, err)
    assert err.startswith("prodsim: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err
    assert listing(folder) == before, "something was written"
    return err


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused_by_train_and_evaluate(prodsim, trained, tiny_model, tmp_path, case):
    make, part = BAD_DATA[case]
    data = make(tmp_path)
    said = refused(prodsim, tmp_path, "train", data, "--model", tiny_model, "--out", tmp_path / "m")
    assert part in said
    assert refused(prodsim, tmp_path, "evaluate", trained / "bi", data, "--json") == said


BAD_ROWS = {
    "no such file": (None, "nothing.csv"),
    "no pairs": ("title,price\na,1\n", "left_"),
    "an empty record": (HEAD + ROW + "a,,,,1\n", "line 4"),
    "ragged rows": (HEAD + ROW + "a,b\n", "line 4"),
    "a wrong label": (HEAD + "a,,b,,2\n", "line 2"),
    "another attribute": ("left_name,right_name\na,b\n", "'title'"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_refused_by_score(prodsim, trained, tmp_path, case):
    content, part = BAD_ROWS[case]
    path = tmp_path / ("pairs.csv" if content else "nothing.csv")
    if content:
        path.write_text(content)
    assert part in refused(prodsim, tmp_path, "score", trained / "bi", path, "--out", tmp_path / "new" / "s.csv")


def test_bad_models_and_outputs(prodsim, trained, tiny_model, tmp_path):
    data, pairs = trained / "data", trained / "data" / "test.csv"
    records = tmp_path / "r.csv"
    records.write_text("id,title,price\n1,a,\n2,,\n")
    hollow, empty, broken = tmp_path / "hollow", tmp_path / "empty", tmp_path / "broken"
    for folder in (hollow, empty, broken):
        folder.mkdir()
    (hollow / "run.json").write_bytes((trained / "bi" / "run.json").read_bytes())
    (broken / "run.json").write_text("{")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for args, part in {
        ("evaluate", hollow, data): "no weights",
        ("evaluate", empty, data): "run.json",
        ("evaluate", broken, data): "not readable JSON",
        ("evaluate", tmp_path / "nowhere", data): "nowhere",
        ("evaluate", trained / "bi", data, "--split", "holdout"): "holdout",
        ("score", hollow, pairs, "--out", tmp_path / "s.csv"): "no weights",
        ("score", trained / "bi", pairs, "--out", tmp_path / "s.txt"): ".csv",
        ("score", trained / "bi", pairs, "--out", tmp_path / "mine"): "mine",
        ("embed", trained / "cross", records, "--out", tmp_path / "e.npy"): "kind cross",
        ("embed", trained / "bi", records, "--out", tmp_path / "e.csv"): ".npy",
        ("embed", trained / "bi", records, "--out", tmp_path / "e.npy"): "line 3",
        ("train", data, "--model", empty, "--out", tmp_path / "m"): "no weights",
        ("train", data, "--model", "nobody/nothing", "--out", tmp_path / "m"): "nobody/nothing",
        ("train", data, "--model", tiny_model, "--out", tmp_path / "mine"): "is not a run",
        ("train", data, "--model", tiny_model, "--out", tmp_path / "file"): "is not a run",
        ("train", data, "--model", tiny_model, "--out", tmp_path / "file" / "below"): "file",
        ("train", data, "--model", tiny_model, "--out", tmp_path / "m", "--kind", "tri"): "--kind tri",
        ("train", data, "--model", tiny_model, "--out", tmp_path / "m", "--recipe", "nix"): "'nix'",
        ("train", data, "--model", tiny_model, "--out", tmp_path / "m", "--epochs", 0): "epochs is 0",
        ("train", data, "--model", tiny_model, "--out", tmp_path / "m", "--seed", -1): "seed -1",
        ("train", data, "--model", tiny_model, "--out", tmp_path / "m", "--max-minutes", -1): "max-minutes",
        ("train", data, "--model", tiny_model, "--out", tmp_path / "m", "--attribute", "colour"): "'colour'",
        ("train", data, "--model", tiny_model, "--out", tmp_path / "m", "--precision", "fp8"): "fp8",
        ("train", data, "--model", tiny_model): "--out",
        ("train", data, "--epoch", 3, "--out", tmp_path / "m"): "--epoch",
        ("train", data, "--epochs", "many", "--out", tmp_path / "m"): "--epochs",
        ("trane", data): "trane",
        ("evaluate", trained / "bi"): "argument",
        ("datasets", "--jason"): "--jason",
        ("fetch", "abt-bye"): "abt-buy",
        ("results", "--only", "nothing"): "nothing",
    }.items():
        assert part in refused(prodsim, tmp_path, *args), args


def test_unreadable_script_is_refused_and_can_be_allowed(prodsim, tiny_model, tmp_path):
    chinese = {"left_title": "红色真丝连衣裙夏季新款", "right_title": "红色真丝连衣裙女士中长款"}
    pairs = PAIRS.map(lambda row: chinese).remove_columns(["left_price", "right_price", "left_id", "right_id"])
    save_pairs(DatasetDict({k: v.select(range(24)) for k, v in pairs.items()}), tmp_path / "data")
    train = ("train", tmp_path / "data", "--model", tiny_model, "--epochs", 1, "--out", tmp_path / "m")
    assert "bert-base-chinese" in refused(prodsim, tmp_path, *train)
    assert prodsim(*train, "--allow-unknown")[0] == 0


def test_no_network_and_wrong_hashes(prodsim, tmp_path, monkeypatch):
    import pooch
    import requests

    monkeypatch.setenv("PRODSIM_DATA", str(tmp_path / "cache"))

    def unreachable(self, url, output_file, pooch, check_only=False):
        raise requests.ConnectionError("no route to host")

    def junk(self, url, output_file, pooch, check_only=False):
        Path(output_file).write_bytes(b"not what was promised")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", unreachable)
    for command in (("fetch", "abt-buy"), ("evaluate", "model", "abt-buy")):
        code, out, err = prodsim(*command)
        assert (code, out, err.count("\n")) == (2, "", 1) and not listing(tmp_path)
        assert "https://" in err and str(tmp_path / "cache" / "abt-buy") in err, "says the URL and the folder"
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", junk)
    code, out, err = prodsim("fetch", "abt-buy")
    assert (code, out, err.count("\n")) == (2, "", 1) and "sha256" in err and not listing(tmp_path)
    (tmp_path / "cache" / "abt-buy").mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache" / "abt-buy" / "test.txt").write_text("mine")
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", unreachable)
    for path in ("train.txt", "valid.txt", "test.txt"):
        (tmp_path / "cache" / "abt-buy" / path).write_text("mine")
    assert "left as it is" in refused(prodsim, tmp_path, "fetch", "abt-buy")


@pytest.mark.data
def test_look_at_a_registered_test_split_is_noted(prodsim, trained, tiny_model, own_ledger):
    assert (
        prodsim("evaluate", tiny_model, "wdc-computers:small", "--split", "valid", "--json", "--resamples", 1)[0] == 0
    )
    assert not own_ledger.exists()
    assert prodsim("evaluate", trained / "bi", "wdc-computers:small")[0] == 2, "it reads another attribute"
    assert not own_ledger.exists(), "nothing was looked at"
    assert prodsim("evaluate", tiny_model, "wdc-computers:small", "--json", "--resamples", 1)[0] == 0
    (line,) = map(json.loads, own_ledger.read_text().splitlines())
    assert line["data"] == "wdc-computers:small" and line["what"] == tiny_model and line["when"] and "commit" in line


# --- the installed command


def test_installed_command(trained, tmp_path):
    def run(*args, **env):
        done = subprocess.run(
            [PRODSIM, *map(str, args)], capture_output=True, text=True, timeout=120, env=os.environ | env, cwd=tmp_path
        )
        return done.returncode, done.stdout, done.stderr

    assert run("--version") == (0, f"{__version__}\n", "")
    code, out, err = run("train", "abt-bye", "--out", "m")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "abt-buy" in err
    code, out, _ = run("evaluate", trained / "bi", trained / "data", "--json", "--resamples", 10, PRODSIM_PROGRESS="1")
    assert code == 0 and plain_json(out)["n"] == 56, "progress goes to stderr"
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_heavy():
    heavy = {"torch", "transformers", "datasets", "sklearn", "scipy", "matplotlib", "pandas"}
    code = "import sys; from prodsim.cli import main; main(['--help']); main(['train', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    *shown, modules = done.stdout.splitlines()
    assert not heavy & set(modules.split())
    for word in ("datasets", "fetch", "train", "evaluate", "score", "embed", "--resume", "--max-minutes", "--kind"):
        assert any(word in line for line in shown), word


def test_every_command_stands_in_one_room_and_under_its_name(prodsim):
    named = {title: [c.name for c in (*r.registered_commands, *r.registered_groups)] for title, r in ROOMS.items()}
    every = sum(named.values(), [])
    assert len(every) == len(set(every)) and len(every) > 30
    code, out, _ = prodsim("--help")
    sections = re.split(r"^(\S.*):$", out[out.index("Options:") :], flags=re.MULTILINE)[1:]
    shown = dict(
        zip(sections[::2], (re.findall(r"^  (\S+)", text, re.MULTILINE) for text in sections[1::2]), strict=True)
    )
    assert code == 0 and shown.pop("Options") and shown == named


def test_rooms_import_only_what_lies_below():
    "base ← each room ← the front door; a room that needs another's helper moves it to base."
    imported = {}
    for path in Path(cli.__file__).parent.glob("*.py"):
        nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
        near = [alias.name if n.module is None else n.module for n in nodes if n.level == 1 for alias in n.names]
        near += [n.module.removeprefix("prodsim.cli.") for n in nodes if (n.module or "").startswith("prodsim.cli")]
        imported[path.stem] = set(near)
    assert imported.pop("__init__") == {"base", *imported}
    assert not imported.pop("base")
    assert set(map(frozenset, imported.values())) == {frozenset({"base"})} and len(imported) == len(ROOMS)


def test_no_arguments_show_help(prodsim):
    code, out, err = prodsim()
    assert "train" in out + err and "Traceback" not in err


def test_a_missing_system_library_is_named(monkeypatch, capsys):
    "A bare Debian has no libgomp, which lightgbm loads: the loader's own error, here of a library that never is."
    monkeypatch.setattr("prodsim.cli.app", lambda **_: ctypes.CDLL("libprodsim-nosuch.so.1"))
    assert main(["datasets"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("prodsim: libprodsim-nosuch.so.1: cannot open") and "install that system library" in line
