"""The bin regularisation by hand and against loops."""

import pytest
import torch

# s = 1, codes -2 .. 1; clipped to -2 .. 1, and (c - q)^2 where that changes something:
# Row 0: codes 0, 0, 1, 1; 0.1, -0.3, 1 (of 1.2), 0.9: 0.11; var 0.08 (mean -0.1) and 0.005 (0.95).
# Row 1: codes -2, -2, -2, 0; -2, -1.8, -2, 0.4: 0.2; var 0.04 / 3 (mean -5.8 / 3); one alone: 0.
WEIGHT = [[0.1, -0.3, 1.2, 0.9], [-2.5, -1.8, -2.3, 0.4]]
TOTAL = (0.11 + 0.2) / 8 + (0.08 + 0.005 + 0.04 / 3) / 2


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
    # 2 (w - q) / 8 + (1 / 2) 2 (w - mean) / (n - 1); nothing beyond the outer codes
    same(weight.grad[0, 0], strength * (0.2 / 8 + 0.2))
    same(weight.grad[1, 1], strength * (0.4 / 8 + 0.4 / 3 / 2))
    same(weight.grad[1, 3], strength * 0.8 / 8)
    assert weight.grad[[0, 1, 1], [2, 0, 2]].tolist() == [0.0, 0.0, 0.0]
    # They stand at 1 s and -2 s: g (1 / 2) 2 (c - mean) / (n - 1) qmax or qmin, g = 1 / sqrt(4).
    assert module.scale.grad.tolist() == pytest.approx(
        [strength * 0.05 / 2, strength * 2 * (-0.2 / 3 / 2) * -2 / 2]
    )


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.25])
def test_it_begins_after_a_quarter(module, progress):
    weight = torch.tensor(WEIGHT)
    assert module.penalty(weight, progress) is None
    assert module.penalty(weight, 0.26) is not None


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_against_loops(bits, make, randn):
    """Value and gradients, with torch.var over each row and code, in FP64."""
    weight = randn(5, 40, dtype=torch.float64).requires_grad_()
    module = make("obr", weight.detach(), bits, strength=1.0)
    codes, quantized = module.codes(weight), module.quantized(weight)
    # g, so that the gradient of the scale is LSQ's.
    scale, gain = module.scale.unsqueeze(1), (40 * module.high) ** -0.5
    scale = scale.detach() * (1 - gain) + scale * gain
    clipped = torch.minimum(torch.maximum(weight, scale * module.low), scale * module.high)
    assert (clipped != weight).any() == (bits < 8)
    expected = (clipped - quantized).square().mean()
    for row, row_codes in zip(clipped, codes, strict=True):
        for code in row_codes.unique():
            values = row[row_codes == code]
            if len(values) > 1:
                expected = expected + values.var() / 5
    actual = module.penalty(weight, 1.0)
    torch.testing.assert_close(actual, expected)
    for one, other in zip(
        *(torch.autograd.grad(value, [weight, module.scale]) for value in (actual, expected)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_forward_is_lsq(module, make, randn):
    weight = randn(2, 4)
    assert torch.equal(module(weight), make("lsq", weight, 2, scale=1.0)(weight))
