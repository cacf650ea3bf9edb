"""The simulated shoppers: a function of their arguments, in the contract's form, true to their truth."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prodsim import registry, shoppers
from prodsim.core import ProdsimError
from prodsim.data import load_events, load_pairs, load_records
from prodsim.shop import catalogue

SMALL = {"products": 120, "shoppers": 80, "queries": 40}


@pytest.fixture(scope="module")
def traffic():
    return shoppers.simulate_traffic(products=300, shoppers=800, seed=3, queries=100)


@given(seed=st.integers(0, 2**31), language=st.sampled_from(["en", "zh"]), days=st.integers(1, 60))
@settings(max_examples=5, deadline=None)
def test_same_arguments_same_events_in_the_contracts_form(seed, language, days):
    one, two = (shoppers.simulate_traffic(seed=seed, language=language, days=days, **SMALL) for _ in range(2))
    pd.testing.assert_frame_equal(one.events, two.events)
    assert tuple(one.events.columns) == shoppers.EVENT_COLUMNS
    assert set(one.events["kind"]) <= {"view", "basket", "purchase"}
    assert one.events["time"].is_monotonic_increasing
    assert one.events[["user", "item", "kind", "time", "price"]].notna().all().all() and (one.events["price"] > 0).all()
    assert (one.events["quantity"].isna() == (one.events["kind"] == "view")).all()
    assert len(one.truth) == len(one.events) and one.truth["session"].isin(one.sessions["session"]).all()
    assert set(one.events["item"]) <= set(one.catalogue["id"]) and set(one.events["user"]) <= set(one.shoppers["user"])
    assert one.catalogue.equals(catalogue(SMALL["products"], seed, language))
    assert (one.grades == 3).any(axis=1).all() and one.queries["text"].is_unique
    assert (one.sessions["user"].to_numpy()[one.truth["session"]] == one.events["user"].to_numpy()).all()


def test_a_part_more_leaves_the_others_alone(traffic):
    other = shoppers.simulate_traffic(products=300, shoppers=800, seed=3, queries=100, promotion=0.6, complement=0.0)
    assert other.queries.equals(traffic.queries) and other.sessions.equals(traffic.sessions)
    assert other.complements.equals(traffic.complements) and other.shoppers.equals(traffic.shoppers)
    assert not other.events.equals(traffic.events)
    more = shoppers.simulate_traffic(products=300, shoppers=900, seed=3, queries=100)
    assert more.queries.equals(traffic.queries) and (more.prices == traffic.prices).all()
    assert not shoppers.simulate_traffic(seed=4, **SMALL).queries.equals(shoppers.simulate_traffic(**SMALL).queries)


def test_purchases_follow_baskets_and_baskets_follow_views(traffic):
    whole = traffic.events.assign(**traffic.truth)
    kinds = {k: set(zip(part["session"], part["item"], strict=True)) for k, part in whole.groupby("kind")}
    assert kinds["purchase"] < kinds["basket"]
    chosen = whole[(whole["kind"] == "basket") & (whole["role"] == "choice")]
    assert set(zip(chosen["session"], chosen["item"], strict=True)) <= kinds["view"]
    assert chosen.groupby("session").size().max() == 1
    added = whole[(whole["kind"] == "basket") & (whole["role"] == "complement")]
    anchor = chosen.set_index("session")["item"].reindex(added["session"])
    known = set(zip(traffic.complements["item"], traffic.complements["complement"], strict=True))
    assert len(added) > 10 and set(zip(anchor, added["item"], strict=True)) <= known


def test_tastes_show_in_what_is_viewed(traffic):
    whole = traffic.events.assign(**traffic.truth).query("kind == 'view' and role == 'choice'")
    products = traffic.catalogue.set_index("id")
    category = products["category"].reindex(whole["item"]).to_numpy()
    row = traffic.brands.index.get_indexer(whole["user"])
    favourite = traffic.brands.to_numpy()[row, traffic.brands.columns.get_indexer(category)]
    brand = products["brand"].reindex(whole["item"]).to_numpy()
    assert (brand == favourite).mean() > 2 * (np.random.default_rng(0).permutation(brand) == favourite).mean()
    need = traffic.needs.reindex(whole["item"]).to_numpy()
    assert (need == traffic.sessions["need"].to_numpy()[whole["session"]]).mean() > 0.5
    assert (category == [n.split("/")[0] for n in traffic.sessions["need"].to_numpy()[whole["session"]]]).all()


@pytest.mark.parametrize("knob, less, more", [("sensitivity", 0.0, 4.0), ("discount", 0.0, 0.5)])
def test_a_lower_price_sells_more_where_prices_matter(knob, less, more):
    shares = []
    for value in (less, more):
        made = shoppers.simulate_traffic(
            products=200, shoppers=1500, seed=1, promotion=0.3, queries=60, **{knob: value}
        )
        same = shoppers.price_weeks(made.catalogue, made.prices.shape[0], 1, shoppers.Habits(promotion=0.3))
        chosen = made.events[(made.events["kind"] == "basket") & (made.truth["role"] == "choice")]
        week = ((chosen["time"] - pd.Timestamp("2024-01-01")) // pd.Timedelta(7, "D")).to_numpy(int)
        reduced = same < 0.9 * made.catalogue["price"].to_numpy()
        shares.append(reduced[week, pd.Index(made.catalogue["id"]).get_indexer(chosen["item"])].mean())
    assert abs(shares[0] - 0.3) < 0.05 < shares[1] - shares[0]


def test_visits_are_negative_binomial():
    made = shoppers.simulate_traffic(
        products=100, shoppers=20_000, seed=0, queries=40, sessions=2.0, spread=0.5, views=0
    )
    n = made.sessions["user"].value_counts().reindex(made.shoppers["user"], fill_value=0)
    assert n.mean() == pytest.approx(2.0, rel=0.05) and n.var() == pytest.approx(2 + 4 / 0.5, rel=0.1)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_grades_by_hand(language):
    goods = catalogue(200, 5, language)
    asked = shoppers.simulate_queries(goods, 60, 5, language)
    grades = shoppers.relevance_grades(asked, goods)
    for i, q in asked.iterrows():
        for j, p in goods.iterrows():
            wishes = []
            for name in ("brand", "colour"):
                wishes += [q[name] == p[name]] if isinstance(q[name], str) else []
            for name in ("size", "capacity"):
                same = q[name] == p[name] and q[f"{name}_unit"] == p[f"{name}_unit"]
                wishes += [same] if pd.notna(q[name]) else []
            wishes += [q["feature"] in p["features"].split("; ")] if isinstance(q["feature"], str) else []
            wishes += [p["price"] <= q["price"]] if pd.notna(q["price"]) else []
            missed = len(wishes) - sum(wishes)
            expected = 3 if not missed else 2 if missed == 1 and len(wishes) > 1 else 1
            assert grades[i, j] == (expected if q["category"] == p["category"] else 0)
    if language == "zh":
        assert all(any("\u4e00" <= c <= "\u9fff" for c in text) for text in asked["text"])


def test_a_shop_runs_out_of_queries(monkeypatch):
    monkeypatch.setattr(shoppers, "_ASKED", ("brand",))
    with pytest.raises(ProdsimError, match="100 different queries for 1 products"):
        shoppers.simulate_queries(catalogue(100).head(1), 100, typo=0.0)


def test_orders_are_measured(traffic):
    t = pd.Timestamp("2024-01-01")
    events = pd.DataFrame(
        [("a", "x", "purchase", t), ("a", "y", "purchase", t), ("a", "x", "purchase", t + pd.Timedelta(1, "D"))]
        + [("b", "x", "purchase", t), ("b", "z", "view", t)],
        columns=["user", "item", "kind", "time"],
    )
    made = shoppers.measure_orders(events)
    assert (made["buyers"], made["orders"], made["products sold"]) == (2, 3, 2)
    assert made["buyers with one order"] == 0.5 and made["median lines an order"] == 1
    assert made["orders of the top fifth of buyers"] == pytest.approx(2 / 3)
    assert made["demand curve"][0] == 0 and made["demand curve"][-1] == 1
    with pytest.raises(ProdsimError, match="no purchase"):
        shoppers.measure_orders(events[events["kind"] == "view"])
    assert shoppers.read_orders()["orders"]["online-retail"]["orders"] > 10_000


def test_events_by_name():
    made = load_events("shoppers:zh-7")
    expected = shoppers.simulate_traffic(seed=7, language="zh").events
    assert made.column_names == list(shoppers.EVENT_COLUMNS) and len(made) == len(expected)
    assert made[0]["item"] == expected["item"][0] and made[0]["quantity"] is None
    assert "shoppers" in set(registry.catalog().query("kind == 'events'")["name"])
    for name, said in (("shoppers:fr", "no variant 'fr'"), ("shoppers:zh-", "zh-7"), ("abt-buy", "holds pairs")):
        with pytest.raises(ProdsimError, match=said) as caught:
            load_events(name)
        assert "\n" not in str(caught.value)
    for read in (load_pairs, load_records):
        with pytest.raises(ProdsimError, match="shoppers:7: holds events"):
            read("shoppers:7")


def test_events_round_trip(traffic, tmp_path):
    few = traffic.events.head(300)
    few.to_csv(tmp_path / "events.csv", index=False)
    assert load_events(tmp_path / "events.csv").to_dict() == shoppers.events_dataset(few).to_dict()


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"products": 10}, "products=10"),
        ({"shoppers": 0}, "shoppers=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": True}, "seed=True"),
        ({"language": "fr"}, "no language 'fr'"),
        ({"loyal": 1.0}, "no knob 'loyal'"),
        ({"abandon": 1.5}, "abandon=1.5"),
        ({"spread": 0.0}, "spread=0.0"),
        ({"tier": float("nan")}, "tier=nan"),
        ({"queries": 0}, "queries=0"),
    ],
)
def test_bad_arguments(arguments, said):
    with pytest.raises(ProdsimError, match=said) as caught:
        shoppers.simulate_traffic(**(SMALL | arguments))
    assert "\n" not in str(caught.value)


# Clicks


@given(
    eta=st.floats(0, 3),
    noise=st.floats(0, 1),
    trust=st.floats(0, 1),
    stop=st.floats(0, 1),
    jitter=st.floats(0, 2),
    swaps=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=15, deadline=None)
def test_every_click_log_is_sound(eta, noise, trust, stop, jitter, swaps, seed):
    rng = np.random.default_rng(seed)
    grades, scores = rng.integers(0, 4, (6, 9)), rng.normal(size=(6, 9))
    knobs = {"eta": eta, "noise": noise, "trust": trust, "stop": stop, "jitter": jitter, "swaps": swaps}
    made = shoppers.simulate_clicks(grades, scores, 60, seed, page=5, **knobs)
    assert made.log.equals(shoppers.simulate_clicks(grades, scores, 60, seed, page=5, **knobs).log)
    assert ((made.propensity > 0) & (made.propensity <= 1)).all() and len(made.log) == 300
    assert set(made.log["click"]) <= {0, 1} and not made.log["click"][~made.truth["examined"]].any()
    assert (made.truth["grade"] == grades[made.log["query"], made.log["item"]]).all()
    assert (
        not made.log.duplicated(["impression", "item"]).any() and not made.log.duplicated(["impression", "rank"]).any()
    )
    assert made.truth["attraction"].between(0, 1).all()


def test_readers_do_not_move_the_lists():
    rng = np.random.default_rng(0)
    grades, scores = rng.integers(0, 4, (20, 30)), rng.normal(size=(20, 30))
    one = shoppers.simulate_clicks(grades, scores, 400, 1, jitter=0.5, swaps=0.3)
    two = shoppers.simulate_clicks(grades, scores, 400, 1, jitter=0.5, swaps=0.3, eta=2.0, noise=0.5, stop=1.0)
    lists = ["impression", "day", "query", "item", "rank", "swap"]
    assert one.log[lists].equals(two.log[lists]) and not one.log["click"].equals(two.log["click"])
    assert two.log.groupby("impression")["click"].sum().max() == 1  # everybody leaves after a click
    swapped = one.log[one.log["swap"] > 1].iloc[0]
    assert set(one.log["swap"]) >= {0, 1, 2, 20} and swapped["swap"] <= 20


def test_click_rates_are_examination_times_attraction():
    grades = np.tile([3, 2, 1, 0], (1, 1))
    made = shoppers.simulate_clicks(grades, -np.arange(4.0)[None], 40_000, 0, page=4, eta=1.0, noise=0.1)
    rate = made.log.groupby("rank")["click"].mean().to_numpy()
    assert np.allclose(rate, [1.0, (0.1 + 0.9 * 3 / 7) / 2, (0.1 + 0.9 / 7) / 3, 0.1 / 4], atol=0.01)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"scores": np.zeros((2, 3))}, "one shape"),
        ({"grades": np.full((2, 4), 5)}, "grades 0, 1, 2 or 3"),
        ({"scores": np.full((2, 4), np.nan)}, "finite"),
        ({"impressions": 0}, "impressions=0"),
        ({"eta": -1}, "eta=-1"),
        ({"swaps": 2}, "swaps=2"),
        ({"popularity": [1.0]}, "2 numbers"),
    ],
)
def test_bad_click_logs(change, said):
    arguments = {"grades": np.zeros((2, 4), int), "scores": np.zeros((2, 4))} | change
    with pytest.raises(ProdsimError, match=said) as caught:
        shoppers.simulate_clicks(**arguments)
    assert "\n" not in str(caught.value)
