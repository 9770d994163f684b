"""Quantizers of weights and activations, forward and backward; full precision is a copy."""

import pytest
import torch

from benchmarks.subjects import FULL_PRECISION
from ofq_core.methods.lsq import LSQWeight
from ofq_core.methods.statsq import StatsQWeight
from ofq_core.nn import LSQActivation, TokenLSQ, calibrate
from tests.plain import plain

TOKENS, WIDTH = 198, 192


def weights():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4 * WIDTH, WIDTH, generator=generator).requires_grad_()


def activations(tokens):
    quantizer = TokenLSQ(TOKENS, 2, bias_shape=(WIDTH,))
    x = tokens()
    calibrate(quantizer, x.detach())
    return quantizer, x


def probabilities():
    quantizer = LSQActivation(TOKENS, -2, 2, signed=False)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, TOKENS, TOKENS, generator=generator).softmax(-1).requires_grad_()
    calibrate(quantizer, x.detach())
    return quantizer, x


SUBJECTS = {
    "StatsQ of weights": lambda tokens: (StatsQWeight(weights(), 2), weights()),
    "LSQ of weights": lambda tokens: (LSQWeight(weights(), 2), weights()),
    "LSQ of tokens": activations,
    "LSQ of probabilities": lambda tokens: probabilities(),
}


@pytest.fixture(params=SUBJECTS)
def subject(request, tokens, form):
    """Name, quantizer in the form that is measured, its input."""
    quantizer, x = SUBJECTS[request.param](tokens)
    quantizer.train()
    forms = {FULL_PRECISION: torch.clone, "plain": plain(quantizer), "ours": quantizer}
    return request.param, forms[form], x


def test_forward(subject, side_by_side):
    name, quantize, x = subject
    result = side_by_side(f"{name}, forward", lambda: quantize(x))
    assert result.shape == x.shape


def test_backward(subject, side_by_side):
    name, quantize, x = subject
    wanted = [x]
    if isinstance(quantize, torch.nn.Module):
        wanted += list(quantize.parameters())
    result = quantize(x)
    upstream = torch.ones_like(result)
    gradients = side_by_side(
        f"{name}, backward",
        lambda: torch.autograd.grad(result, wanted, upstream, retain_graph=True),
    )
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
