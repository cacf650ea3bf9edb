"""Leakage, rules that read nothing, and splits that differ."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from prodsim.data import repeated_pairs, seen_status
from prodsim.quality.audit import audit_data
from prodsim.quality.leakage import difference_findings, leakage_counts, one_to_one_scores, split_difference
from prodsim.quality.reading import open_for_audit, record_table
from prodsim.quality.values import column_kinds
from prodsim.shop import simulate


@pytest.fixture(scope="module")
def little():
    "Clean pairs of a small shop."
    return simulate(products=300, seed=3, difficulty="easy", sizes=(400, 100, 150)).pairs


def names(findings):
    return {f["name"]: f for f in findings}


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
    told = names(found["findings"])["shortcut:id"]
    assert told["level"] == "error" and len(told["examples"]) == 3
    assert {example["label"] for example in told["examples"]} == {1}  # matches that the ids gave away


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


def test_a_test_split_of_later_days_drifts(little):
    "Dates are compared as days, and told as days."
    tables = open_for_audit(little)[1]
    for k, table in enumerate(tables.values()):
        for side in ("left", "right"):
            table[f"{side}_listed"] = [f"2024年{1 + k}月{1 + i % 28}日" for i in range(len(table))]
    kinds = column_kinds(record_table("pairs", tables))
    found = {f["name"]: f for f in difference_findings(tables, kinds)[0]}
    late = found["drift:listed:valid:test"]
    assert late["level"] == "warning" and "valid 2024-02-13, test 2024-03-13" in late["examples"][0]["text"]


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
