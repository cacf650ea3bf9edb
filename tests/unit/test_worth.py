"""Worth of dimensions: every stored number follows from stored probabilities, and a changed one is found."""

import json

import numpy as np
import pandas as pd
import pytest
from little_shop import little_pairs

from prodsim.comparisons import train_comparisons
from prodsim.core import ProdsimError
from prodsim.data import save_pairs
from prodsim.similarity import worth
from prodsim.similarity.worth import stored_probabilities, stored_worth, worth_differences, worth_metrics, worth_scores

PAIRS = little_pairs()


def test_what_only_one_dimension_knows_is_missed():
    rng = np.random.default_rng(0)
    labels = {s: rng.integers(0, 2, 300) for s in ("train", "valid", "test")}
    tables = {s: pd.DataFrame({"tells": 0.2 + 0.5 * y, "noise": rng.random(300)}) for s, y in labels.items()}
    for table in tables.values():
        table["tells"] = np.clip(table["tells"] + rng.normal(0, 0.15, 300), 0, 1)
        table["again"] = np.clip(table["tells"] + rng.normal(0, 0.01, 300), 0, 1)
        table.attrs["missing"] = {}
    scores, facts = worth_scores(tables, labels, None)
    metrics = worth_metrics(scores, labels["test"], facts, 100)
    assert facts["best"] in ("tells", "again")
    alone = metrics["only tells"]["average_precision"]
    assert alone > metrics["only noise"]["average_precision"] + 0.2
    assert abs(metrics["without tells"]["fusion_gain"]["difference"]) < 0.03  # its twin says it, too
    assert set(scores) == {"fusion", *(f"{w} {n}" for w in ("only", "without") for n in tables["train"])}


def test_stored_and_recomputed(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODSIM_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PRODSIM_LEDGER", str(tmp_path / "ledger.jsonl"))
    monkeypatch.setattr(worth, "pretrained", lambda names: None)
    save_pairs(PAIRS, tmp_path / "pairs")
    result = worth.store_worth(str(tmp_path / "pairs"), "test")[0]
    assert not (tmp_path / "ledger.jsonl").exists()  # a folder of your own is no registered set
    (again,) = stored_worth()
    assert again == json.loads(json.dumps(result, default=float)) and worth_differences(again) == []
    assert len(stored_probabilities(again)) == 40
    again["metrics"]["fusion"]["log_loss"] += 0.001
    assert len(worth_differences(again)) == 1
    (tmp_path / "results" / "similarity" / again["scores_file"]).unlink()
    with pytest.raises(ProdsimError, match="missing or unreadable; run: prodsim dimensions"):
        worth_differences(again)
    with pytest.raises(ProdsimError, match="has no split 'later'"):
        worth.store_worth(str(tmp_path / "pairs"), "later")


def test_a_trained_model_is_weighed_beside_the_fusion_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODSIM_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(worth, "pretrained", lambda names: None)
    save_pairs(PAIRS, tmp_path / "pairs")
    train_comparisons(str(tmp_path / "pairs"), tmp_path / "judge", rounds=20, vocabulary="known")
    results = worth.store_worth(str(tmp_path / "pairs"), "test", (0, 1), interaction=tmp_path / "judge")
    assert [r["name"].rsplit(".trained.")[1] for r in results] == ["test.seed0", "test.seed1"]
    assert results[0]["against"] == ["only interaction", "published"] and "interaction" in results[0]["known"]
    for stored in stored_worth():
        assert worth_differences(stored) == []
        gains = {s for s, row in stored["metrics"].items() if "fusion_gain" in row}
        assert {"published", "only interaction", "without interaction"} <= gains
        table = stored_probabilities(stored)
        assert np.allclose(table["published"], table["without interaction"], atol=1e-5)  # nothing else was taught
        assert stored["trained"]["interaction"]["kind"] == "comparisons"
        assert stored["command"].endswith(f"--interaction {tmp_path / 'judge'}")


def test_committed_results_follow_from_their_scores():
    results = stored_worth()
    assert results, "prodsim dimensions DATA --split test writes them"
    for result in results:
        table = stored_probabilities(result)
        labels, fusion = table["label"].to_numpy(), table[["fusion"]]
        again = worth_metrics(fusion, labels, result)["fusion"]
        assert all(abs(again[k] - result["metrics"]["fusion"][k]) < 1e-9 for k in again)


@pytest.mark.slow
def test_every_committed_number_follows():
    assert not [line for result in stored_worth() for line in worth_differences(result)]
