"""Scores as labels: pairs turned and paired anew, the loss list by list, what a student learns and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from prodsim.core import ProdsimError
from prodsim.data import load_pairs
from prodsim.distillation import both_orders, distill, distillation_loss, neighbour_pairs, swapped
from prodsim.encoders import pretrained


@pytest.fixture(scope="module")
def pairs():
    return load_pairs("shop:easy-30")["train"].select(range(40))


@pytest.fixture(scope="module")
def student(tiny_model):
    return pretrained(tiny_model, names=["title"], device="cpu", precision="fp32")


def test_turned_pairs_are_the_same_pairs(pairs):
    turned = swapped(pairs)
    assert turned.column_names == pairs.column_names and turned["label"] == pairs["label"]
    assert list(turned["left_title"]) == list(pairs["right_title"]) and swapped(turned).to_dict() == pairs.to_dict()


def test_a_judge_is_asked_in_both_orders(pairs):
    class Judge:
        def score(self, asked):
            first = np.array(
                [text < other for text, other in zip(asked["left_title"], asked["right_title"], strict=True)]
            )
            return np.where(first, 0.9, 0.5).astype(np.float32)

    np.testing.assert_allclose(both_orders(Judge(), pairs), 0.75, atol=1e-6)  # odds of 9 and of 1: their root is 3

    class Sure:
        def score(self, asked):
            return np.ones(len(asked), dtype=np.float32)

    assert 0.99999 < both_orders(Sure(), pairs).max() < 1


def test_candidates_are_the_nearest_and_no_record_comes_twice(pairs, student):
    fresh, lists = neighbour_pairs(pairs, student, k=3, anchors=5, seed=1)
    assert len(fresh) == 15 and lists.tolist() == np.repeat(range(5), 3).tolist() and "label" not in fresh.column_names
    table = pairs.to_pandas().drop_duplicates("right_id")
    pool = dict(zip(table["right_id"], student.embed({"title": list(table["right_title"])}), strict=True))
    for start in range(0, 15, 3):
        own = fresh.select(range(start, start + 3))
        assert len(set(own["left_id"])) == 1 and len(set(own["right_id"])) == 3
        anchor = student.embed({"title": [own["left_title"][0]]})[0]
        best = sorted(pool, key=lambda i, anchor=anchor: -float(anchor @ pool[i]))[:3]
        assert set(best) == set(own["right_id"])
    assert len(set(fresh["left_id"])) == 5
    again, _ = neighbour_pairs(pairs, student, k=3, anchors=5, seed=1)
    assert again.to_dict() == fresh.to_dict()
    with pytest.raises(ProdsimError, match="k 1000: there are"):
        neighbour_pairs(pairs, student, k=1000)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 100))
def test_the_loss_is_cross_entropy_and_divergence_list_by_list(sizes, seed):
    torch.manual_seed(seed)
    n = sum(sizes)
    z, p = torch.randn(n, dtype=torch.double) * 3, torch.rand(n, dtype=torch.double)
    of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    kept = p.clamp(0.01, 0.99)
    level = F.binary_cross_entropy_with_logits(z, kept)
    order = 0.0
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        own = slice(start, start + size)
        order += F.kl_div(z[own].log_softmax(0), kept[own].logit().log_softmax(0), log_target=True, reduction="sum")
    expected = level + 0.5 * order / len(sizes)
    torch.testing.assert_close(distillation_loss(z, p, of, weight=0.5), expected)


def test_a_student_learns_the_order_it_is_told_and_the_first_one_stays(pairs, student):
    before = student.score(pairs)
    told = np.random.default_rng(0).permutation(len(pairs)) / (len(pairs) - 1)  # no likeness of texts is in this
    options = {"epochs": 12, "learning_rate": 3e-3, "seed": 3}
    taught = distill(student, pairs, told, np.arange(len(pairs)) // 4, **options)
    np.testing.assert_array_equal(student.score(pairs), before)
    correlation = [np.corrcoef(told, model.score(pairs))[0, 1] for model in (student, taught)]
    assert correlation[1] > 0.7 > correlation[0] + 0.2
    again = distill(student, pairs, told, np.arange(len(pairs)) // 4, **options)
    np.testing.assert_array_equal(again.score(pairs), taught.score(pairs))


def test_what_cannot_be_distilled_is_refused(pairs, student, tiny_model):
    lists = np.arange(len(pairs))
    cross = pretrained(tiny_model, "cross", ["title"], device="cpu")
    with pytest.raises(ProdsimError, match="the student must be of kind bi"):
        distill(cross, pairs, np.zeros(len(pairs)), lists)
    for wrong in (np.full(len(pairs), 1.5), np.zeros(3), np.full(len(pairs), np.nan)):
        with pytest.raises(ProdsimError, match="probabilities between 0 and 1"):
            distill(student, pairs, wrong, lists)
