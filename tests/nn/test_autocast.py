"""Under bf16 autocast the quantizers compute in FP32; only matrix products run in bf16."""

import pytest
import torch
from torch import nn

from ofq_core.methods.lsq import LSQWeight
from ofq_core.methods.statsq import StatsQWeight
from ofq_core.nn import LSQActivation, QKRAttention, QuantAttention, TokenLSQ, calibrate


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("quantizer", [StatsQWeight, LSQWeight])
def test_weights(quantizer):
    """Codes, values and gradient are those without autocast, bit for bit."""
    weight = randn(16, 12).requires_grad_()
    module = quantizer(weight, bits=3)
    expected = module(weight)
    (plain,) = torch.autograd.grad(expected.square().sum(), weight)
    with autocast():
        output = module(weight)
    assert output.dtype == torch.float32
    assert torch.equal(output, expected)
    (mixed,) = torch.autograd.grad(output.square().sum(), weight)
    assert torch.equal(mixed, plain)


@pytest.mark.parametrize(
    "module",
    [TokenLSQ(5, 3, bias_shape=(8,)), LSQActivation(8, -1, 3), LSQActivation(1, None, 8)],
    ids=["tokens", "channels", "tensor"],
)
def test_activations_that_arrive_in_bf16(module):
    """Quantized as their FP32 values would be: the scale product is not rounded to bf16."""
    x = randn(2, 5, 8).bfloat16()
    calibrate(nn.Sequential(module), x.float())
    with autocast():
        output = module(x)
    assert output.dtype == torch.float32
    assert torch.equal(output, module(x.float()))


def test_the_query_key_product(timm_attention, make_statsq, low_plan):
    """W_q^T W_k in bf16 would move codes: it is computed in FP32."""
    attention = QKRAttention(timm_attention(64, 2), low_plan(5))
    expected = attention.product()
    with autocast():
        assert torch.equal(attention.product(), expected)
    halves = (attention.q_weight.bfloat16(), attention.k_weight.bfloat16())
    rounded = (halves[0].view(2, 32, 64).transpose(1, 2) @ halves[1].view(2, 32, 64)).float()
    codes = attention.qk_quantizer.codes
    # Some 50 of 8192; how many depends on how the processor adds up in bf16.
    assert int((codes(rounded.view(128, 64)) != codes(expected)).sum()) > 10


@pytest.mark.parametrize("cls", [QuantAttention, QKRAttention])
def test_attention_trains(timm_attention, low_plan, cls):
    """Gradients in FP32, finite and close to those without autocast in direction."""
    attention = cls(timm_attention(16, 2), low_plan(5))
    x = randn(3, 5, 16)
    calibrate(attention, x)

    def gradients(context):
        attention.zero_grad()
        with context:
            output = attention(x)
        output.float().square().sum().backward()
        return {n: p.grad.clone() for n, p in attention.named_parameters()}

    plain, mixed = gradients(torch.autocast("cpu", enabled=False)), gradients(autocast())
    for name in ("proj.weight", "proj.input_quantizer.bias_after"):
        assert mixed[name].dtype == torch.float32
        similarity = torch.cosine_similarity(plain[name].flatten(), mixed[name].flatten(), dim=0)
        assert similarity > 0.97, name
