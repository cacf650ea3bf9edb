"""Competing pairs: what labels say of partners, and that settled matches are the best set that may stand."""

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prodsim.collective import WAYS, lonely_sides, partner_counts, settle
from prodsim.core import ProdsimError
from prodsim.data import load_pairs
from prodsim.evaluation import pair_metrics
from prodsim.evidence import partner_table, scored_pairs, stored, summary, with_settled

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 20)), max_size=7)


@given(PAIRS)
@settings(max_examples=150, deadline=None)
def test_no_set_of_pairs_that_may_stand_is_worth_more(rows):
    left, right, s = ([r[i] for r in rows] for i in range(3))
    scores, cut = np.array(s, dtype=np.float32) / 20, 0.5
    out = settle([f"a{i}" for i in left], [f"b{i}" for i in right], scores, cut)
    chosen = {(a, b): x for a, b, x in zip(left, right, scores, strict=True) if x >= cut}
    chosen = {two: max(x for *t, x in zip(left, right, scores, strict=True) if tuple(t) == two) for two in chosen}

    def gain(some):
        apart = len({a for a, _ in some}) == len({b for _, b in some}) == len(some)
        return sum(float(chosen[two]) - cut for two in some) if apart else -1

    most = max(map(gain, chain.from_iterable(combinations(chosen, n) for n in range(len(chosen) + 1))))
    kept = {(a, b) for a, b, x in zip(left, right, out, strict=True) if x >= cut}
    assert gain(kept) == pytest.approx(most, abs=1e-6)
    assert kept <= set(chosen)
    same = (out == scores) | (scores >= cut) & (out < cut)
    assert same.all(), "only matches that lose change"
    assert all(out[i] == scores[i] for i in range(len(rows)) if scores[i] < cut)


@given(PAIRS, st.sampled_from(WAYS), st.sampled_from([(), ("left",), ("right",), ("left", "right")]))
@settings(max_examples=100, deadline=None)
def test_one_match_a_record_on_the_sides_asked_for(rows, how, sides):
    ends = {"left": [f"a{r[0]}" for r in rows], "right": [f"b{r[1]}" for r in rows]}
    scores = np.array([r[2] for r in rows], dtype=np.float32) / 20
    out = settle(ends["left"], ends["right"], scores, 0.5, sides, how)
    held = {two for *two, x in zip(ends["left"], ends["right"], out, strict=True) if x >= 0.5 for two in [tuple(two)]}
    for side in sides:
        records = [two[side == "right"] for two in held]
        assert len(records) == len(set(records))
    if not sides:
        np.testing.assert_array_equal(out, scores)
    best = {r: max(x for e, x in zip(ends[s], scores, strict=True) if e == r) for s in sides for r in ends[s]}
    for a, b, before, after in zip(ends["left"], ends["right"], scores, out, strict=True):
        alone = all(before == best[r] and list(scores[np.array(ends[s]) == r]).count(before) == 1
                    for s, r in (("left", a), ("right", b)) if s in sides)  # fmt: skip
        if how == "best" and alone:
            assert after == before, "nobody of its records scores as high"


def test_a_threshold_between_two_floats_is_respected():
    cut = float(np.float32(0.7)) + 1e-9  # above the nearest float32
    out = settle(["a", "a"], ["x", "y"], np.array([0.9, 0.8]), cut)
    assert (out >= cut).tolist() == [True, False] and out.dtype == np.float32
    assert (settle(["a", "a"], ["x", "y"], np.array([0.5, 0.5]), 0.5) >= 0.5).sum() == 1, (
        "pairs at the threshold compete"
    )
    assert (settle(["a", "b"], ["x", "y"], np.array([0.5, 0.5]), 0.5) >= 0.5).all(), "alone they are matches"
    assert len(settle([], [], np.array([]), 0.5)) == 0


def test_what_labels_say_of_partners():
    left, right = ["a", "a", "a", "b", "b", "c"], ["x", "y", "z", "x", "y", "z"]
    counts = partner_counts(left, right, [1, 1, 0, 0, 0, 1])
    assert counts["left"] == {"one": 0.5, "pairs": 2.0} and counts["right"] == {"one": 1.0, "pairs": 2.0}
    assert lonely_sides(counts) == (), "two pairs a record are too few to tell"
    more = partner_counts(left * 2 + ["a"], right * 2 + ["w"], [1, 1, 0, 0, 0, 1] * 2 + [0])
    assert more["left"]["one"] == 0.5, "a row that comes twice is one partner"
    assert lonely_sides(more) == ("right",)
    nothing = partner_counts(["a"], ["x"], [0])
    assert nothing["left"]["one"] is None and lonely_sides(nothing) == ()
    assert lonely_sides(partner_counts([], [], [])) == ()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"how": "luck"}, "how 'luck': choose one of best, assignment"),
        ({"sides": ("top",)}, "side 'top': choose left, right"),
        ({"scores": np.array([0.5])}, "2 left and 2 right records, but 1 scores"),
        ({"scores": np.array([0.5, np.nan])}, "score 1 is no number"),
    ],
)
def test_a_mistake_gets_one_line(change, message):
    given = {"left": ["a", "b"], "right": ["x", "y"], "scores": np.array([0.5, 0.6]), "threshold": 0.5}
    with pytest.raises(ProdsimError, match=message):
        settle(**given | change)


def test_settled_rows_stand_beside_those_that_are_not():
    results = stored()
    both = with_settled(results)
    more = both[len(results) :]
    assert both[: len(results)] == results and more
    sides = {row["data"]: row["sides"] for row in partner_table()}
    assert {r["data"] for r in more} == {r["data"] for r in results if r["system"] == "fast" and sides[r["data"]]}
    one = more[0]
    table, cut = scored_pairs(one), one["metrics"]["threshold"]
    again = settle(table["left_id"], table["right_id"], table["score"], cut, sides[one["data"]])
    assert one["metrics"]["f1"] == pair_metrics(table["label"].to_numpy(), again, cut)["f1"]
    assert {"fast", "fast, settled"} <= set(summary(both[-len(more) :] + results)["system"])


def test_stored_partners_are_those_of_the_data():
    for row in partner_table():
        try:
            pairs = load_pairs(row["data"])
        except ProdsimError as missing:
            pytest.skip(f"{row['data']} is not here: {missing}")
        known = [pairs[s] for s in ("train", "valid")]
        ends = [[i for p in known for i in p[f"{side}_id"]] for side in ("left", "right")]
        counts = partner_counts(*ends, [y for p in known for y in p["label"]])
        assert {s: row[s] for s in counts} == counts and tuple(row["sides"]) == lonely_sides(counts)
