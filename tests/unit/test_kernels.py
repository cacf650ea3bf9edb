"""Replaced parts compute what the originals compute."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from prodsim.core import has_bf16
from prodsim.encoders import load_model, pretrained, save_model
from prodsim.kernels import (
    ByteDropout,
    LeanLayerNorm,
    NaturalAttention,
    attention,
    operations,
    prefix_lengths,
    product_rate,
    quicken,
)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 4))
def test_attention_and_its_gradient_are_those_of_torch(lengths, heads, width):
    torch.manual_seed(0)
    shape = (len(lengths), heads, max(lengths), width)
    ours = [torch.randn(shape, dtype=torch.double, requires_grad=True) for _ in range(3)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    weight = torch.randn(shape, dtype=torch.double).transpose(1, 2) * mask[:, :, None, None]
    out = NaturalAttention.apply(*ours, lengths, width**-0.5)
    expected = F.scaled_dot_product_attention(*theirs, attn_mask=mask[:, None, None, :]).transpose(1, 2)
    torch.testing.assert_close(out[mask], expected[mask])
    assert not out[~mask].any()
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("rows", [[[1, 1, 0]], [[0, 1, 1]], [[1, 0, 1], [1, 1, 1]], [[1, 1, 1]], None])
def test_any_mask_gives_what_torch_gives(rows):
    torch.manual_seed(0)
    mask = None if rows is None else torch.tensor(rows)
    q, k, v = (torch.randn(len(rows or [0]), 2, 3, 4, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    out, _ = attention(None, q, k, v, mask)
    wide = None if mask is None else mask[:, None, None, :].bool()
    expected = F.scaled_dot_product_attention(*(x.float() for x in (q, k, v)), attn_mask=wide).transpose(1, 2)
    known = torch.ones_like(out[:, :, 0, 0], dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(out.float()[known], expected[known], atol=0.03, rtol=0.03)


def test_lengths_of_masks():
    assert prefix_lengths(None, (2, 5)) == [5, 5]
    assert prefix_lengths(torch.tensor([[1, 1, 0], [1, 0, 0]]), (2, 3)) == [2, 1]
    for mask in ([[0, 1, 1]], [[1, 0, 1]], [[0, 0, 0]]):
        assert prefix_lengths(torch.tensor(mask), (1, 3)) is None


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation_and_repeats_with_the_seed(p):
    layer, x = ByteDropout(p), torch.randn(400_001).abs() + 1
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    assert torch.equal(first, layer(x)) and not torch.equal(first, layer(x))
    dropped = (first == 0).float().mean().item()
    assert dropped == pytest.approx(round(256 * p) / 256, abs=0.005)
    assert first.mean().item() == pytest.approx(x.mean().item(), rel=0.02)
    assert torch.unique((first / x)[first != 0].round(decimals=3)).numel() == 1
    assert torch.equal(layer.eval()(x), x)


def test_dropout_stops_the_gradient_where_it_dropped():
    x = torch.ones(1000, requires_grad=True)
    out = ByteDropout(0.5)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach())


@pytest.mark.parametrize("p", [0.0, 0.0001, 1.0])
def test_dropout_beyond_a_byte_is_torchs(p):
    x = torch.ones(1000)
    assert ByteDropout(p)(x).mean().item() == pytest.approx(1 - p if p == 1 else 1, abs=0.05)


def test_layer_norm_is_torchs_outside_autocast_and_rounded_inside():
    torch.manual_seed(0)
    plain, lean, x = torch.nn.LayerNorm(16), LeanLayerNorm(16), torch.randn(4, 16)
    lean.load_state_dict(plain.state_dict())
    assert torch.equal(plain(x), lean(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = lean(x)
    assert inside.dtype is torch.bfloat16
    torch.testing.assert_close(inside.float(), plain(x), atol=0.03, rtol=0.02)


@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_a_quickened_model_scores_alike_and_is_saved_as_any_other(tiny_model, tmp_path, kind):
    models = []
    for quick in (False, True):
        torch.manual_seed(0)
        models.append(pretrained(tiny_model, kind, ["title"], device="cpu", precision="fp32", quick=quick))
    left, right = ["acme lamp"] * 5, ["lamp " * n for n in range(1, 6)]
    plain, quick = (m.score_texts(left, right) for m in models)
    np.testing.assert_allclose(plain, quick, atol=1e-6)
    folder = save_model(models[1], tmp_path / "run")
    assert "prodsim" not in json.dumps(json.loads((folder / kind / "config.json").read_text()))
    np.testing.assert_array_equal(load_model(folder, "cpu", "fp32").score_texts(left, right), quick)


def test_gradients_of_a_quickened_model_are_those_of_the_plain_one(tiny_model):
    gradients = []
    for quick in (False, True):
        torch.manual_seed(0)
        model = pretrained(tiny_model, "cross", ["title"], device="cpu", dropout=0.0, quick=quick).encoder
        inputs = model.tokenizer(["acme lamp", "chair"], ["lamp", "red lamp x100"], padding=True, return_tensors="pt")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model.model.train()(**inputs).logits.float().pow(2).sum()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.model.parameters() if p.grad is not None]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.98


def test_other_architectures_are_left_alone():
    class Config:
        model_type = "t5"

    class Model(torch.nn.Module):
        config = Config()

        def __init__(self):
            super().__init__()
            self.dropout = torch.nn.Dropout(0.1)

    model = Model()
    assert not quicken(model) and type(model.dropout) is torch.nn.Dropout


def test_operations_are_counted_per_token(tiny_model):
    model = pretrained(tiny_model, "cross", ["title"], device="cpu").encoder.model
    layer = model.bert.encoder.layer[0]
    weights = len(model.bert.encoder.layer) * sum(
        m.weight.numel() for m in layer.modules() if isinstance(m, torch.nn.Linear)
    )
    attention_part = 4 * model.config.num_hidden_layers * model.config.hidden_size
    assert operations(model, [7], training=False) == 2 * weights * 7 + attention_part * 49
    assert operations(model, [7, 3]) == pytest.approx(3 * (2 * weights * 10 + attention_part * (49 + 9)))
    assert product_rate(torch.float32, (64, 64, 64), 0.01) > 1e6


@pytest.mark.skipif(not has_bf16("cpu"), reason="no bfloat16 units")
def test_the_natural_way_is_taken_only_while_training_in_bfloat16(monkeypatch):
    calls = []
    original = NaturalAttention.apply
    monkeypatch.setattr(NaturalAttention, "apply", lambda *a: (calls.append(1), original(*a))[1])
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(1, 1, 3, 4, dtype=dtype, requires_grad=True)
        attention(None, x, x, x, None)
        with torch.no_grad():
            attention(None, x, x, x, None)
    assert len(calls) == 1
