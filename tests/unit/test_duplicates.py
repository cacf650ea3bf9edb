"""Near-duplicates: typing is forgiven, a contradicting word is not."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prodsim.data import components
from prodsim.quality.audit import audit_data
from prodsim.quality.duplicates import comparison_words, near_duplicates
from prodsim.shop import simulate


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Sony WH-1000XM4 headphones", "sony headphones (wh 1000xm4)", True),
        ("canon lbp2900 laser printer", "canon lbp2900 laser pritner", True),
        ("caf&eacute; crème dg450 grinder", "Café creme ＤＧ４５０ grinder", True),
        ("海尔 BCD-215 冰箱 白色", "海尔冰箱BCD215白色", True),
        ("samsung 55tu7000 tv", "samsung 65tu7000 tv", False),
        ("acme l100 lamp black", "acme l100 lamp white", False),
        ("iphone 8 64gb a1905", "iphone 8 plus 64gb a1905", False),
        ("海尔 BCD-215 冰箱 白色", "海尔 BCD-215 冰箱 黑色", False),
        ("free standing freezer", "free standing fridge freezer", False),
        ("", "", False),
    ],
)
def test_near_duplicates_read_the_words(a, b, same):
    texts = [" ".join(comparison_words(t)) for t in (a, b)]
    assert len(near_duplicates(texts)) == same


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("vuzex camera remote", "remote VUZEX camera", True),  # too short to tell a product, but one text
        ("calitek memory card calitek electronics", "calitek memory card caltiek electronics", True),
        ("vuzex camera remote", "vuzex camera remote black", False),  # a word left out
        ("vuzex camera remote", "vuzex tv remote", False),
    ],
)
def test_a_text_that_identifies_nothing_is_still_the_same_text(a, b, same):
    texts = [" ".join(comparison_words(t)) for t in (a, b)]
    assert len(near_duplicates(texts)) == 0
    assert len(near_duplicates(texts, identified=False)) == same


def test_near_duplicates_on_the_shop():
    shop = simulate(products=400, seed=23, difficulty="medium")
    titles = shop.offers["title"] + " " + shop.offers["description"].fillna("")
    rng = np.random.default_rng(0)
    chosen = [
        i for i in rng.permutation(len(titles)) if any(c.isdigit() for c in titles[i]) and len(titles[i].split()) > 7
    ][:120]
    copies = []
    for i in chosen:
        words = titles[i].split()
        j = int(rng.integers(len(words) - 1))
        words[j], words[j + 1] = words[j + 1], words[j]
        copies.append(" ".join(words).upper())
    texts = [" ".join(comparison_words(t)) for t in [*titles, *copies]]
    numbers = [*shop.offers["price"].fillna(""), *shop.offers["price"].fillna("").iloc[chosen]]
    pairs = near_duplicates(texts, numbers)
    product = np.array([*shop.offers["product_id"], *shop.offers["product_id"].iloc[chosen]])
    assert (product[pairs["left"]] == product[pairs["right"]]).mean() >= 0.97
    group = components(len(texts), pairs["left"].to_numpy(), pairs["right"].to_numpy())
    assert (group[len(titles) :] == group[chosen]).mean() >= 0.95


def test_a_second_partner_is_named_where_records_have_one():
    "Forty products, one offer on either side; one record gets a second match, another a retyped copy of its own."
    name = [f"acme lamp ab{i}00 with {'abcdefgh'[i % 8] * 3} shade and cable" for i in range(40)]
    rows = [(f"{n} seller", n, 1) for n in name]
    rows += [(f"{n} seller", name[(i + k) % 40], 0) for i, n in enumerate(name) for k in (3, 7)]
    wrong = (f"{name[5]} seller", name[9], 1)  # of the records of rows 5 and 9
    copy = (f"{name[20]} seller", name[20].upper(), 1)
    table = pd.DataFrame([*rows, wrong, copy], columns=["left_title", "right_title", "label"])
    found = {f["name"]: f for f in audit_data(table, label_model=False)["findings"]}
    assert found["one_to_one"]["count"] >= 40
    told = found["one_to_one_broken"]
    assert told["where"] == ["test 5", "test 9", f"test {len(rows)}"] and told["level"] == "warning"
    clean = audit_data(table.iloc[: len(rows)], label_model=False)["findings"]
    assert "one_to_one_broken" not in {f["name"] for f in clean} and "one_to_one" in {f["name"] for f in clean}


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_normalisation_is_idempotent(text):
    words = comparison_words(text)
    assert comparison_words(" ".join(words)) == words
