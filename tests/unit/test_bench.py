"""Speed side by side: turns, slopes, ratios and shares of the floor on numbers worked by hand; what is stored."""

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import DatasetDict

from prodsim import bench
from prodsim.bench import (
    USUAL,
    Peer,
    System,
    compare_quality,
    compare_speed,
    embedding_systems,
    scoring_systems,
    take_turns,
    time_to_quality,
    usual_curve,
    vector_agreement,
)
from prodsim.core import RESULTS, ProdsimError
from prodsim.data import load_pairs

FLOORS = {"score": {"operations": 10.0, "fp32": 100.0, "bf16": 400.0}}


def test_systems_take_turns_and_the_shorter_run_is_taken_off(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(bench.time, "process_time", lambda: 2 * clock[0])

    def job(name, start, each):
        def run(n):
            calls.append((name, n))
            clock[0] += start + each * n

        return System("train", name, run, "fp32")

    rows = take_turns([job("slow", 100, 3), job("quick", 7, 1)], many=10, few=4, repeats=2)
    assert calls == [("slow", 4), ("slow", 10), ("quick", 4), ("quick", 10)] * 2
    assert [row["seconds"] for row in rows] == [[18, 18], [6, 6]], "what comes once is gone"
    assert rows[0]["cpu_seconds"] == [36, 36] and rows[0]["items"] == 6


def test_work_of_another_process_is_counted_by_its_own_clock():
    spent, outputs = [0.0], {}

    def run(n):
        spent[0] += n
        return -n

    (row,) = take_turns([System("embed", "far", run, "fp32", lambda: spent[0])], 5, repeats=2, outputs=outputs)
    assert row["cpu_seconds"] == [5, 5] and outputs == {"far": -5}


def test_agreement_of_vectors_is_that_of_a_plain_count():
    random = np.random.default_rng(0)
    exact = random.normal(size=(40, 6))
    other = exact + random.normal(size=exact.shape) / 2
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (exact, other)]
    others = [sorted(set(range(40)) - {i}) for i in range(40)]
    near = [[sorted(o, key=lambda j, i=i, u=u: -(u[i] @ u[j]))[:10] for i, o in enumerate(others)] for u in unit]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)])
    found = vector_agreement(other, exact)
    assert found["recall"] == pytest.approx(recall) and 0.3 < recall < 0.95
    assert found["cosine"] == pytest.approx((unit[0] * unit[1]).sum(1).min())
    assert vector_agreement(3 * exact, exact) == {"recall": 1, "cosine": pytest.approx(1)}
    assert vector_agreement(exact[:3], exact[:3], 10)["recall"] == 1, "fewer texts than neighbours"


def interpreter(folder, body: str):
    "A program that stands where the Python of another environment is expected; it is called -c CODE MODEL FOLDER …"
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport os, sys\nimport numpy as np\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_peer_answers_from_another_process(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "ours")
    body = "assert 'PYTHONPATH' not in os.environ and 'def serve_encoder' in sys.argv[2]\nprint('ready', flush=True)\n"
    body += "for line in sys.stdin:\n    np.save(sys.argv[4] + '/vectors.npy', np.ones((int(line), 2)))\n"
    body += "    print(0.25, flush=True)"
    peer = Peer(interpreter(tmp_path, body), ["a", "b", "c"], tiny_model, "int8")
    assert peer(2).shape == (2, 2) and peer(3).shape == (3, 2)
    assert peer.clock() == 0.5 and peer.name == "SentenceTransformer.encode, ONNX int8"
    peer.close()
    assert peer.process.returncode == 0


def test_an_environment_that_cannot_is_named(tmp_path, tiny_model):
    with pytest.raises(ProdsimError, match="no such Python"):
        Peer(tmp_path / "nothing", ["a"], tiny_model)
    with pytest.raises(ProdsimError, match="it said: ModuleNotFoundError: no optimum"):
        Peer(interpreter(tmp_path, "raise ModuleNotFoundError('no optimum')"), ["a"], tiny_model)


def test_all_ways_to_embed_agree(tiny_model):
    texts = ["acme lamp", "chair", "red lamp x100 of oak and steel", "12 inch pan"]
    systems, work = embedding_systems(texts, tiny_model)
    outputs = {s.name: np.asarray(s.run(4), dtype=float) for s in systems}
    assert {"SentenceTransformer.encode", "SentenceTransformer.encode, torch int8", "prodsim"} <= set(outputs)
    assert work > 0 and systems[0].precision == "fp32"
    for vectors in outputs.values():
        assert vector_agreement(vectors, outputs["SentenceTransformer.encode"])["cosine"] > 0.98
    apart = outputs["SentenceTransformer.encode, torch int8"] - outputs["SentenceTransformer.encode"]
    assert np.abs(apart).max() > 1e-4, "the layers were not quantised"


@pytest.fixture(scope="module")
def few_pairs():
    pairs = load_pairs("shop:easy-30")
    return DatasetDict({split: pairs[split].select(range(min(40, len(pairs[split])))) for split in ("train", "valid")})


def test_a_usual_way_goes_on_where_it_was_stopped(tiny_model, few_pairs, tmp_path, monkeypatch):
    options = {"epochs": 2, "patience": 5, "model": tiny_model}
    whole = usual_curve(USUAL[0], few_pairs, tmp_path / "whole", **options)
    epoch, left = bench.article_epoch, [1]

    def stopped(*arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        epoch(*arguments)

    monkeypatch.setattr(bench, "article_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        usual_curve(USUAL[0], few_pairs, tmp_path / "halved", **options)
    left[0] = 1
    halved = usual_curve(USUAL[0], few_pairs, tmp_path / "halved", **options)
    assert [row["epoch"] for row in halved] == [1, 2] and halved[0]["cpu_seconds"] < halved[1]["cpu_seconds"]
    assert [row["f1"] for row in halved] == [row["f1"] for row in whole]
    assert usual_curve(USUAL[0], few_pairs, tmp_path / "halved", **options) == halved, "over: nothing is trained again"


def test_the_librarys_trainer_goes_on_where_it_was_stopped(tiny_model, few_pairs, tmp_path, monkeypatch):
    options = {"epochs": 2, "patience": 5, "model": tiny_model}
    noted, left = bench.Curve.note, [1]

    def stopped(self, *arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        noted(self, *arguments)

    monkeypatch.setattr(bench.Curve, "note", stopped)
    with pytest.raises(KeyboardInterrupt):
        usual_curve(USUAL[1], few_pairs, tmp_path, **options)
    left[0] = 1  # the first epoch is not trained again
    rows = usual_curve(USUAL[1], few_pairs, tmp_path, **options)
    assert [row["epoch"] for row in rows] == [1, 2] and rows[0]["cpu_seconds"] < rows[1]["cpu_seconds"]
    left[0] = 0
    assert usual_curve(USUAL[1], few_pairs, tmp_path, **options) == rows


def test_patience_ends_a_curve(tmp_path):
    curve = bench.Curve(tmp_path / "curve.json")
    labels = np.array([1, 0, 0, 1])
    for scores in ([0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0]):
        assert not curve.over(9, 2)
        curve.note(labels, lambda scores=scores: np.array(scores, dtype=float))
    assert curve.over(9, 2) and not curve.over(9, 3) and curve.over(4, 3)
    assert [row["f1"] == 1 for row in bench.Curve(tmp_path / "curve.json", 3).rows] == [False, True, False]


def test_time_to_quality_measures_a_recipe_once_and_in_one_go(tiny_model, tmp_path, monkeypatch):
    usual = [{"epoch": 1, "seconds": 1e4, "cpu_seconds": 1e4, "f1": 0.8}]
    monkeypatch.setattr(bench, "usual_curve", lambda *arguments: usual)
    runs = []

    def recipe(data, out, name, **options):
        assert not out.exists() and not (tmp_path / "fast.partial").exists(), "half of a run was taken over"
        runs.append(name)
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass
        return SimpleNamespace(run={"valid": {"f1": 0.9}})

    monkeypatch.setattr("prodsim.recipes.train_recipe", recipe)
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast.partial").mkdir()
    options = {"data": "shop:easy-20", "work": tmp_path, "recipes": ["fast"], "model": tiny_model}
    measured = time_to_quality(**options)
    own = compare_quality(measured).set_index("system").loc["prodsim fast"]
    assert own["f1"] == 0.9 and 0.01 < own["seconds"] < 5 and own[f"times {USUAL[0]}"] == 1e4 / own["seconds"]
    assert time_to_quality(**options)["curves"] == measured["curves"] and runs == ["fast"]


def test_ratios_are_formed_within_a_round():
    rows = [
        {"job": "score", "system": "theirs", "precision": "fp32", "items": 5, "cpu_seconds": [2, 20, 4]},
        {"job": "score", "system": "ours", "precision": "bf16", "items": 5, "cpu_seconds": [1, 5, 2]},
    ]
    theirs, ours = compare_speed({"rows": rows, "floors": FLOORS}).to_dict("records")
    assert theirs["ratio"] == theirs["least"] == theirs["most"] == 1
    assert (ours["ratio"], ours["least"], ours["most"]) == (2, 2, 4), "a bad round of both changes nothing"
    assert ours["per_second"] == 2.5 and theirs["per_second"] == 1.25
    assert theirs["of_floor"] == pytest.approx(5 * 10 / 100 / 4) and ours["of_floor"] == pytest.approx(5 * 10 / 400 / 2)


def test_without_bf16_units_there_is_no_bf16_row(monkeypatch, tiny_model):
    monkeypatch.setattr(bench, "has_bf16", lambda device=None: False)
    systems, work = scoring_systems(load_pairs("shop:easy-20")["test"], tiny_model)
    assert [s.precision for s in systems] == ["fp32", "fp32"] and work > 0


def test_unknown_jobs_and_one_sided_data_are_refused(tiny_model):
    with pytest.raises(ProdsimError, match="job 'fly': choose of score, embed, train"):
        bench.bench(("fly",))
    pairs = load_pairs("shop:easy-20")["train"]
    with pytest.raises(ProdsimError, match="one label only"):
        bench.training_systems(pairs.filter(lambda row: row["label"] == 0), tiny_model)


@pytest.mark.parametrize("path", sorted((RESULTS / "speed").glob("*.json")), ids=lambda path: path.stem)
def test_stored_measurements_are_whole(path):
    measured = json.loads(path.read_text(encoding="utf-8"))
    assert measured["revision"]["clean"] is True and measured["command"].startswith("prodsim bench ")
    table = compare_speed(measured)
    assert set(table["job"]) <= set(bench.JOBS) and "prodsim" in set(table["system"])
    assert not (table["of_floor"] >= 1).any(), "faster than its own matrix products: something was not computed"
    assert all(len(row["cpu_seconds"]) == measured["repeats"] for row in measured["rows"])
