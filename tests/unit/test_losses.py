"""Losses: against torch's own, against finite differences, at their limits, at extreme inputs, and on bad ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from prodsim.core import ProdsimError
from prodsim.losses import (
    attention_pooling,
    batch_hard_triplets,
    binary_cross_entropy,
    binary_cross_entropy_gradient,
    cosine_gradient,
    cosine_similarities,
    focal_gradient,
    focal_loss,
    gradient_check,
    info_nce,
    softmax_cross_entropy,
    softmax_cross_entropy_gradient,
    supervised_contrastive,
    triplet_loss,
)

TIGHT = 1e-6
seeds = st.integers(0, 10_000)
temperatures = st.floats(0.05, 5)
quick = settings(max_examples=25, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "Two threads on a busy machine wait milliseconds for each other at every softmax of twenty numbers."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@st.composite
def labelled(draw):
    "Logits of ordinary size with labels, hard or soft."
    size = draw(st.integers(1, 8))
    logits = draw(st.lists(st.floats(-8, 8), min_size=size, max_size=size))
    labels = draw(st.lists(st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)), min_size=size, max_size=size))
    return torch.tensor(logits, dtype=torch.float64), torch.tensor(labels, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- losses on logits


@quick
@given(labelled(), st.floats(0.1, 20), st.floats(0, 1), st.sampled_from(["mean", "sum"]))
def test_cross_entropy_gradient_three_ways(data, pos_weight, smoothing, reduction):
    logits, labels = data
    knobs = {"pos_weight": pos_weight, "smoothing": smoothing, "reduction": reduction}
    formula = binary_cross_entropy_gradient(logits, labels, **knobs)
    assert gradient_check(lambda z: binary_cross_entropy(z, labels, **knobs), logits, formula) < TIGHT


@quick
@given(labelled(), st.floats(0, 5), st.none() | st.floats(0, 1), st.sampled_from(["mean", "sum"]))
def test_focal_gradient_three_ways(data, gamma, alpha, reduction):
    logits, labels = data
    knobs = {"gamma": gamma, "alpha": alpha, "reduction": reduction}
    formula = focal_gradient(logits, labels, **knobs)
    assert gradient_check(lambda z: focal_loss(z, labels, **knobs), logits, formula) < TIGHT


@quick
@given(labelled(), st.floats(0.1, 20), st.sampled_from(["mean", "sum", "none"]))
def test_cross_entropy_is_torchs(data, pos_weight, reduction):
    logits, labels = data
    theirs = F.binary_cross_entropy_with_logits(
        logits, labels, pos_weight=torch.tensor(pos_weight, dtype=torch.float64), reduction=reduction
    )
    ours = binary_cross_entropy(logits, labels, pos_weight=pos_weight, reduction=reduction)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_smoothing_is_torchs_for_two_classes():
    z, y = normal(9), torch.arange(9) % 2
    theirs = F.cross_entropy(torch.stack([torch.zeros_like(z), z], 1), y, label_smoothing=0.3)
    torch.testing.assert_close(binary_cross_entropy(z, y, smoothing=0.3), theirs)


@quick
@given(labelled())
def test_limits_give_plain_cross_entropy(data):
    logits, labels = data
    plain = binary_cross_entropy(logits, labels)
    for limit in (
        focal_loss(logits, labels, gamma=0),
        2 * focal_loss(logits, labels, gamma=0, alpha=0.5),
        binary_cross_entropy(logits, labels, pos_weight=1),
        binary_cross_entropy(logits, labels, smoothing=0),
    ):
        torch.testing.assert_close(limit, plain)


def test_focal_is_the_papers_on_worked_cases():
    p = torch.tensor([0.9, 0.6, 0.2], dtype=torch.float64)
    expected = [0.25 * 0.1**2 * -math.log(0.9), 0.25 * 0.4**2 * -math.log(0.6), 0.75 * 0.2**2 * -math.log(0.8)]
    ours = focal_loss(p.logit(), torch.tensor([1, 1, 0]), gamma=2, alpha=0.25, reduction="none")
    assert ours.tolist() == pytest.approx(expected, rel=1e-9)


def test_full_smoothing_rests_at_zero():
    z = torch.zeros(4, dtype=torch.float64)
    slopes = binary_cross_entropy_gradient(z, torch.tensor([0, 1, 0, 1]), smoothing=1.0)
    assert slopes.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [17.0, 100.0, 1e4])
@pytest.mark.parametrize(
    "loss",
    [binary_cross_entropy, focal_loss, lambda z, y: focal_loss(z, y, gamma=0.5), lambda z, y: focal_loss(z, y, 5.0)],
)
def test_extreme_logits_are_safe(loss, size, dtype):
    logits = torch.tensor([-size, size, -size, size, 0.0], dtype=dtype, requires_grad=True)
    labels = torch.tensor([0, 1, 1, 0, 1])
    value = loss(logits, labels)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()
    assert value.item() == pytest.approx(2 * size / 5, rel=0.05)  # two confident mistakes, each as dear as its logit
    assert logits.grad[2:4].tolist() == pytest.approx([-0.2, 0.2], rel=0.02)
    assert logits.grad[:2].abs().max() < 1e-6


def test_gradients_by_hand_are_safe_at_extreme_logits():
    logits, labels = torch.tensor([-1e4, 1e4, -1e4, 1e4]), torch.tensor([0, 1, 1, 0])
    expected = torch.tensor([0.0, 0.0, -1.0, 1.0])
    assert torch.equal(binary_cross_entropy_gradient(logits, labels, reduction="none"), expected)
    assert torch.equal(focal_gradient(logits, labels, reduction="none"), expected)


def test_slope_at_zero_is_one_half():
    z = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    binary_cross_entropy(z, torch.ones(1)).backward()
    assert z.grad.item() == -0.5


def test_integer_labels_and_reductions():
    z, y = normal(2, 3), torch.tensor([[0, 1, 1], [1, 0, 0]])
    each = binary_cross_entropy(z, y, reduction="none")
    assert each.shape == z.shape
    torch.testing.assert_close(each.sum(), binary_cross_entropy(z, y, reduction="sum"))
    torch.testing.assert_close(each.mean(), binary_cross_entropy(z, y))


# ---------------------------------------------------------------- losses on embeddings


@quick
@given(seeds, temperatures, st.booleans(), st.booleans())
def test_info_nce_gradient(seed, temperature, symmetric, grouped):
    left, right = normal(5, 3, seed=seed), normal(5, 3, seed=seed + 1)
    groups = torch.tensor([0, 0, 1, 2, 1]) if grouped else None
    stacked = torch.cat([left, right])
    error = gradient_check(lambda x: info_nce(x[:5], x[5:], temperature, groups, symmetric), stacked)
    assert error < TIGHT


@quick
@given(seeds, temperatures)
def test_info_nce_gradient_by_hand(seed, temperature):
    left, right, truth = normal(4, 3, seed=seed), normal(6, 3, seed=seed + 1), torch.eye(4, 6).double()
    slopes = softmax_cross_entropy_gradient(cosine_similarities(left, right) / temperature, truth) / temperature
    formula = cosine_gradient(slopes, left, right)
    assert gradient_check(lambda x: info_nce(x, right, temperature), left, formula) < TIGHT
    assert (formula * left).sum(1).abs().max() < 1e-12  # a cosine loss turns a vector and does not stretch it


@quick
@given(seeds, temperatures)
def test_supervised_contrastive_gradient_by_hand(seed, temperature):
    x, groups = normal(7, 3, seed=seed), torch.tensor([0, 0, 0, 1, 1, 2, 3])
    others = ~torch.eye(7, dtype=torch.bool)
    positive = ((groups[:, None] == groups) & others).double()
    targets = positive / positive.sum(1, keepdim=True).clamp(min=1)
    slopes = softmax_cross_entropy_gradient(cosine_similarities(x, x) / temperature, targets, others) / temperature
    formula = cosine_gradient(slopes + slopes.T, x, x)
    assert gradient_check(lambda e: supervised_contrastive(e, groups, temperature), x, formula) < TIGHT


@quick
@given(seeds, st.sampled_from(["cosine", "euclidean"]), st.floats(0.05, 1))
def test_soft_triplet_gradient(seed, distance, temperature):
    x = normal(6, 3, seed=seed)
    assert gradient_check(lambda e: triplet_loss(*e.split(2), 0.3, distance, temperature), x) < TIGHT


def test_hinge_triplet_gradient_away_from_its_kink():
    anchor, positive, negative = normal(3, 6, 3, seed=4)
    violation = F.cosine_similarity(anchor, negative) - F.cosine_similarity(anchor, positive) + 0.3
    assert violation.abs().min() > 1e-2 and 0 < (violation > 0).sum() < 6
    active = torch.diag((violation > 0).double()) / 6
    formula = cosine_gradient(active, anchor, negative) - cosine_gradient(active, anchor, positive)
    assert gradient_check(lambda x: triplet_loss(x, positive, negative, 0.3), anchor, formula) < TIGHT


@quick
@given(seeds, temperatures)
def test_info_nce_is_torchs_cross_entropy(seed, temperature):
    left, right = normal(5, 4, seed=seed), normal(8, 4, seed=seed + 1)
    logits = cosine_similarities(left, right) / temperature
    own = torch.arange(5)
    torch.testing.assert_close(info_nce(left, right, temperature), F.cross_entropy(logits, own))
    both = (F.cross_entropy(logits, own) + F.cross_entropy(logits[:, :5].T, own)) / 2
    torch.testing.assert_close(info_nce(left, right, temperature, symmetric=True), both)


@quick
@given(seeds, temperatures)
def test_info_nce_with_one_negative_is_logistic(seed, temperature):
    left, right = normal(1, 4, seed=seed), normal(2, 4, seed=seed + 1)
    similar = cosine_similarities(left, right)[0]
    logistic = binary_cross_entropy((similar[:1] - similar[1:]) / temperature, torch.ones(1))
    torch.testing.assert_close(info_nce(left, right, temperature), logistic)


@quick
@given(seeds, temperatures, st.integers(2, 6))
def test_supervised_contrastive_with_one_positive_is_info_nce(seed, temperature, products):
    offers, groups = normal(2 * products, 3, seed=seed), torch.arange(products).repeat(2)
    twins = offers.roll(products, dims=0)
    ours = supervised_contrastive(offers, groups, temperature)
    torch.testing.assert_close(ours, info_nce(offers, twins, temperature, groups=groups))


def test_supervised_contrastive_is_the_papers_sum():
    x, groups, temperature = normal(6, 3), [0, 0, 0, 1, 1, 2], 0.3
    z = F.normalize(x, dim=1)
    losses = []
    for i in range(6):
        positives = [p for p in range(6) if p != i and groups[p] == groups[i]]
        below = sum(math.exp(z[i] @ z[a] / temperature) for a in range(6) if a != i)
        terms = [math.log(math.exp(z[i] @ z[p] / temperature) / below) for p in positives]
        losses.append(-sum(terms) / len(positives) if positives else 0.0)
    each = supervised_contrastive(x, groups, temperature, reduction="none")
    torch.testing.assert_close(each, torch.tensor(losses, dtype=torch.float64))
    mean_of_five = supervised_contrastive(x, groups, temperature).item()  # the sixth has no say
    assert mean_of_five == pytest.approx(sum(losses) / 5)


@quick
@given(seeds)
def test_triplet_is_torchs_and_the_cold_limit_of_softmax(seed):
    left, right = normal(6, 3, seed=seed), normal(6, 3, seed=seed + 1)
    negative = right.roll(1, 0)
    theirs = F.triplet_margin_loss(left, right, negative, margin=0.5)
    torch.testing.assert_close(triplet_loss(left, right, negative, 0.5, "euclidean"), theirs)
    similar = cosine_similarities(left, right)
    hardest = similar.masked_fill(torch.eye(6, dtype=torch.bool), -2).argmax(1)
    hinge = triplet_loss(left, right, right[hardest], margin=0.0)
    for temperature in (0.5, 0.05, 0.005):
        gap = (temperature * info_nce(left, right, temperature) - hinge).item()
        assert -1e-12 <= gap <= temperature * math.log(6) + 1e-12
        soft = triplet_loss(left, right, right[hardest], margin=0.0, temperature=temperature)
        assert -1e-12 <= (soft - hinge).item() <= temperature * math.log(2) + 1e-12


def test_temperature_moves_the_push_from_everyone_to_the_hardest():
    similar = torch.tensor([[0.7, 0.1, 0.4, 0.65]], dtype=torch.float64)
    target = torch.eye(1, 4, dtype=torch.float64)

    def push(temperature):
        slope = softmax_cross_entropy_gradient(similar / temperature, target)[0, 1:]
        return slope / slope.sum()

    torch.testing.assert_close(push(1e7), torch.full((3,), 1 / 3, dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(push(1e-3), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))


def test_contrastive_losses_are_safe_at_a_tiny_temperature():
    left = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = info_nce(left, torch.tensor([[-1.0, 0.1], [1.0, 0.1]]), temperature=1e-4)
    value.backward()
    assert value.item() > 5000 and torch.isfinite(left.grad).all()


@quick
@given(seeds, st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_duplicates_in_a_batch_are_not_pushed(seed, groups):
    left, right = normal(6, 3, seed=seed), normal(6, 3, seed=seed + 1).requires_grad_()
    for i in range(6):
        own = info_nce(left, right, 0.1, groups, reduction="none")[i]
        if not own.requires_grad:
            continue
        (slope,) = torch.autograd.grad(own, right)
        moved = set((slope.abs().sum(1) > 0).nonzero().flatten().tolist())
        assert not {j for j in range(6) if j != i and groups[j] == groups[i]} & moved
        if len(set(groups)) > 1:
            assert {j for j in range(6) if groups[j] != groups[i]} <= moved
        else:
            assert own.item() == 0


def test_groups_that_all_differ_change_nothing():
    left, right = normal(5, 3), normal(5, 3, seed=1)
    for symmetric in (False, True):
        plain = info_nce(left, right, symmetric=symmetric)
        torch.testing.assert_close(info_nce(left, right, groups=range(5), symmetric=symmetric), plain)


def test_symmetric_means_symmetric():
    left, right, groups = normal(5, 3), normal(5, 3, seed=1), [0, 1, 1, 2, 3]
    there = info_nce(left, right, groups=groups, symmetric=True)
    torch.testing.assert_close(there, info_nce(right, left, groups=groups, symmetric=True))
    assert not torch.isclose(info_nce(left, right, groups=groups), info_nce(right, left, groups=groups))


def test_softmax_cross_entropy_ignores_what_is_not_allowed():
    logits, targets = normal(3, 4), torch.eye(3, 4).double()
    allowed = torch.ones(3, 4, dtype=torch.bool)
    allowed[:, 3] = False
    torch.testing.assert_close(
        softmax_cross_entropy(logits, targets, allowed), softmax_cross_entropy(logits[:, :3], targets[:, :3])
    )
    assert softmax_cross_entropy_gradient(logits, targets, allowed)[:, 3].abs().max() == 0


def test_hardest_triplets_on_a_worked_case():
    degrees = torch.tensor([0.0, 20.0, 50.0, 60.0, 170.0, 300.0], dtype=torch.float64).deg2rad()
    x = torch.stack([degrees.cos(), degrees.sin()], 1)
    anchors, positives, negatives = batch_hard_triplets(x, [0, 0, 0, 1, 1, 2])
    assert anchors.tolist() == [0, 1, 2, 3, 4]  # the last product has one offer
    assert positives.tolist() == [2, 2, 0, 4, 3]
    assert negatives.tolist() == [3, 3, 3, 2, 2]
    loss = triplet_loss(x[anchors], x[positives], x[negatives], margin=0.2)
    assert loss > triplet_loss(x[anchors], x[positives], x[[5, 5, 5, 5, 5]], margin=0.2)


# ---------------------------------------------------------------- attention


@quick
@given(seeds, temperatures)
def test_attention_lies_between_mean_and_largest(seed, temperature):
    query, vectors = normal(4, seed=seed), normal(5, 4, seed=seed + 1)
    pooled, weights = attention_pooling(query, vectors, temperature)
    fits = vectors @ query
    assert weights.sum().item() == pytest.approx(1)
    assert fits.mean() - 1e-9 <= query @ pooled <= fits.max() + 1e-9
    torch.testing.assert_close(attention_pooling(query, vectors, 1e9)[0], vectors.mean(0), rtol=1e-5, atol=1e-7)


def test_attention_over_a_batch_is_attention_one_by_one():
    queries, vectors = normal(3, 4), normal(3, 5, 4, seed=1)
    pooled, weights = attention_pooling(queries, vectors, 0.5)
    for i in range(3):
        one, share = attention_pooling(queries[i], vectors[i], 0.5)
        torch.testing.assert_close(pooled[i], one)
        torch.testing.assert_close(weights[i], share)


def test_attention_over_one_vector_does_not_know_the_query():
    vector = normal(1, 4)
    torch.testing.assert_close(attention_pooling(normal(4, seed=1), vector)[0], vector[0])


# ---------------------------------------------------------------- the check itself


def test_gradient_check_finds_a_wrong_formula_and_a_broken_backward():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return (x**2).sum()

        @staticmethod
        def backward(ctx, slope):
            return slope * torch.ones(3, dtype=torch.float64)

    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert gradient_check(lambda v: (v**2).sum(), x, 2 * x) < 1e-10
    assert gradient_check(lambda v: (v**2).sum(), x, 2.001 * x) == pytest.approx(5e-4, rel=0.01)
    assert gradient_check(Broken.apply, x) > 0.5
    assert gradient_check(lambda v: torch.tensor(1.0), x) == 0


def test_gradient_check_leaves_its_input_alone():
    x = normal(3)
    before = x.clone()
    gradient_check(lambda v: v.exp().sum(), x)
    assert torch.equal(x, before) and not x.requires_grad and x.grad is None


# ---------------------------------------------------------------- bad input: one line that says what and where

two, three = torch.zeros(2), torch.zeros(3)
row = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: binary_cross_entropy(two, three), r"shape \(2,\) and labels \(3,\)"),
        (lambda: binary_cross_entropy(two[:, None], two), r"shape \(2, 1\) and labels \(2,\)"),
        (lambda: binary_cross_entropy(two, torch.tensor([0.0, 2.0])), "label 2 at position 1"),
        (lambda: binary_cross_entropy(two, torch.tensor([-1, 0])), "label -1 at position 0"),
        (lambda: binary_cross_entropy(two, torch.tensor([0.0, math.nan])), "label nan at position 1"),
        (lambda: binary_cross_entropy(torch.zeros(0), torch.zeros(0)), "empty batch"),
        (lambda: binary_cross_entropy(torch.tensor([1, 2]), two), "floating-point"),
        (lambda: binary_cross_entropy(two, two, smoothing=1.5), "smoothing is 1.5"),
        (lambda: binary_cross_entropy(two, two, pos_weight=0), "pos_weight is 0"),
        (lambda: binary_cross_entropy(two, two, reduction="total"), "reduction is 'total'"),
        (lambda: binary_cross_entropy_gradient(two, three), "must agree"),
        (lambda: focal_loss(two, two, gamma=-1), "gamma is -1"),
        (lambda: focal_loss(two, two, alpha=2), "alpha is 2"),
        (lambda: focal_gradient(two, torch.tensor([0, 7])), "label 7 at position 1"),
        (lambda: cosine_similarities(row, torch.ones(2, 4)), "of one width"),
        (lambda: info_nce(row, row, temperature=0), "temperature is 0"),
        (lambda: info_nce(row, row, temperature=math.nan), "temperature is nan"),
        (lambda: info_nce(row, row[:1]), "2 left and 1 right"),
        (lambda: info_nce(row, row, groups=[1, 2, 3]), r"2 embeddings need \(2,\)"),
        (lambda: info_nce(torch.zeros(0, 3), torch.zeros(0, 3)), "0 left"),
        (lambda: supervised_contrastive(row, [0, 1]), "a batch without positives"),
        (lambda: supervised_contrastive(row, [0, 0], temperature=-1), "temperature is -1"),
        (lambda: supervised_contrastive(row, [0, 0, 0]), "groups have shape"),
        (lambda: triplet_loss(row, row, torch.ones(3, 3)), r"\(2, 3\), \(2, 3\), \(3, 3\)"),
        (lambda: triplet_loss(row, row, row, margin=-0.1), "margin is -0.1"),
        (lambda: triplet_loss(row, row, row, distance="manhattan"), "distance is 'manhattan'"),
        (lambda: batch_hard_triplets(row, [0, 0]), "a positive and a negative"),
        (lambda: attention_pooling(two, row), "widths 2 and 3"),
        (lambda: softmax_cross_entropy(row, two), "must agree"),
        (lambda: softmax_cross_entropy(row, 0 * row), "no row has a target"),
        (lambda: gradient_check(lambda v: v.sum(), two), "float64"),
        (lambda: gradient_check(lambda v: v, two.double()), "must be one number"),
        (lambda: gradient_check(lambda v: v.sum(), two.double(), three.double()), "must agree"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ProdsimError, match=says) as error:
        call()
    assert "\n" not in str(error.value)
