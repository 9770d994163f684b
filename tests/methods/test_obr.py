"""The bin regularisation by hand and against loops."""

import pytest
import torch

# s = 1, codes -2 .. 1.
# Row 0: codes 0, 0, 1, 1. (w - q)^2 sums to 0.15; var 0.08 (mean -0.1) and 0.045 (mean 1.05).
# Row 1: codes -2, -2, -2, 0. 0.54; var (0.09 + 0.16 + 0.01) / 2 = 0.13 (mean -2.2); one alone: 0.
WEIGHT = [[0.1, -0.3, 1.2, 0.9], [-2.5, -1.8, -2.3, 0.4]]
TOTAL = (0.15 + 0.54) / 8 + (0.08 + 0.045 + 0.13) / 2


@pytest.fixture
def module(make):
    return make("obr", torch.tensor(WEIGHT), 2, scale=1.0, strength=2.0)


# Half of the cosine is at 0.25 + 0.75 / 2.
@pytest.mark.parametrize(("progress", "strength"), [(0.625, 1.0), (1.0, 2.0)])
def test_penalty(module, progress, strength, same):
    weight = torch.tensor(WEIGHT, requires_grad=True)
    penalty = module.penalty(weight, progress)
    same(penalty, strength * TOTAL)
    penalty.backward()
    # 2 (w - q) / 8 + (1 / 2) 2 (w - mean) / (n - 1)
    same(weight.grad[0, 0], strength * (0.2 / 8 + 0.2))
    same(weight.grad[1, 0], strength * (-1.0 / 8 - 0.3 / 2))
    same(weight.grad[1, 3], strength * 0.8 / 8)
    assert module.scale.grad is None


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.25])
def test_it_begins_after_a_quarter(module, progress):
    weight = torch.tensor(WEIGHT)
    assert module.penalty(weight, progress) is None
    assert module.penalty(weight, 0.26) is not None


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_against_loops(bits, make, randn):
    """Value and gradient, with torch.var over each row and code, in FP64."""
    weight = randn(5, 40, dtype=torch.float64).requires_grad_()
    module = make("obr", weight.detach(), bits, strength=1.0)
    codes, quantized = module.codes(weight), module.quantized(weight)
    expected = (weight - quantized).square().mean()
    for row, row_codes in zip(weight, codes, strict=True):
        for code in row_codes.unique():
            values = row[row_codes == code]
            if len(values) > 1:
                expected = expected + values.var() / 5
    actual = module.penalty(weight, 1.0)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(value, weight)[0] for value in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_forward_is_lsq(module, make, randn):
    weight = randn(2, 4)
    assert torch.equal(module(weight), make("lsq", weight, 2, scale=1.0)(weight))
