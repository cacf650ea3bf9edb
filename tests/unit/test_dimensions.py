"""Dimensions: likeness in 0 to 1, nan where nothing is known, one line for what cannot be measured."""

from importlib import metadata

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from little_shop import little_pairs

from prodsim.core import ProdsimError
from prodsim.similarity import dimensions as d
from prodsim.similarity.dimensions import Look, learn_behaviour, learn_known, measure_dimensions, why_unknown
from prodsim.similarity.explanation import explain_pairs, one_pair
from prodsim.similarity.fusion import train_fusion

PAIRS = little_pairs()
KNOWN = learn_known(PAIRS)
TEST = PAIRS["test"].to_pandas()


def hand(left, right, name="title"):
    return pd.DataFrame({f"left_{name}": left, f"right_{name}": right})


def measured(frame, dimension, **options):
    known = learn_known(DatasetDict(train=Dataset.from_pandas(frame)), **options)
    return measure_dimensions(frame, known, [dimension])[dimension].to_numpy()


def test_every_dimension_answers_in_its_range_whatever_the_side():
    table = measure_dimensions(PAIRS["test"], KNOWN)
    assert ((table >= 0) & (table <= 1) | table.isna()).all(axis=None) and len(table) == len(TEST)
    names = {
        f"{a}_{n}": f"{b}_{n}" for n in ("title", "price", "id") for a, b in (("left", "right"), ("right", "left"))
    }
    turned = measure_dimensions(TEST.rename(columns=names), KNOWN)
    assert np.allclose(turned, table, equal_nan=True)


def test_parts_make_no_difference():
    whole = measure_dimensions(TEST, KNOWN)
    assert measure_dimensions(TEST, KNOWN, chunk_rows=7).equals(whole)
    assert measure_dimensions(TEST.iloc[:0], KNOWN).shape == (0, whole.shape[1])


def test_missing_is_not_unlike():
    price = measure_dimensions(TEST, KNOWN, ["price"])["price"]
    assert price[TEST["right_price"].isna()].isna().all() and price.notna().any()
    empty = hand(["lamp x-100", None, ""], ["lamp", "desk", "desk"])
    for name in ("title words", "title characters", "nothing left over", "model number", "measures", "colour"):
        assert np.isnan(measured(empty, name)[1:]).all()


def test_what_cannot_be_measured_says_so_and_the_rest_goes_on():
    table = measure_dimensions(TEST, KNOWN)
    missing = table.attrs["missing"]
    assert missing["brand"] == "no attribute is known to be a brand" and missing["interaction"] == "not asked for"
    assert missing["met alike"] == "no events are given" and missing["colour"] == "no pair has it on both sides"
    assert "title words" in table and "brand" not in table


@pytest.mark.parametrize(
    "left, right, value",
    [
        ("Canon DMC-LC40S", "canon dmc lc40s camera", 0.8),
        ("Canon DMC-LC40S", "DMCLC40S", 1.0),
        ("tm-6307w router", "TM6307WA router", 0.8),
        ("小米 MX-3100 手机", "MX3100 小米", 1.0),
    ],
)
def test_model_numbers(left, right, value):
    assert measured(hand([left], [right]), "model number")[0] == value


def test_another_model_number_is_half_at_most():
    value = measured(hand(["Acme MX-310X"], ["Acme MX-320X"]), "model number")[0]
    assert 0 < value <= 0.5


def test_measures_know_their_units():
    frame = hand(
        ["disk 1 TB", "disk 512GB", "tv 24 inch 20W", "手机 128GB"],
        ["1000GB disk", "256GB disk", '24" tv 30W', "128 GB"],
    )
    assert measured(frame, "measures").tolist() == [1, 0, 0.5, 1]


def test_prices_by_their_ratio_and_band():
    frame = hand(["a"] * 4, ["b"] * 4).assign(left_price=["10", "$20", "0", None], right_price=["20", "10", "5", "7"])
    value = measured(frame, "price")
    assert value[:2].tolist() == [0.5, 0.5] and np.isnan(value[2:]).all()
    assert np.isnan(measured(frame, "price band")[2:]).all()


def test_bm25_is_its_formula():
    frame = hand(["red lamp lamp", "blue desk"], ["lamp tall", "green desk oak"])
    known = learn_known(DatasetDict(train=Dataset.from_pandas(frame)))
    texts, n, average = ["red lamp lamp", "blue desk", "lamp tall", "green desk oak"], 4, 10 / 4
    seen = lambda t: max(2, sum(t in text.split() for text in texts))  # noqa: E731  counted as `gram_weights` does
    idf = lambda t: np.log(1 + (n - seen(t) + 0.5) / (seen(t) + 0.5))  # noqa: E731

    def bm25(asked, text):
        f = {t: text.split().count(t) for t in asked.split()}
        damp = 1.5 * (0.25 + 0.75 * len(text.split()) / average)
        return sum(idf(t) * 2.5 * k / (k + damp) for t, k in f.items())

    expected = [
        (min(1, bm25(a, b) / bm25(a, a)) + min(1, bm25(b, a) / bm25(b, b))) / 2
        for a, b in zip(frame["left_title"], frame["right_title"], strict=True)
    ]
    assert np.allclose(d.pair_bm25(Look(frame, known)), expected, atol=1e-5)


def test_own_dimension_is_measured_and_checked():
    @d.dimension("same start", "lexical")
    def same_start(look):
        "1: the first letters are equal"
        first = [t[:1] or None for t in look.texts("title")]
        return np.array([float(a == b) if a and b else np.nan for a, b in zip(*look.both(first), strict=True)])

    try:
        frame = hand(["acme lamp", "bolt"], ["acme desk", "cobra"])
        assert measured(frame, "same start").tolist() == [1, 0]
        d.DIMENSIONS["same start"] = d.Dimension("same start", "lexical", "", lambda look: np.array([2.0, 0]))
        with pytest.raises(ProdsimError, match="'same start' gave 2: a likeness lies in 0 to 1"):
            measured(frame, "same start")
        d.DIMENSIONS["same start"] = d.Dimension("same start", "lexical", "", lambda look: np.array(["a", "b"]))
        with pytest.raises(ProdsimError, match="not one number a pair"):
            measured(frame, "same start")
    finally:
        del d.DIMENSIONS["same start"]


def test_a_dimension_of_pictures_has_its_place(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    for shade in ("red", "darkred", "blue"):
        Image.new("RGB", (4, 4), shade).save(tmp_path / f"{shade}.png")
    rng = np.random.default_rng(0)
    match = rng.integers(0, 2, 120)
    pairs = pd.DataFrame({"left_title": ["lamp"] * 120, "right_title": ["lamp"] * 120, "label": match})
    path = lambda shade: str(tmp_path / f"{shade}.png")  # noqa: E731
    pairs = pairs.assign(left_id="l", right_id="r", left_image=path("red"))
    pairs["right_image"] = [path("darkred") if y else path("blue") for y in match]
    pairs.loc[::10, "right_image"] = None  # one in ten has no picture

    @d.dimension("picture colour", "images")
    def picture_colour(look):
        "cosine of the pictures' mean colours"
        columns = (look.pairs["left_image"], look.pairs["right_image"])
        files = [[f if isinstance(f, str) else None for f in column] for column in columns]
        colour = {f: np.asarray(Image.open(f)).mean(axis=(0, 1)) for part in files for f in set(part) if f}
        unit = {f: v / np.linalg.norm(v) for f, v in colour.items()}
        return np.array([unit[a] @ unit[b] if a and b else np.nan for a, b in zip(*files, strict=True)])

    try:
        splits = {"train": pairs[:60], "valid": pairs[60:]}
        data = DatasetDict({s: Dataset.from_pandas(p.reset_index(drop=True)) for s, p in splits.items()})
        model = train_fusion(data, names=("title",), meaning="none", head="linear")
        assert "picture colour" in model.names and model.run["valid"]["average_precision"] > 0.9
        records = [{"title": "lamp", "image": path(shade)} for shade in ("red", "darkred")]
        (told,) = explain_pairs(model, one_pair(model, *records))
        seen = next(s for s in told["dimensions"] if s["name"] == "picture colour")
        assert told["match"] and seen["group"] == "images" and seen["value"] > 0.99
        blind = explain_pairs(model, one_pair(model, records[0], {"title": "lamp"}))[0]["dimensions"]
        assert next(s for s in blind if s["name"] == "picture colour")["unknown"] == "not stated on both sides"
    finally:
        del d.DIMENSIONS["picture colour"]


def test_dimensions_of_other_packages(monkeypatch):
    brought = metadata.EntryPoint("x", "prodsim.similarity.dimensions:DIMENSIONS", "prodsim.dimensions")
    monkeypatch.setattr(d.metadata, "entry_points", lambda group: [brought])
    with pytest.raises(ProdsimError, match="entry point x .* is no Dimension"):
        d.all_dimensions()
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: d.Dimension("theirs", "pictures", "", lambda look: 0))
    assert d.all_dimensions()["theirs"].group == "pictures"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: measure_dimensions(TEST.drop(columns="left_price"), KNOWN), "attribute 'price' is missing"),
        (lambda: measure_dimensions(TEST.assign(left_title=[["a"]] * len(TEST)), KNOWN), "left_title, row 0 .*a list"),
        (lambda: measure_dimensions(TEST.assign(right_title=True), KNOWN), "right_title, row 0 .*a bool"),
        (lambda: measure_dimensions(TEST, KNOWN, ["smell"]), "no dimension 'smell'"),
        (lambda: learn_known(PAIRS, roles={"colour": "title"}), "role colour=title"),
        (lambda: learn_known(PAIRS, names=("title", "brand")), "no attribute 'brand'"),
    ],
)
def test_mistakes_get_one_line(call, message):
    with pytest.raises(ProdsimError, match=message):
        call()


def events(pairs, day="2024-03-01"):
    return pd.DataFrame([(f"u{u}", item, "view", day) for u, item in pairs], columns=["user", "item", "kind", "time"])


TEA = events(
    [(u, i) for u in range(10) for i in ("tea", "milk")] + [(u, i) for u in range(10, 20) for i in ("nail", "glue")]
)


def test_behaviour_knows_who_goes_together_and_who_is_cold():
    table = pd.concat([TEA, events([(0, "rice"), (0, "tea")])])
    learned = learn_behaviour(table, least=5)
    frame = hand(["a"] * 3, ["b"] * 3).assign(left_id=["tea", "tea", "tea"], right_id=["milk", "nail", "rice"])
    known = learn_known(DatasetDict(train=Dataset.from_pandas(frame)), behaviour=learned)
    value = measure_dimensions(frame, known, ["met alike", "same basket"])
    assert value["same basket"][0] > 0.9 and value["same basket"][1] == 0
    assert value.iloc[2].isna().all() and learned.cold == 1
    assert measure_dimensions(frame, known).attrs["missing"]["season"] == "no events over six months or more"


def test_what_is_not_known_has_a_reason():
    frame = hand(["a"], ["b"]).assign(left_id="tea", right_id="rice", left_price="5", right_price="cheap")
    frame = frame.assign(left_brand="x", right_brand=None)
    known = learn_known(DatasetDict(train=Dataset.from_pandas(frame)), behaviour=learn_behaviour(TEA))
    said = {n: why_unknown(frame, known, n) for n in ("brand", "price", "met alike", "colour")}
    assert said["brand"] == "right states none" and said["price"] == "right states 'cheap', which is no price"
    assert said["met alike"] == "right is cold: too few shoppers met rice"
    assert said["colour"] == "not stated on both sides"
    nameless = frame.drop(columns="right_id")
    assert why_unknown(nameless, known, "same basket") == "right has no id, so no history"


def test_seasons_need_half_a_year():
    parts = [
        events([(u + 100 * m, i) for u in range(5) for i in ("sled", "skis")], f"2024-{m:02d}-01") for m in (1, 2, 12)
    ]
    parts += [events([(u + 100 * m, "fan") for u in range(5)], f"2024-{m:02d}-01") for m in (5, 6, 7, 8)]
    learned = learn_behaviour(pd.concat(parts))
    frame = hand(["a"] * 2, ["b"] * 2).assign(left_id=["sled", "sled"], right_id=["skis", "fan"])
    known = learn_known(DatasetDict(train=Dataset.from_pandas(frame)), behaviour=learned)
    assert np.allclose(measure_dimensions(frame, known, ["season"])["season"], [1, 0])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"known_items": ["o1"]}, "no event is about a known item"),
        ({"least": 50}, "fewer than two items have 50 shoppers"),
        ({"method": "magic"}, "choose ppmi or als"),
    ],
)
def test_events_that_teach_nothing(options, message):
    with pytest.raises(ProdsimError, match=message):
        learn_behaviour(TEA, **options)
    with pytest.raises(ProdsimError, match="no column 'time'"):
        learn_behaviour(TEA.drop(columns="time"))


def test_als_tells_groups_apart():
    pytest.importorskip("implicit")
    learned = learn_behaviour(TEA, method="als", width=2)
    a, b, c = learned.rows(["tea", "milk", "nail"])
    assert learned.vectors[a] @ learned.vectors[b] > 0.9 > learned.vectors[a] @ learned.vectors[c]


def test_what_is_known_is_written_and_read(tmp_path):
    known = learn_known(PAIRS, behaviour=learn_behaviour(TEA))
    d.save_known(known, tmp_path)
    read = d.load_known(tmp_path)
    assert measure_dimensions(TEST, read).equals(measure_dimensions(TEST, known))
    assert read.behaviour.ids == known.behaviour.ids and (read.behaviour.together != known.behaviour.together).nnz == 0
    (tmp_path / "known.safetensors").write_bytes(b"")
    with pytest.raises(ProdsimError, match="cannot be read"):
        d.load_known(tmp_path)


def test_looking_fills_no_basket():
    seen = pd.concat(
        [events([(u, i) for u in range(10) for i in ("cup", "mug")]), events([(u, "tea") for u in range(10)])]
    )
    got = events([(u, i) for u in range(10) for i in ("cup", "tea")]).assign(kind="purchase")
    idle = events([(u, "jar") for u in range(10, 20)]).assign(kind="purchase")
    learned = learn_behaviour(pd.concat([seen, got, idle]))
    cup, mug, tea = learned.rows(["cup", "mug", "tea"])
    assert learned.together[cup, tea] > 0.5 and learned.together[cup, mug] == 0
