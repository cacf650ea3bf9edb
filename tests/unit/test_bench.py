"""Speed side by side: turns, slopes, ratios and shares of the floor on numbers worked by hand; what is stored."""

import json

import pytest

from prodsim import bench
from prodsim.bench import System, compare_speed, scoring_systems, take_turns
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
    assert (table["of_floor"] < 1).all(), "faster than its own matrix products: something was not computed"
    assert all(len(row["cpu_seconds"]) == measured["repeats"] for row in measured["rows"])
