"""Contrastive training: groups from labels, batches in which a negative is one, the loss whole or in parts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prodsim.contrastive import ContrastiveLoss, GroupBatches, match_groups, record_weights
from prodsim.core import ProdsimError
from prodsim.encoders import pretrained
from prodsim.losses import supervised_contrastive

PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 1)), min_size=1, max_size=40)


def grouped(rows):
    left, right, labels = zip(*[(f"l{a}", f"r{b}", y) for a, b, y in [*rows, (0, 0, 1)]], strict=True)
    return match_groups(left, right, labels)


@given(PAIRS)
def test_groups_are_the_connected_components(rows):
    texts, groups, sides = grouped(rows)
    assert len(set(texts)) == len(texts) == len(groups) == len(sides)
    group = dict(zip(texts, groups.tolist(), strict=True))
    reached = {text: {text} for text in texts}  # by hand: grow until nothing changes
    for _ in range(len(texts)):
        for a, b, y in [*rows, (0, 0, 1)]:
            if y:
                both = reached[f"l{a}"] | reached[f"r{b}"]
                for text in both:
                    reached[text] = reached[text] | both
    for a in texts:
        assert {b for b in texts if group[b] == group[a]} == reached[a]


def test_equal_texts_of_both_sides_are_one_product():
    texts, groups, sides = match_groups(["same", "a"], ["b", "same"], [0, 0])
    assert groups[texts.index("a")] != groups[texts.index("b")]
    assert len(set(groups[[i for i, t in enumerate(texts) if t == "same"]])) == 1 and sorted(sides) == [0, 0, 1, 1]
    with pytest.raises(ProdsimError, match="needs matches"):
        match_groups(["a"], ["b"], [0])


@settings(deadline=None)
@given(PAIRS, st.integers(2, 40), st.integers(0, 5))
def test_batches_hold_positives_and_lone_records_of_one_side(rows, size, seed):
    texts, groups, sides = grouped(rows)
    counts = np.bincount(groups)
    batches = GroupBatches(texts, size, groups, sides, seed=seed)
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        made = list(batches)
        assert made == list(batches) and len(made) == len(batches)
        lone = [i for b in made for i in b if counts[groups[i]] == 1]
        assert len(lone) == len(set(lone)), "a lone record stands once in an epoch"
        either = {s for s in (0, 1) if any(counts[groups[i]] == 1 and sides[i] == s for i in range(len(texts)))}
        if len(made) >= len(either):
            assert len(lone) == (counts == 1).sum() or len(made) < 4, "none is left out for good"
        for b in made:
            assert len(b) == len(set(b))
            assert len({sides[i] for i in b if counts[groups[i]] == 1}) <= 1
            assert np.bincount(groups[b]).max() >= 2, "a batch has a positive"
        assert {groups[i] for b in made for i in b} >= set(np.flatnonzero(counts > 1)), "every product comes"


def test_without_sides_lone_records_come_from_wherever():
    groups, sides = np.concatenate([np.repeat([0, 1], 2), np.arange(2, 62)]), np.tile([0, 1], 32)
    mixed = [{sides[i] for i in batch if i > 3} for batch in GroupBatches(range(64), 16, groups, sides * 0)]
    assert {0, 1} in mixed and all(
        len({sides[i] for i in b if i > 3}) == 1 for b in GroupBatches(range(64), 16, groups, sides)
    )


def test_a_product_with_many_offers_does_not_fill_a_batch():
    groups, sides = np.repeat([0, 1, 2, *range(3, 40)], [300, 5, 5] + [1] * 37), np.zeros(347, dtype=int)
    for batch in GroupBatches(range(347), 64, groups, sides):
        assert np.bincount(groups[batch]).max() <= 8


@pytest.mark.parametrize("parts", [1, 3, 4])
def test_loss_in_parts_is_the_loss_of_the_batch(tiny_model, parts):
    model = pretrained(tiny_model, "bi", ["title"], 32, "cpu", 0.0, "fp32")
    texts = ["acme lamp " * n for n in (1, 7, 2, 9, 1, 4)]
    groups = torch.tensor([5, 5, 8, 8, 9, 10])
    tokens = dict(model.tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt"))
    model.encoder.train()
    value = ContrastiveLoss(model.encoder, 0.1, parts)([tokens], groups)
    vectors = model.encoder(dict(tokens))["sentence_embedding"]
    torch.testing.assert_close(value, supervised_contrastive(vectors, groups, 0.1), atol=1e-5, rtol=1e-4)
    value.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters())


def test_equal_weights_change_nothing_and_a_weight_of_zero_silences_an_anchor(tiny_model):
    model = pretrained(tiny_model, names=("title",)).encoder.eval()
    loss = ContrastiveLoss(model, parts=2)
    texts = ["red lamp", "red lamp 2", "blue chair", "blue chairs", "green table of oak"]
    tokens = model.tokenizer(texts, padding=True, return_tensors="pt")
    groups = torch.tensor([0, 0, 1, 1, 2])

    def value(weights):
        with torch.no_grad():
            return float(loss([tokens], torch.stack([groups.double(), torch.tensor(weights)], dim=1)))

    with torch.no_grad():
        plain = float(loss([tokens], groups))
        each = supervised_contrastive(model(dict(tokens))["sentence_embedding"], groups, reduction="none")
    assert value([3.0] * 5) == pytest.approx(plain, abs=1e-6), "the lone record is no anchor, whatever it weighs"
    assert value([1.0, 1.0, 0.0, 0.0, 7.0]) == pytest.approx(float(each[:2].mean()), abs=1e-5)
    assert value([0.0, 0.0, 0.0, 0.0, 1.0]) == 0


def test_a_record_weighs_what_its_matches_count_on_average():
    found = record_weights(["a", "b", "c"], ["x", "x", "y"], [1, 1, 0], np.array([1.0, 0.5, 2.0]))
    assert found.tolist() == [1.0, 0.5, 1.0, 0.75, 1.0], "no match holds c and y"
