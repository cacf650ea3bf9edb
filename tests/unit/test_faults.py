"""Faults are where the truth says, the test split stays clean, and stored numbers follow from stored scores."""

import gzip

import numpy as np
import pandas as pd
import pytest

from prodsim.core import ProdsimError
from prodsim.data import data_hash
from prodsim.quality.duplicates import comparison_words
from prodsim.quality.faults import (
    FAULTS,
    break_encoding,
    draw_numbers,
    draws_table,
    fault_differences,
    fault_table,
    found_table,
    inject,
    results_of,
    run_laboratory,
    run_worth,
    store_draws,
    store_laboratory,
    turn_again,
    type_again,
    worth_table,
)
from prodsim.quality.repair import clean_text
from prodsim.shop import simulate

PAIRS = simulate(100, seed=5, sizes=(200, 60, 60)).pairs


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_where_the_truth_says_and_nowhere_else(name):
    faulty, truth = inject(PAIRS, {name: 0.2}, seed=3)
    assert len(truth) and set(truth["fault"]) == {name}
    assert data_hash(faulty)["test"] == data_hash(PAIRS)["test"]
    if name == "imbalance":
        for split in ("train", "valid"):
            gone = set(truth.loc[truth["split"] == split, "row"])
            kept = [row for i, row in enumerate(PAIRS[split]) if i not in gone]
            assert kept == list(faulty[split])
        return
    cells = {(s, r, c): b for _, s, r, c, b, _ in truth.itertuples(index=False)}
    for split in ("train", "valid"):
        for row, (old, new) in enumerate(zip(PAIRS[split], faulty[split], strict=False)):
            changed = {c for c in old if old[c] != new[c]}
            assert changed == {c for s, r, c in cells if (s, r) == (split, row)}
            assert all(cells[split, row, c] == old[c] for c in changed)
    added = truth[truth["source"].notna()]
    assert len(faulty["train"]) == len(PAIRS["train"]) + len(added)
    for row, source in added[["row", "source"]].itertuples(index=False):
        split, at = source.split()
        same = faulty["train"][row]["left_title"] == PAIRS[split][int(at)]["left_title"]
        assert same != name.endswith("retyped")
        added, before = faulty["train"][row], PAIRS[split][int(at)]
        assert [c for c in added if added[c] is None] == [c for c in before if before[c] is None]
        assert faulty["train"][row]["label"] == PAIRS[split][int(at)]["label"]


def test_the_same_seed_gives_the_same_faults_and_another_seed_others():
    one, again, other = (inject(PAIRS, {"noise": 0.2}, seed)[1] for seed in (1, 1, 2))
    assert one.equals(again) and not one.equals(other)


def test_all_at_once_and_wrong_requests():
    faulty, truth = inject(PAIRS, dict.fromkeys(FAULTS, 0.1))
    assert set(truth["fault"]) == set(FAULTS) and data_hash(faulty)["test"] == data_hash(PAIRS)["test"]
    for faults in ({"typo": 0.1}, {"noise": 1.5}):
        with pytest.raises(ProdsimError):
            inject(PAIRS, faults)


@pytest.mark.parametrize("text", ["acme lamp black", 'Café – 5"', "海尔冰箱 BCD215 白色", "single"])
def test_text_faults_change_the_text_and_can_be_undone(text):
    rng = np.random.default_rng(0)
    broken = break_encoding(text, rng)
    assert broken != text and clean_text(broken) != broken
    assert type_again(text, rng) != text
    assert sorted("".join(comparison_words(type_again(text, rng)))) == sorted("".join(comparison_words(text)))


def test_a_stored_run_is_recomputed_and_a_changed_score_noticed(tmp_path):
    conditions = {"noise 20%": {"noise": 0.2}, "leaked copies": {"leaked": 0.3}, "HTML": {"html": 0.5}}
    runs = {seed: (PAIRS, run_laboratory(PAIRS, conditions=conditions, seed=seed)) for seed in (0, 1)}
    store_laboratory(tmp_path, "toy", runs, "a test")
    (result,) = results_of(tmp_path)
    assert fault_differences(result) == []
    found = found_table([result]).set_index("condition")
    assert found.loc["leaked copies", "recall"] == 1 and found.loc["HTML", "recall"] > 0.95
    table = fault_table([result], 50)
    assert (table["lost_low"] <= table["lost"] + 1e-9).all() and set(table["condition"]) == set(conditions)
    for kind in ("scores", "flags"):
        path = tmp_path / result["seeds"]["0"][kind]
        text = gzip.decompress(path.read_bytes()).decode()
        lines = text.splitlines()
        turned = lines[1].replace("0", "1") if kind == "flags" else lines[0]
        body = [turned, *lines[2:]] if kind == "flags" else [line.rsplit(",", 1)[0] + ",0.5" for line in lines[1:]]
        path.write_bytes(gzip.compress("\n".join([lines[0], *body]).encode()))
        assert fault_differences(result), kind
        path.write_bytes(gzip.compress(text.encode()))


def test_worth_measures_the_whole_test_split(tmp_path):
    store_laboratory(tmp_path, "toy", {0: (PAIRS, run_worth(PAIRS))}, "a test")
    (result,) = results_of(tmp_path)
    assert fault_differences(result) == []
    table = worth_table([result]).set_index("variant")
    repaired = table.drop(["published", "disjoint"])
    np.testing.assert_allclose(repaired["gain"], repaired["f1"] - table.loc["published", "f1"], atol=1e-9)
    assert (repaired["gain_low"] <= repaired["gain"]).all() and (repaired["gain"] <= repaired["gain_high"]).all()
    assert table.loc[["published", "disjoint"], "gain"].isna().all()
    assert (
        table.loc["published", "pairs"] == 60
        and table.loc["disjoint", "unseen_pairs"] == table.loc["disjoint", "pairs"]
    )


def test_draws_are_counted_as_by_hand_and_computed_again_from_what_is_stored(tmp_path):
    table = pd.DataFrame(
        {"model": "trees", "draw": [1, 2], "injected": 5, "named": [4, 2], "hits": ["1110110", "1101011"]}
    )
    numbers = draw_numbers(table)
    assert numbers["draws"] == 2 and numbers["recall"] == pytest.approx((3 / 5 + 2 / 5) / 2)
    assert numbers["precision"] == pytest.approx((3 / 4 + 1) / 2)
    assert numbers["precision_at_wanted"] == pytest.approx((4 / 5 + 4 / 6) / 2)  # four of five are named by then
    assert numbers["recall_low"] <= numbers["recall"] <= numbers["recall_high"]
    table = turn_again(PAIRS, draws=(7, 8), embed=lambda texts: np.eye(8)[[len(text) % 8 for text in texts]])
    models = ["trees", "trees, two passes", "trees that learned from right labels", "linear, frozen embeddings"]
    assert table["model"].tolist() == models * 2 and set(table["injected"]) == {table["hits"][0].count("1")}
    assert table["hits"][0] != table["hits"][4] and len(set(map(len, table["hits"]))) == 1
    early = [table["hits"][i][: table["injected"][i]].count("1") for i in range(4)]
    assert min(early[0], early[2]) > 2 * early[3]  # lengths modulo eight tell nothing
    truth = inject(PAIRS, {"noise": 0.1}, 7)[1]
    assert len(truth) == table["injected"][0], "the laboratory's own noise"
    result = store_draws(tmp_path, "toy:a", PAIRS, table, "a test")
    assert fault_differences(result) == [] and draws_table([result])["model"].tolist() == models
    assert fault_table([result]).empty and worth_table([result]).empty
    table.assign(named=1).to_csv(tmp_path / result["seeds"]["all"]["draws"], index=False)
    assert fault_differences(result)


def test_every_stored_number_follows_from_its_scores():
    results = results_of()
    assert {"faults", "worth", "draws"} >= {r["kind"] for r in results} and results
    for result in results:
        assert fault_differences(result) == [] and result["revision"]["clean"], result["name"]
