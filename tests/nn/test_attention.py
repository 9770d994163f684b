"""Attention: its formula, exactness without quantization, masks, dead biases, query bias."""

from dataclasses import replace

import pytest
import torch

from ofq_core.errors import ModelError
from ofq_core.nn import AttentionPlan, FullPrecisionWeight, QKRAttention, QuantAttention, calibrate
from ofq_core.quant import folded_query_bias

BATCH, TOKENS, DIM, HEADS = 2, 5, 8, 2
BOTH = pytest.mark.parametrize("cls", [QuantAttention, QKRAttention])


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def off():
    """Nothing is quantized."""
    return AttentionPlan(TOKENS, 32, FullPrecisionWeight)


@pytest.fixture
def low(make_statsq):
    return AttentionPlan(TOKENS, 3, make_statsq(3))


def additive_mask():
    return randn(BATCH, 1, TOKENS, TOKENS, seed=5)


def boolean_mask():
    return torch.ones(TOKENS, TOKENS).tril().bool() | (additive_mask() > 0)


MASKS = {
    "none": dict,
    "additive": lambda: {"attn_mask": additive_mask()},
    "boolean": lambda: {"attn_mask": boolean_mask()},
    "causal": lambda: {"is_causal": True},
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_plain_equals_timm_bit_for_bit(timm_attention, off, mask, fused, qkv_bias):
    source, twin = (timm_attention(DIM, HEADS, qkv_bias) for _ in range(2))
    source.fused_attn = twin.fused_attn = fused
    x, upstream = randn(BATCH, TOKENS, DIM).requires_grad_(), randn(BATCH, TOKENS, DIM, seed=1)
    ours = QuantAttention(source, off)(x, **MASKS[mask]())
    theirs = twin(x, **MASKS[mask]())
    assert torch.equal(ours, theirs)
    gradients = (torch.autograd.grad(y, x, upstream)[0] for y in (ours, theirs))
    assert torch.equal(*gradients)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_qkr_with_folded_bias_equals_timm(timm_attention, off, mask, qkv_bias):
    """The biases here are far from zero: the fold is exact but for rounding."""
    source = timm_attention(DIM, HEADS, qkv_bias)
    x = randn(BATCH, TOKENS, DIM)
    expected = source(x, **MASKS[mask]())
    output = QKRAttention(timm_attention(DIM, HEADS, qkv_bias), off)(x, **MASKS[mask]())
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_dropping_the_query_bias_is_not_exact(timm_attention, off):
    x = randn(BATCH, TOKENS, DIM)
    expected = timm_attention(DIM, HEADS)(x)
    dropped = QKRAttention(timm_attention(DIM, HEADS), replace(off, fold_query_bias=False))
    assert dropped.q_bias is None
    assert (dropped(x) - expected).abs().max() > 1e-3
    # Without biases there is nothing to drop.
    bare = QKRAttention(timm_attention(DIM, HEADS, False), replace(off, fold_query_bias=False))
    expected = timm_attention(DIM, HEADS, False)(x)
    torch.testing.assert_close(bare(x), expected, rtol=1e-5, atol=1e-5)


def test_folded_bias_is_the_key_side_of_the_query_bias():
    """(W_q x_i + b_q) . (W_k x_j) - (W_q x_i) . (W_k x_j) = (W_k^T b_q) . x_j for each head."""
    b_q, w_k, x = randn(DIM), randn(DIM, DIM, seed=1), randn(TOKENS, DIM, seed=2)
    rows = folded_query_bias(b_q, w_k, HEADS)
    keys = (x @ w_k.T).view(TOKENS, HEADS, -1)
    expected = torch.einsum("hd,nhd->hn", b_q.view(HEADS, -1), keys)
    torch.testing.assert_close(rows @ x.T, expected)


def test_qkr_formula(timm_attention, low):
    """Section 4.1 written out, head by head and token by token, with a query bias folded."""
    module = QKRAttention(timm_attention(DIM, HEADS), low)
    x = randn(BATCH, TOKENS, DIM)
    calibrate(module, x)
    output = module(x)

    hat = module.input_quantizer(x)
    v = module.quant_v(module.v(hat))
    weight = module.qk_quantizer(module.product())
    z = module.quant_z(hat @ weight.T)
    width = DIM // HEADS
    logits = torch.empty(BATCH, HEADS, TOKENS, TOKENS)
    for h in range(HEADS):
        w_k, b_q = (t[h * width : (h + 1) * width] for t in (module.k_weight, module.q_bias))
        for q in range(TOKENS):
            for k in range(TOKENS):
                key = z[:, k, h * DIM : (h + 1) * DIM]
                score = (hat[:, q] * key).sum(-1) + hat[:, k] @ (w_k.T @ b_q)
                logits[:, h, q, k] = score / width**0.5
    probabilities = module.quant_map(logits.softmax(-1))
    heads = [probabilities[:, h] @ v[..., h * width : (h + 1) * width] for h in range(HEADS)]
    expected = module.proj(torch.cat(heads, -1))
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def calibrate_tightly(module, x):
    """Scales so small that entries are clipped; without clipping the key's first bias is dead, too:
    straight through, it adds the same to every key."""
    calibrate(module, x)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(".scale"):
                parameter.mul_(0.4)


@BOTH
def test_second_bias_of_the_key_side_is_dead(timm_attention, low, cls):
    """It adds the same to every key of a query, which softmax does not see."""
    module = cls(timm_attention(DIM, HEADS), replace(low, dead_biases=True))
    x = randn(BATCH, TOKENS, DIM)
    calibrate_tightly(module, x)
    quantizer = module.quant_k if cls is QuantAttention else module.quant_z
    before = module(x)
    before.square().sum().backward()
    assert quantizer.bias_after.grad.abs().max() < 1e-5
    assert quantizer.bias_before.grad.abs().max() > 1e-3
    lean = cls(timm_attention(DIM, HEADS), low)
    missing, unexpected = lean.load_state_dict(module.state_dict(), strict=False)
    assert not missing
    assert len(unexpected) == 1
    assert unexpected[0].endswith(".bias_after")
    torch.testing.assert_close(lean(x), before, rtol=1e-5, atol=1e-5)


@BOTH
def test_source_weights_are_taken_over(timm_attention, off, cls):
    """The released code wraps a freshly initialised attention and so loses these (spec 3.5)."""
    source = timm_attention(DIM, HEADS)
    expected = {name: value.clone() for name, value in source.state_dict().items()}
    module = cls(source, off)
    assert torch.equal(module.proj.weight, expected["proj.weight"])
    assert torch.equal(module.proj.bias, expected["proj.bias"])
    if cls is QuantAttention:
        assert torch.equal(module.qkv.weight, expected["qkv.weight"])
        assert torch.equal(module.qkv.bias, expected["qkv.bias"])
    else:
        q, k, v = expected["qkv.weight"].chunk(3)
        assert torch.equal(module.q_weight, q)
        assert torch.equal(module.k_weight, k)
        assert torch.equal(module.v.weight, v)
        assert torch.equal(module.v.bias, expected["qkv.bias"].chunk(3)[2])
        assert torch.equal(module.q_bias, expected["qkv.bias"].chunk(3)[0])


@BOTH
def test_every_parameter_has_a_gradient(timm_attention, low, cls):
    module = cls(timm_attention(DIM, HEADS), low)
    x = randn(BATCH, TOKENS, DIM)
    calibrate_tightly(module, x)
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 1e-4, name


@BOTH
def test_wrong_number_of_tokens(timm_attention, low, cls):
    module = cls(timm_attention(DIM, HEADS), low)
    calibrate(module, randn(BATCH, TOKENS, DIM))
    with pytest.raises(ModelError, match=r"made for 5 tokens got 6"):
        module(randn(BATCH, TOKENS + 1, DIM))
