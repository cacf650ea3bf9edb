"""Learning from clicks: propensities come back, weights are unbiased, the correction helps and a lie does not."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prodsim import clicks
from prodsim.core import ProdsimError
from prodsim.evaluation import ndcg
from prodsim.shop import catalogue
from prodsim.shoppers import examination, simulate_clicks


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    grades = rng.integers(0, 4, (40, 8))
    return grades, rng.normal(size=grades.shape)


def log_of(world, impressions=8000, **knobs):
    return simulate_clicks(*world, impressions, 0, page=8, **({"jitter": 1.0, "swaps": 0.3} | knobs))


def test_counts_keep_every_click(world):
    log = log_of(world).log
    counts = clicks.click_counts(log)
    assert counts["shown"].sum() == len(log) and counts["clicks"].sum() == log["click"].sum()
    assert (counts["clicks"] <= counts["shown"]).all() and not counts.duplicated(["query", "item", "rank"]).any()
    shuffled = clicks.click_counts(log.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(counts, shuffled)


@given(seed=st.integers(0, 10**6), eta=st.floats(0, 2), clip=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_weights_by_hand(seed, eta, clip):
    rng = np.random.default_rng(seed)
    grades, scores = rng.integers(0, 4, (3, 6)), rng.normal(size=(3, 6))
    log = simulate_clicks(grades, scores, 40, seed, page=4, jitter=1.0).log
    theta = examination(4, eta)
    candidates = np.stack([rng.permutation(6)[:5] for _ in range(3)])
    got = clicks.relevance_from_clicks(clicks.click_counts(log), candidates, theta, clip)
    for q in range(3):
        for j, item in enumerate(candidates[q]):
            mine = log[(log["query"] == q) & (log["item"] == item)]
            worth = (mine["click"] / np.maximum(theta, clip)[mine["rank"] - 1]).mean() if len(mine) else 0.0
            assert got[q, j] == pytest.approx(worth)


def test_weighted_clicks_are_attraction_on_average(world):
    made = log_of(world, 60_000)
    places = np.tile(np.arange(8), (40, 1))
    truth = 0.1 + 0.9 * (2.0 ** world[0] - 1) / 7
    counts = clicks.click_counts(made.log)
    weighted = clicks.relevance_from_clicks(counts, places, made.propensity)
    naive = clicks.relevance_from_clicks(counts, places)
    assert np.abs(weighted - truth).mean() < 0.05 < np.abs(naive - truth).mean()
    trusting = log_of(world, 60_000, trust=0.6)
    theta, counts = trusting.propensity, clicks.click_counts(trusting.log)
    undone = clicks.relevance_from_clicks(counts, places, theta * (1 - 0.6 * theta), added=0.6 * theta**2)
    assert abs((undone - truth).mean()) < 0.02 < (clicks.relevance_from_clicks(counts, places, theta) - truth).mean()


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.5])
def test_propensities_come_back(world, eta):
    made = log_of(world, 30_000, eta=eta)
    true = made.propensity
    theta, history = clicks.em_propensities(clicks.click_counts(made.log), prior=0.0)
    assert np.diff(history).min() > -1e-6 * abs(history[0]) and theta[0] == 1
    assert np.abs(theta - true).max() < 0.1
    table = clicks.swap_propensities(made.log)
    assert np.abs(table["falling"] - true).max() < 0.12 and table["falling"].between(1e-3, 1).all()
    assert ((table["low"] <= true) & (true <= table["high"]))[1:].mean() >= 0.7
    assert table["falling"].is_monotonic_decreasing


@given(seed=st.integers(0, 10**6), eta=st.floats(0, 4), impressions=st.integers(1, 200))
@settings(max_examples=20, deadline=None)
def test_estimated_propensities_lie_between_0_and_1(seed, eta, impressions):
    rng = np.random.default_rng(seed)
    made = simulate_clicks(rng.integers(0, 4, (3, 6)), rng.normal(size=(3, 6)), impressions, seed, page=4, eta=eta)
    counts = clicks.click_counts(made.log)
    if counts["clicks"].sum():
        theta, _ = clicks.em_propensities(counts)
        assert ((theta > 0) & (theta <= 1)).all()
        clicks.relevance_from_clicks(counts, np.tile(np.arange(6), (3, 1)), theta)


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_loss_is_linear_in_weights_and_its_gradient_right(seed):
    rng = np.random.default_rng(seed)
    s, a, b = rng.normal(size=(2, 5)), rng.random((2, 5)), rng.normal(size=(2, 5))
    loss = lambda w: clicks.softmax_gradients(s, w)[2]  # noqa: E731
    assert loss(a + 2 * b) == pytest.approx(loss(a) + 2 * loss(b))
    gradient, curvature, _ = clicks.softmax_gradients(s, a)
    assert np.abs(gradient.sum(axis=1)).max() < 1e-9 and (curvature > 0).all()
    step = np.zeros_like(s)
    step[1, 2] = 1e-6
    slope = (clicks.softmax_gradients(s + step, a)[2] - clicks.softmax_gradients(s - step, a)[2]) / 2e-6
    assert slope == pytest.approx(gradient[1, 2], abs=1e-5)


def test_correction_helps_and_a_lie_does_not():
    "Relevance is one feature, the shop's ranking another; only the corrected clicks find the first."
    rng = np.random.default_rng(1)
    grades = rng.integers(0, 4, (150, 12))
    signal, habit = grades + rng.normal(0, 1.0, grades.shape), rng.normal(size=grades.shape)
    x = np.stack([signal, habit], axis=2)
    made = simulate_clicks(grades[:100], habit[:100], 20_000, 0, page=12, jitter=0.3)
    counts, places = clicks.click_counts(made.log), np.tile(np.arange(12), (100, 1))
    means = {}
    for name, theta in (("naive", None), ("true", made.propensity), ("EM", clicks.em_propensities(counts)[0])):
        ranker = clicks.train_ranker(x[:100], clicks.relevance_from_clicks(counts, places, theta), 60)
        scores = clicks.rank_scores(ranker, x[100:])
        means[name] = np.mean([ndcg(g, s) for g, s in zip(grades[100:], scores, strict=True) if g.any()])
    assert min(means["true"], means["EM"]) > means["naive"] + 0.02
    again = clicks.train_ranker(x[:100], clicks.relevance_from_clicks(counts, places), 60)
    assert (clicks.rank_scores(again, x[100:]) == clicks.rank_scores(again, x[100:])).all()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_queries_of_titles_say_what_their_product_says(language):
    goods = catalogue(150, 0, language)
    made = clicks.title_queries(goods, 50, 1)
    assert made.equals(clicks.title_queries(goods, 50, 1)) and not made.equals(clicks.title_queries(goods, 50, 2))
    for text, item in made.itertuples(index=False):
        title = goods["title"][item]
        assert 1 <= len(text.split(" ")) <= 5 and all(w in title for w in text.split(" "))


def test_features_are_measured():
    goods = catalogue(120, 0)
    features = clicks.SearchFeatures.fit(goods, np.arange(120))
    x = features.measure([goods["title"][7], "!?"])
    assert x.shape == (2, 120, len(features.columns)) and np.isfinite(x).all()
    assert x[0, :, features.columns.index("title words")].argmax() == 7
    assert not x[1, :, features.columns.index("all words")].any()
    assert (np.diff(x[0, :, features.columns.index("sales")]) > 0).all()


def test_positions_shown_by_lot():
    rng = np.random.default_rng(0)
    rank = rng.integers(1, 4, 60_000)
    table = clicks.position_effects(rank, rng.random(60_000) < np.array([0.1, 0.05, 0.02])[rank - 1])
    assert np.allclose(table["ratio"], [1, 0.5, 0.2], atol=0.05)
    assert ((table["low"] <= [1, 0.5, 0.2]) & (table["high"] >= [1, 0.5, 0.2])).all()
    few = clicks.position_effects(np.array([1, 2, 3]), np.array([1, 0, 0]))
    assert few["clicks"].tolist() == [1, 0, 0] and not few["ratio"].isna().any()
    with pytest.raises(ProdsimError, match="no click at rank 1"):
        clicks.position_effects(np.array([1, 2]), np.array([0, 1]))


@pytest.mark.data
@pytest.mark.parametrize("campaign, items, shown, clicked", [("men", 34, 10_000, 46), ("women", 46, 10_000, 46)])
def test_open_bandit_is_uniform(campaign, items, shown, clicked):
    table = clicks.read_bandit(campaign)
    assert (len(table), table["item"].nunique(), int(table["click"].sum())) == (shown, items, clicked)
    assert np.allclose(table["propensity"], 1 / items)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda log: clicks.click_counts(log.drop(columns="rank")), "no column 'rank'"),
        (lambda log: clicks.click_counts(log.head(0)), "empty"),
        (lambda log: clicks.click_counts(log.assign(click=2)), "0 or 1"),
        (lambda log: clicks.swap_propensities(log.assign(swap=0)), "no experiment"),
        (lambda log: clicks.swap_propensities(log[log["swap"] != 1]), "too small"),
        (lambda log: clicks.em_propensities(clicks.click_counts(log.assign(click=0))), "nobody clicked"),
        (lambda log: weigh(log, [1.0, 0.5]), "ranks alone"),
        (lambda log: weigh(log, np.zeros(8)), "above 0"),
        (lambda log: weigh(log, [1.0] * 7 + [float("nan")]), "above 0"),
        (lambda log: clicks.train_ranker(np.zeros((2, 3, 1)), np.zeros((2, 3))), "nothing to learn"),
        (lambda log: clicks.train_ranker(np.zeros((2, 3, 1)), np.ones((2, 4))), "must agree"),
        (lambda log: clicks.read_bandit("kids"), "men and women"),
    ],
)
def test_bad_input(world, call, said):
    log = log_of(world, 300).log
    with pytest.raises(ProdsimError, match=said) as caught:
        call(log)
    assert "\n" not in str(caught.value)


def weigh(log, propensity):
    return clicks.relevance_from_clicks(clicks.click_counts(log), np.tile(np.arange(8), (40, 1)), propensity)
