"""Metrics against scikit-learn, against brute force, and against cases worked by hand."""

import itertools
import json
import math
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats
from sklearn import metrics as sk

from prodsim import evaluation as ev
from prodsim.core import ProdsimError

settings.register_profile("metrics", deadline=None)
settings.load_profile("metrics")

real = st.floats(-1e6, 1e6, allow_nan=False)
tied = st.integers(-2, 2).map(float)  # few values: most scores tie, often all of them


@st.composite
def pairs(draw, min_size=1, scores=tied | real):
    n = draw(st.integers(min_size, 30))
    of = draw(st.sampled_from([tied, scores]))
    return (
        np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))),
        np.array(draw(st.lists(of, min_size=n, max_size=n))),
    )


@st.composite
def query(draw, max_size=6):
    n = draw(st.integers(1, max_size))
    grades = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    return np.array(grades), np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), dtype=float)


def noisy(n=400, shift=1.5, seed=0, share=0.2):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < share).astype(int)
    return labels, rng.normal(size=n) + shift * labels


# Thresholds


@given(pairs())
def test_best_threshold_beats_every_cut(case):
    labels, scores = case
    assume(labels.any())
    chosen = sk.f1_score(labels, scores >= ev.best_threshold(labels, scores), zero_division=0)
    cuts = [*np.unique(scores), scores.max() + 1]
    best = max(sk.f1_score(labels, scores >= t, zero_division=0) for t in cuts)
    assert chosen == pytest.approx(best, abs=1e-12)


@given(pairs())
def test_best_threshold_takes_the_highest_of_equals(case):
    labels, scores = case
    assume(labels.any())
    threshold = ev.best_threshold(labels, scores)
    chosen = sk.f1_score(labels, scores >= threshold, zero_division=0)
    for t in np.unique(scores):
        if (scores >= t).sum() < (scores >= threshold).sum():
            assert sk.f1_score(labels, scores >= t, zero_division=0) < chosen


def test_best_threshold_by_hand():
    # cuts after 0.9: P 1, R 1/2, F1 2/3; after 0.8: 1/2; after 0.4: P 2/3, R 1, F1 4/5 (best); after 0.1: 2/3
    assert ev.best_threshold([1, 0, 1, 0], [0.9, 0.8, 0.4, 0.1]) == pytest.approx(0.25)


@given(pairs(min_size=2), st.integers(0, 2**32 - 1))
def test_noise_flips_no_verdict(case, seed):
    labels, scores = case
    scores = np.round(scores, 3)
    assume(labels.any())
    noise = np.random.default_rng(seed).uniform(-1e-4, 1e-4, len(scores))
    table = ev.threshold_table(labels, scores)
    assert all(((scores + noise >= t) == (scores >= t)).all() for t in table.threshold)


@pytest.mark.parametrize("scores", [[0.5, np.nextafter(0.5, 1)], [-1.0, np.nextafter(-1.0, 0)], [0.0, 5e-324]])
def test_neighbouring_floats_are_still_cut_apart(scores):
    t = ev.best_threshold([0, 1], scores)
    assert scores[0] < t <= scores[1]


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e300, -1e-300])
def test_all_scores_equal(value):
    assert (np.full(4, value) >= ev.best_threshold([1, 0, 0, 1], [value] * 4)).all()
    assert not (np.full(4, value) >= ev.threshold_for_cost([1, 0, 0, 1], [value] * 4, 5, 1)).any()


@given(pairs(), st.floats(0.01, 1))
def test_threshold_for_precision(case, floor):
    labels, scores = case
    assume(labels.any())
    # the same comparison on exact integers, cut by cut
    cuts = [(int(labels[scores >= t].sum()), int((scores >= t).sum())) for t in np.unique(scores)]
    reachable = [hits for hits, called in cuts if hits / called >= floor]
    if not reachable:
        with pytest.raises(ProdsimError, match="no threshold reaches"):
            ev.threshold_for_precision(labels, scores, floor)
        return
    verdict = scores >= ev.threshold_for_precision(labels, scores, floor)
    assert labels[verdict].sum() / verdict.sum() >= floor
    assert labels[verdict].sum() == max(reachable)


@given(pairs(), st.integers(0, 9), st.integers(0, 9))
def test_threshold_for_cost(case, cost_fp, cost_fn):
    labels, scores = case
    assume(cost_fp + cost_fn > 0)

    def cost(t):
        verdict = scores >= t
        return cost_fp * (verdict & (labels == 0)).sum() + cost_fn * (~verdict & (labels == 1)).sum()

    assert cost(ev.threshold_for_cost(labels, scores, cost_fp, cost_fn)) == min(
        cost(t) for t in [*np.unique(scores), scores.max() + 1]
    )


@given(pairs(min_size=2))
def test_expected_threshold_is_best_under_its_own_curve(case):
    y, s = case
    assume(0 < y.sum() < len(y))
    cut, p = ev.expected_threshold(y, s), ev.fit_platt(y, s)(s)
    expected = lambda t: 2 * p[s >= t].sum() / ((s >= t).sum() + p.sum())  # noqa: E731
    assert expected(cut) >= max(expected(t) for t in s) - 1e-9
    assert (cut <= s).any() and (cut in s or not (s == cut).any())


def test_expected_threshold_is_where_the_curve_passes_half_of_the_f1():
    rng = np.random.default_rng(0)
    s = rng.normal(0, 3, 20_000)
    y = rng.random(len(s)) < special.expit(s - 2)
    p, cut = special.expit(s - 2), ev.expected_threshold(y, s)
    f1 = 2 * p[s >= cut].sum() / ((s >= cut).sum() + p.sum())
    assert special.expit(cut - 2) == pytest.approx(f1 / 2, abs=0.02)
    assert ev.expected_threshold(y, 5 * s + 7) == pytest.approx(5 * cut + 7, abs=1e-3)  # on any scale
    with pytest.raises(ProdsimError, match="calibration needs matches and non-matches"):
        ev.expected_threshold(np.ones(4), np.arange(4))


def test_threshold_table_counts():
    table = ev.threshold_table([1, 0, 1, 0], [3, 2, 2, 1])
    assert table.threshold.tolist() == [3.5, 2.5, 1.5, 0.5]
    assert table.matches.tolist() == [0, 1, 3, 4]
    assert table.true_matches.tolist() == [0, 1, 2, 2]


# Metrics of pairs


@given(pairs(), tied)
def test_pair_metrics_against_sklearn(case, threshold):
    labels, scores = case
    got = ev.pair_metrics(labels, scores, threshold)
    assert got["n"] == len(labels) and got["positives"] == labels.sum()
    verdict = scores >= threshold
    if not labels.any():
        assert all(got[m] is None for m in ("f1", "precision", "recall", "average_precision", "roc_auc"))
        return
    assert got["f1"] == pytest.approx(sk.f1_score(labels, verdict, zero_division=0))
    assert got["recall"] == pytest.approx(sk.recall_score(labels, verdict))
    if labels.all():
        assert got["precision"] is got["average_precision"] is got["roc_auc"] is None
        return
    assert got["average_precision"] == pytest.approx(sk.average_precision_score(labels, scores))
    assert got["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, scores))
    if verdict.any():
        assert got["precision"] == pytest.approx(sk.precision_score(labels, verdict))
    else:
        assert got["precision"] is None


def test_pair_metrics_by_hand():
    got = ev.pair_metrics([1, 0, 1, 0, 1], [0.9, 0.8, 0.7, 0.2, 0.1], 0.5)
    assert got == {
        "f1": pytest.approx(2 / 3),
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "average_precision": pytest.approx((1 + 2 / 3 + 3 / 5) / 3),
        "roc_auc": pytest.approx(3 / 6),  # 0.9 beats two, 0.7 one, 0.1 none, of 3 × 2 comparisons
        "threshold": 0.5,
        "n": 5,
        "positives": 3,
    }


def test_a_defined_zero_is_a_zero():
    got = ev.pair_metrics([1, 0], [0.1, 0.2], 0.15)
    assert (got["f1"], got["precision"], got["recall"]) == (0.0, 0.0, 0.0)


def test_no_pairs_means_no_metrics():
    got = ev.pair_metrics([], [], 0.5)
    assert got["n"] == got["positives"] == 0
    assert all(got[m] is None for m in ("f1", "precision", "recall", "average_precision", "roc_auc"))


def test_by_seen_splits_and_keeps_empty_parts():
    labels, scores = noisy(60)
    seen = np.array(["seen"] * 40 + ["half_seen"] * 20)
    got = ev.by_seen(labels, scores, 0.7, seen)
    assert list(got) == ["seen", "half_seen", "unseen"]
    assert got["seen"] == ev.pair_metrics(labels[:40], scores[:40], 0.7)
    assert got["half_seen"] == ev.pair_metrics(labels[40:], scores[40:], 0.7)
    assert got["unseen"]["n"] == 0 and got["unseen"]["f1"] is None


def test_report_is_json_and_complete():
    labels, scores = noisy()
    got = ev.report(labels, scores, 0.9, seen=["seen"] * 399 + ["unseen"], n_resamples=200)
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    assert {k: got[k] for k in ("f1", "n")} == {k: ev.pair_metrics(labels, scores, 0.9)[k] for k in ("f1", "n")}
    for metric in ("f1", "average_precision"):
        low, high = got[f"{metric}_interval"]
        assert low < got[metric] < high
    assert got["by_seen"]["seen"]["n"] == 399
    assert "by_seen" not in ev.report(labels, scores, 0.9, n_resamples=10)
    assert got == ev.report(labels, scores, 0.9, seen=["seen"] * 399 + ["unseen"], n_resamples=200)


def test_report_on_one_class_has_no_intervals():
    got = ev.report([0, 0, 0], [0.1, 0.2, 0.3], 0.2)
    assert got["f1_interval"] is None and got["average_precision_interval"] is None


# Intervals and tests


@given(pairs(min_size=4), st.integers(0, 100))
def test_weighted_metrics_equal_repeated_pairs(case, seed):
    labels, scores = case
    weights = np.random.default_rng(seed).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=3)
    for metric in ("f1", "precision", "recall", "average_precision", "roc_auc"):
        values = scores >= 0 if metric in ("f1", "precision", "recall") else scores
        got = ev._weighted(metric, labels == 1, values, weights.astype(float))
        for row, value in zip(weights, got, strict=True):
            y, s = np.repeat(labels, row), np.repeat(scores, row)
            expected = ev.pair_metrics(y, s, 0.0)[metric]
            if expected is not None:
                assert value == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["f1", "precision", "recall", "average_precision", "roc_auc"])
def test_bootstrap_agrees_with_a_plain_loop(metric):
    labels, scores = noisy(300)
    rng = np.random.default_rng(5)
    drawn = (rng.integers(0, 300, 300) for _ in range(1500))
    loop = [ev.pair_metrics(labels[i], scores[i], 0.8)[metric] for i in drawn]
    low, high = ev.bootstrap_interval(labels, scores, 0.8, metric, n_resamples=4000)
    slow_low, slow_high = np.quantile(loop, [0.025, 0.975])
    width = slow_high - slow_low
    assert abs(low - slow_low) < 0.12 * width and abs(high - slow_high) < 0.12 * width


def test_bootstrap_covers_the_truth():
    # truth of a shifted normal at threshold 1: recall = 1 - Φ(1 - 1.5)
    truth = 1 - stats.norm.cdf(-0.5)
    hits = 0
    for seed in range(200):
        labels, scores = noisy(600, seed=seed)
        low, high = ev.bootstrap_interval(labels, scores, 1.0, "recall", n_resamples=300, seed=seed)
        hits += low <= truth <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_bootstrap_is_seeded_and_chunks_do_not_matter(monkeypatch):
    labels, scores = noisy(200)
    first = ev.bootstrap_interval(labels, scores, metric="average_precision", n_resamples=100, seed=3)
    assert first == ev.bootstrap_interval(labels, scores, metric="average_precision", n_resamples=100, seed=3)
    assert first != ev.bootstrap_interval(labels, scores, metric="average_precision", n_resamples=100, seed=4)
    monkeypatch.setattr(ev, "_CELLS", 700)  # three resamples at a time
    assert first == ev.bootstrap_interval(labels, scores, metric="average_precision", n_resamples=100, seed=3)


def test_bootstrap_is_fast():
    labels, scores = noisy(1900, share=0.1)
    for metric, limit in (("f1", 0.5), ("average_precision", 6.0)):
        start = time.perf_counter()
        ev.bootstrap_interval(labels, scores, 1.0, metric, n_resamples=1000)
        assert time.perf_counter() - start < limit


def test_groups_of_copies_widen_the_interval_as_theory_says():
    # every pair stands there nine times: the data hold a ninth of the pairs, so the interval is three times as wide
    labels, scores = noisy(150)
    groups = np.repeat(np.arange(150), 9)
    y, s = np.repeat(labels, 9), np.repeat(scores, 9)
    single = np.subtract(*ev.bootstrap_interval(labels, scores, 0.8, n_resamples=4000)[::-1])
    plain = np.subtract(*ev.bootstrap_interval(y, s, 0.8, n_resamples=4000)[::-1])
    grouped = np.subtract(*ev.bootstrap_interval(y, s, 0.8, n_resamples=4000, groups=groups)[::-1])
    assert grouped == pytest.approx(single, rel=0.1)
    assert grouped / plain == pytest.approx(3, rel=0.15)


def test_groups_of_one_pair_change_nothing_but_noise():
    labels, scores = noisy(300)
    plain = np.array(ev.bootstrap_interval(labels, scores, 0.8, n_resamples=4000))
    grouped = np.array(
        ev.bootstrap_interval(labels, scores, 0.8, n_resamples=4000, groups=[f"r{i}" for i in range(300)])
    )
    assert np.abs(plain - grouped).max() < 0.012


@given(pairs(min_size=3))
def test_influence_is_the_derivative_of_the_metric(case):
    labels, scores = case
    assume(0 < labels.sum() < len(labels))
    y, small = labels == 1, 1e-6
    for metric in ("f1", "precision", "recall", "average_precision", "roc_auc"):
        values = scores >= np.median(scores) if metric in ("f1", "precision", "recall") else scores
        weights = np.ones((len(y), len(y))) + small * np.eye(len(y))
        slopes = (
            ev._weighted(metric, y, values, weights) - ev._weighted(metric, y, values, weights[:1] * 0 + 1)
        ) / small
        assert ev._influence(metric, y, values) == pytest.approx(slopes, abs=1e-4)


@pytest.mark.parametrize("metric", ["f1", "average_precision"])
def test_two_columns_of_groups_of_lone_pairs_change_nothing(metric):
    labels, scores = noisy(300)
    lone = np.arange(600).reshape(300, 2)
    plain = ev.bootstrap_interval(labels, scores, 0.8, metric, 200)
    assert ev.bootstrap_interval(labels, scores, 0.8, metric, 200, groups=lone) == plain


def test_two_columns_of_groups_do_not_depend_on_sides():
    labels, scores = noisy(300)
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 25, size=(300, 2))
    turned = np.where(rng.random((300, 1)) < 0.5, groups, groups[:, ::-1])
    one, two = (ev.bootstrap_interval(labels, scores, 0.8, groups=g) for g in (groups, turned))
    assert one == pytest.approx(two)


def test_copies_of_a_pair_are_one_pair():
    labels, scores = noisy(150)
    y, s, pair = (np.repeat(x, 9) for x in (labels, scores, np.arange(150)))
    lone = np.c_[2 * pair, 2 * pair + 1]
    plain = np.subtract(*ev.bootstrap_interval(y, s, 0.8, n_resamples=2000)[::-1])
    assert np.subtract(*ev.bootstrap_interval(y, s, 0.8, n_resamples=2000, groups=lone)[::-1]) == pytest.approx(
        3 * plain
    )


def test_two_columns_of_groups_cover_crossed_records():
    # scores of pairs = left record + right record + noise; intervals of independent pairs are too narrow for it
    hits = {"plain": 0, "crossed": 0}
    grid = np.array(list(itertools.product(range(20), range(20, 40))))
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = (rng.random(400) < 0.5).astype(int)
        record = rng.normal(size=40)
        scores = record[grid[:, 0]] + record[grid[:, 1]] + rng.normal(size=400)
        truth = 0.5  # recall at 0: the scores are symmetric around it
        for name, groups in (("plain", None), ("crossed", grid)):
            low, high = ev.bootstrap_interval(labels, scores, 0.0, "recall", 200, seed=seed, groups=groups)
            hits[name] += low <= truth <= high
    assert hits["plain"] / 200 < 0.75
    assert hits["crossed"] / 200 > 0.88


def test_paired_test_finds_a_difference_that_two_intervals_hide():
    rng = np.random.default_rng(1)
    labels, scores = noisy(1500, shift=2.0)
    worse = scores - 0.1 * labels + 0.1 * rng.normal(size=1500)
    got = ev.paired_test(labels, scores, worse, metric="average_precision", n_resamples=500)
    a = ev.bootstrap_interval(labels, scores, metric="average_precision", n_resamples=500)
    b = ev.bootstrap_interval(labels, worse, metric="average_precision", n_resamples=500)
    assert a[0] < b[1], "the two intervals overlap"
    assert got["low"] > 0 and got["p_value"] < 0.01
    assert got["difference"] == pytest.approx(
        sk.average_precision_score(labels, scores) - sk.average_precision_score(labels, worse)
    )


@pytest.mark.parametrize("metric", ["f1", "average_precision"])
def test_paired_test_of_a_model_with_itself_on_another_scale(metric):
    labels, scores = noisy()
    got = ev.paired_test(labels, scores, 100 * scores - 7, 0.8, 73.0, metric=metric, n_resamples=50)
    assert got == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}


def test_paired_test_changes_sign_with_its_models():
    labels, a = noisy(seed=1)
    b = a + np.random.default_rng(2).normal(size=400)
    one = ev.paired_test(labels, a, b, 0.8, 0.9, n_resamples=200)
    two = ev.paired_test(labels, b, a, 0.9, 0.8, n_resamples=200)
    assert two["difference"] == -one["difference"]
    assert (two["low"], two["high"]) == pytest.approx((-one["high"], -one["low"]))
    assert two["p_value"] == one["p_value"]


@pytest.mark.parametrize("metric", ["f1", "average_precision"])
def test_swap_test_keeps_its_level(metric):
    # two equally good models: about 10 % of the p-values may lie below 0.1
    below = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = (rng.random(120) < 0.3).astype(int)
        a, b = (labels + rng.normal(size=120) for _ in range(2))
        below += ev.paired_test(labels, a, b, 0.5, 0.5, metric, n_resamples=99, seed=seed)["p_value"] <= 0.1
    assert 0.04 <= below / 200 <= 0.17


def test_swap_test_of_recall_is_the_exact_sign_test():
    # only matches count for recall: 9 to 2 discordant matches, two-sided sign test by scipy
    labels = np.ones(40, dtype=int)
    labels[30:] = 0
    a, b = np.zeros(40), np.zeros(40)
    a[:9], b[9:11] = 1, 1
    got = ev.paired_test(labels, a, b, 0.5, 0.5, "recall", n_resamples=20_000)
    assert got["p_value"] == pytest.approx(stats.binomtest(2, 11).pvalue, abs=0.01)
    assert ev.mcnemar(labels, a, b)["p_value"] == pytest.approx(stats.binomtest(2, 11).pvalue)


def test_groups_in_the_paired_test():
    labels, a = noisy(100, seed=3)
    b = a - 0.6 * labels
    groups = np.repeat(np.arange(100), 6)
    copies = [np.repeat(x, 6) for x in (labels, a, b)]
    plain = ev.paired_test(*copies, 0.8, 0.8, n_resamples=500)
    grouped = ev.paired_test(*copies, 0.8, 0.8, n_resamples=500, groups=groups)
    single = ev.paired_test(labels, a, b, 0.8, 0.8, n_resamples=500)
    assert plain["p_value"] < grouped["p_value"] == pytest.approx(single["p_value"], abs=0.05)
    assert grouped["high"] - grouped["low"] > 1.8 * (plain["high"] - plain["low"])
    crossed = ev.paired_test(*copies, 0.8, 0.8, n_resamples=50, groups=np.c_[groups, groups + 7])
    assert crossed["p_value"] is None and crossed["low"] < crossed["high"]


def test_mcnemar_by_hand():
    # discordant 1 to 5: p = 2 · (1 + 6) / 2**6
    labels = [1] * 8
    a, b = [1, 0, 0, 0, 0, 0, 1, 0], [0, 1, 1, 1, 1, 1, 1, 0]
    assert ev.mcnemar(labels, a, b) == {"only_a_right": 1, "only_b_right": 5, "p_value": pytest.approx(14 / 64)}
    assert ev.mcnemar(labels, a, a)["p_value"] == 1.0


# Rankings


def over_all_orders(grades, scores, metric):
    "Mean of a metric over all rankings that agree with the scores."
    values = []
    for order in itertools.permutations(range(len(grades))):
        ranked = np.array(scores)[list(order)]
        if (np.diff(ranked) <= 0).all():
            values.append(metric(np.array(grades)[list(order)]))
    return np.mean(values)


def plain_reciprocal(ranked):
    return 1 / (1 + (ranked > 0).argmax())


def plain_average_precision(ranked):
    hits = np.flatnonzero(ranked > 0)
    return np.mean([(ranked[: i + 1] > 0).mean() for i in hits])


def plain_ndcg(ranked, k):
    def dcg(grades):
        return sum((2.0**g - 1) / math.log2(i + 2) for i, g in enumerate(grades[:k]))

    return dcg(ranked) / dcg(sorted(ranked, reverse=True))


@settings(max_examples=60)
@given(query(), st.integers(1, 7))
def test_ties_count_with_the_mean_over_all_orders(case, k):
    grades, scores = case
    assume(grades.any())
    checks = [
        (ev.recall_at_k(grades, scores, k), lambda r: (r[:k] > 0).sum() / (r > 0).sum()),
        (ev.reciprocal_rank(grades, scores), plain_reciprocal),
        (ev.average_precision_ranking(grades, scores), plain_average_precision),
        (ev.ndcg(grades, scores, k), lambda r: plain_ndcg(r, k)),
    ]
    for got, metric in checks:
        assert got == pytest.approx(over_all_orders(grades, scores, metric))


@given(query(max_size=25), st.integers(1, 30))
def test_ndcg_against_sklearn(case, k):
    grades, scores = case
    assume(grades.any() and len(grades) > 1)
    assert ev.ndcg(grades, scores, k) == pytest.approx(sk.ndcg_score([2.0**grades - 1], [scores], k=k))


@given(pairs(min_size=2))
def test_average_precision_without_ties_is_that_of_pairs(case):
    labels, scores = case
    scores = scores + np.linspace(0, 0.5, len(scores))
    assume(0 < labels.sum() < len(labels) and len(np.unique(scores)) == len(scores))
    expected = ev.pair_metrics(labels, scores, 0.0)["average_precision"]
    assert ev.average_precision_ranking(labels, scores) == pytest.approx(expected)


def test_a_constant_scorer_gets_no_luck_from_the_order_of_the_file():
    grades = np.array([1] * 3 + [0] * 97)
    for order in (grades, grades[::-1]):
        assert ev.recall_at_k(order, np.zeros(100), 10) == pytest.approx(0.1)


def test_ranking_metrics_by_hand_and_ragged():
    got = ev.ranking_metrics([[0, 1], [2, 0, 1], [0, 0]], [[0.9, 0.1], [3, 2, 1], [1, 2]], k=2)
    ideal = 3 + 1 / math.log2(3)
    assert got == {
        "recall@2": pytest.approx((1 + 0.5) / 2),
        "mrr": pytest.approx((0.5 + 1) / 2),
        "ndcg": pytest.approx((1 / math.log2(3) + 3 / ideal) / 2),
        "map": pytest.approx((0.5 + (1 + 2 / 3) / 2) / 2),
        "k": 2,
        "n_queries": 2,
        "n_without_relevant": 1,
    }
    json.dumps(got)


def test_queries_without_relevant_documents_have_no_metrics():
    got = ev.ranking_metrics(np.zeros((2, 3)), np.ones((2, 3)))
    assert got["mrr"] is None and got["recall@10"] is None and got["n_without_relevant"] == 2
    assert ev.ndcg([], []) is None and ev.recall_at_k([], []) is None


# Calibration


def test_reliability_counts_every_pair_once():
    labels, scores = noisy(500)
    p = 1 / (1 + np.exp(-scores))
    for strategy in ("quantile", "uniform"):
        table = ev.reliability(labels, p, 10, strategy)
        assert table.n.sum() == 500
        assert (table.n * table.match_rate).sum() == pytest.approx(labels.sum())
        assert (table.n * table.probability).sum() == pytest.approx(p.sum())
        assert ((table.low <= table.probability) & (table.probability <= table.high)).all()
        assert ((table.match_rate_low <= table.match_rate) & (table.match_rate <= table.match_rate_high)).all()
    assert ev.reliability(labels, p, 10).n.between(49, 51).all()


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1, max_size=40))
def test_tied_probabilities_share_a_bin(rows):
    labels, p = np.array(rows).T
    for strategy in ("quantile", "uniform"):
        table = ev.reliability(labels, p, 8, strategy)
        for value in np.unique(p):
            homes = ((table.low < value) & (value <= table.high)) | ((value == table.low) & (table.index == 0))
            assert homes.sum() == 1 or (table.low == table.high).any()
        assert table.n.sum() == len(p)


def test_expected_calibration_error_by_hand():
    # bins (0, 0.5], (0.5, 1]: |0.2 - 1/2| · 2/5 + |0.9 - 2/3| · 3/5
    labels, p = [0, 1, 1, 1, 0], [0.1, 0.3, 0.9, 0.8, 1.0]
    assert ev.expected_calibration_error(labels, p, 2, "uniform") == pytest.approx(0.3 * 0.4 + 0.7 / 3 * 0.6)
    assert ev.expected_calibration_error([0, 1], [0.0, 1.0]) == 0


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_temperature_undoes_a_known_factor(factor):
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-logits))).astype(int)
    temperature = ev.fit_temperature(labels, factor * logits)
    assert temperature == pytest.approx(factor, rel=0.06)

    def loss(t):
        return sk.log_loss(labels, 1 / (1 + np.exp(-factor * logits / t)))

    assert loss(temperature) <= min(loss(temperature * 1.02), loss(temperature / 1.02))


def test_temperature_at_its_limits():
    assert ev.fit_temperature([0, 0, 1, 1], [-2, -1, 1, 2]) == 0.001
    assert ev.fit_temperature([1, 1, 0, 0], [-2, -1, 1, 2]) == 1000.0


@pytest.mark.parametrize("fit", [ev.fit_platt, ev.fit_isotonic])
@pytest.mark.parametrize("scale, shift", [(1, 0), (1e-3, 0), (1e4, -1e5)])
def test_calibrators_give_rising_honest_probabilities(fit, scale, shift):
    labels, scores = noisy(4000)
    new_labels, new_scores = noisy(4000, seed=1)
    curve = fit(labels, scale * scores + shift)
    p = curve(scale * np.sort(new_scores) + shift)
    assert ((p >= 0) & (p <= 1)).all() and (np.diff(p) >= 0).all()
    assert ev.expected_calibration_error(new_labels, curve(scale * new_scores + shift)) < 0.03
    assert np.isfinite(curve(np.array([-1e9, 1e9]))).all()


def test_platt_stays_finite_on_separable_pairs():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.0, 0.1, 0.9, 1.0])
    targets = np.where(labels, 3 / 4, 1 / 4)  # (2 + 1) / (2 + 2) and 1 / (2 + 2)

    def loss(line):
        p = special.expit(line[0] * scores + line[1])
        return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum()

    slope, offset = optimize.minimize(loss, [0.0, 0.0]).x
    assert ev.fit_platt(labels, scores)(scores) == pytest.approx(special.expit(slope * scores + offset), abs=1e-3)


# Looking at pairs


@pytest.fixture
def shop_pairs():
    return Dataset.from_dict(
        {
            "left_id": ["a", "b", "c", "d"],
            "left_title": ["red kettle 1.7 l", "blue toaster", "连衣裙 红色", "black chair"],
            "left_price": ["20", None, "", "9"],
            "right_id": ["e", "f", "g", "h"],
            "right_title": ["kettle red 1.7 l", "green lamp", "红色 连衣裙", "chair, oak"],
            "right_price": [None, "5", "3", "9"],
            "label": [1, 0, 1, 0],
        }
    )


def test_lexical_scores(shop_pairs):
    scores = ev.lexical_scores(shop_pairs, shop_pairs)
    assert scores.shape == (4,) and ((scores >= 0) & (scores <= 1)).all()
    assert scores[0] > 0.5 > scores[1] and scores[2] > scores[1]
    swapped = shop_pairs.rename_columns({"left_title": "x"}).rename_columns({"right_title": "left_title"})
    swapped = swapped.rename_columns({"x": "right_title"})
    same = Dataset.from_dict({"left_title": ["red kettle"], "right_title": ["red kettle"]})
    assert ev.lexical_scores(shop_pairs, same)[0] == pytest.approx(1, abs=1e-6)
    assert ev.lexical_scores(shop_pairs, swapped)[1] < 0.5


def test_lexical_scores_do_not_read_labels_or_depend_on_chunks(shop_pairs):
    flipped = shop_pairs.remove_columns("label").add_column("label", [0, 1, 0, 1])
    scores = ev.lexical_scores(shop_pairs, shop_pairs)
    assert (scores == ev.lexical_scores(flipped, flipped, chunk=3)).all()


def test_lexical_scores_without_text():
    with pytest.raises(ProdsimError, match="three characters"):
        empty = Dataset.from_dict({"left_title": [""], "right_title": [None]})
        ev.lexical_scores(empty, empty)
    with pytest.raises(ProdsimError, match="no column right_<attribute>"):
        ev.lexical_scores(*[Dataset.from_dict({"left_title": ["a kettle"], "right_id": ["x"]})] * 2)


def test_confusions_are_sorted_by_confidence(shop_pairs):
    scores = np.array([0.1, 0.7, 0.4, 0.9])
    wrong = ev.confusions(shop_pairs, scores, 0.5)
    assert wrong.row.tolist() == [3, 1] and wrong.score.tolist() == [0.9, 0.7]
    assert list(wrong)[:5] == ["row", "score", "label", "left_id", "right_id"]
    assert wrong.left_title.tolist() == ["black chair", "blue toaster"]
    assert ev.confusions(shop_pairs, scores, 0.5, "false_negative", n=1).row.tolist() == [0]
    assert ev.confusions(shop_pairs, scores, 0.5, "true_positive").empty
    assert len(ev.confusions(shop_pairs, scores, 0.0, "true_positive")) == 2
    kinds = ("false_positive", "false_negative", "true_positive", "true_negative")
    assert sum(len(ev.confusions(shop_pairs, scores, 0.5, kind)) for kind in kinds) == 4


@pytest.mark.data
def test_lexical_baseline_on_abt_buy():
    data = pytest.importorskip("prodsim.data").load_pairs("abt-buy")
    valid, test = (ev.lexical_scores(data["train"], data[split]) for split in ("valid", "test"))
    threshold = ev.best_threshold(data["valid"]["label"], valid)
    got = ev.pair_metrics(data["test"]["label"], test, threshold)
    assert got["n"] == 1916 and got["positives"] == 206
    assert got["f1"] == pytest.approx(0.65, abs=0.01)  # 64.9 was measured elsewhere, with another threshold search


def test_figures_draw():
    labels, scores = noisy()
    threshold = ev.best_threshold(labels, scores)
    axes = ev.plot_precision_recall(labels, {"a model": scores}, {"a model": threshold})
    dot = next(line for line in axes.lines if line.get_marker() == "o")
    got = ev.pair_metrics(labels, scores, threshold)
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (got["recall"], got["precision"])
    assert axes.get_xlabel() == "recall" and axes.get_ylabel() == "precision"
    table = ev.reliability(labels, 1 / (1 + np.exp(-scores)), 5)
    assert ev.plot_reliability({"a model": table}).get_xlabel() == "stated probability"


# Bad input


@pytest.mark.parametrize(
    "labels, scores, message",
    [
        ([0, 1], [0.1], "2 labels but 1 scores"),
        ([], [], "empty"),
        ([0, 1, 2], [0.1, 0.2, 0.3], "label 2 in row 2"),
        ([0, None], [0.1, 0.2], "label nan in row 1"),
        ([0, 0.5], [0.1, 0.2], "label 0.5 in row 1"),
        ([0, 1], [np.nan, 0.2], "nan in row 0"),
        ([0, 1], [0.1, np.inf], "inf in row 1"),
        ([0, 1], ["a", "b"], "must be numbers"),
        ([[0, 1]], [[0.1, 0.2]], "one-dimensional"),
    ],
)
@pytest.mark.parametrize(
    "function",
    [
        ev.best_threshold,
        ev.report,
        ev.bootstrap_interval,
        ev.fit_temperature,
        ev.fit_isotonic,
        ev.fit_platt,
        ev.expected_calibration_error,
    ],
)
def test_bad_pairs_get_one_clear_line(function, labels, scores, message):
    arguments = (0.5,) if function in (ev.report, ev.bootstrap_interval) else ()
    name = {ev.fit_temperature: "logits", ev.expected_calibration_error: "probabilities"}.get(function, "scores")
    with pytest.raises(ProdsimError, match=message.replace("scores", name)) as error:
        function(labels, scores, *arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ev.best_threshold([0, 0], [0.1, 0.2]), "no label is 1"),
        (lambda: ev.pair_metrics([0, 1], [0.1, 0.2], np.nan), "threshold is nan"),
        (lambda: ev.bootstrap_interval([0, 1], [0.1, 0.2]), "threshold is None"),
        (lambda: ev.bootstrap_interval([0, 1], [0.1, 0.2], 0.1, "accuracy"), "no metric 'accuracy'"),
        (lambda: ev.bootstrap_interval([0, 0], [0.1, 0.2], 0.1), "undefined"),
        (lambda: ev.bootstrap_interval([0, 1], [0.1, 0.2], 0.1, groups=["a"]), "1 values of groups for 2 pairs"),
        (lambda: ev.bootstrap_interval([0, 1], [0.1, 0.2], 0.1, groups=["a", None]), "id is missing"),
        (lambda: ev.bootstrap_interval([0, 1], [0.1, 0.2], 0.1, groups=[[1, 2, 3]] * 2), "3 columns"),
        (lambda: ev.bootstrap_interval([0, 1], [0.1, 0.2], 0.1, level=1.0), "level"),
        (lambda: ev.paired_test([0, 1], [0.1, 0.2], [0.1]), "2 labels but 1 scores_b"),
        (lambda: ev.paired_test([0, 1], [0.1, 0.2], [0.1, 0.2], 0.5), "threshold_b is None"),
        (lambda: ev.mcnemar([0, 1], [0, 1], [0, 0.7]), "a verdict is 0 or 1"),
        (lambda: ev.by_seen([0, 1], [0.1, 0.2], 0.1, ["seen", "new"]), "'new' in row 1"),
        (lambda: ev.by_seen([0, 1], [0.1, 0.2], 0.1, ["seen"]), "1 values of seen for 2 pairs"),
        (lambda: ev.threshold_for_precision([0, 1], [0.2, 0.1], 0.9), "the best is 0.500"),
        (lambda: ev.threshold_for_precision([0, 1], [0.2, 0.1], 0), "above 0"),
        (lambda: ev.threshold_for_cost([0, 1], [0.2, 0.1], -1, 1), "costs"),
        (lambda: ev.reliability([0, 1], [0.2, 1.1]), "1.1 in row 1"),
        (lambda: ev.reliability([0, 1], [0.2, 0.1], strategy="width"), "quantile or uniform"),
        (lambda: ev.fit_temperature([1, 1], [0.2, 0.1]), "all 2 labels are 1"),
        (lambda: ev.ranking_metrics([], []), "no query"),
        (lambda: ev.ranking_metrics([[1], [1, 0]], [[0.1], [0.2]]), r"query 1 \(counted from 0\)"),
        (lambda: ev.ranking_metrics([[1]], [[0.1], [0.2]]), "1 queries but scores of 2"),
        (lambda: ev.ndcg([1, -1], [0.1, 0.2]), "not negative"),
        (lambda: ev.recall_at_k([1, 0], [0.1, 0.2], 0), "k is 0"),
    ],
)
def test_bad_arguments_get_one_clear_line(call, message):
    with pytest.raises(ProdsimError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_bad_confusions(shop_pairs):
    with pytest.raises(ProdsimError, match="no kind"):
        ev.confusions(shop_pairs, [0.1] * 4, 0.5, "wrong")
    with pytest.raises(ProdsimError, match="no column label"):
        ev.confusions(shop_pairs.remove_columns("label"), [0.1] * 4, 0.5)
    with pytest.raises(ProdsimError, match="4 labels but 3 scores"):
        ev.confusions(shop_pairs, [0.1] * 3, 0.5)


def test_the_module_imports_neither_torch_nor_matplotlib():
    code = "import sys, prodsim.evaluation; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plain_lists_series_and_booleans_are_read_alike():
    labels, scores = noisy(50)
    expected = ev.pair_metrics(labels, scores, 0.5)
    assert ev.pair_metrics(labels.tolist(), pd.Series(scores), 0.5) == expected
    assert ev.pair_metrics(labels.astype(bool), scores, np.float64(0.5)) == expected
