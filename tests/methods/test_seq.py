"""SEQ by hand, its gradients, and that it is StatsQ with a learned scale."""

import pytest
import torch

from ofq_core.quant import statsq, statsq_scale

# s = 2, n = 2: w / s = 0.15, 0.6, -0.95, -1.2; times n less 1/2: -0.2, 0.7, -2.4, -2.48 (clipped).
WEIGHT = [[0.3, 1.2, -1.9, -2.4]]


@pytest.fixture
def module(make):
    return make("seq", torch.tensor(WEIGHT), 2, scale=2.0)


def test_forward(module, same):
    weight = torch.tensor(WEIGHT)
    same(module.position(weight), [[-0.2, 0.7, -2.4, -2.48]])
    assert module.codes(weight).tolist() == [[0, 1, -2, -2]]
    # s (code + 1/2) / n
    same(module(weight), [[0.5, 1.5, -1.5, -1.5]])
    assert module.clipped(weight).tolist() == [[False, False, False, True]]
    # 0.985 and 0.995 of the scale: the clip is at 0.99.
    assert module.clipped(torch.tensor([[1.97, -1.99]])).tolist() == [[False, True]]


def test_gradients(module, same):
    weight = torch.tensor(WEIGHT, requires_grad=True)
    module(weight).backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    same(weight.grad, [[1.0, 2.0, 3.0, 0.0]])
    # 1 (0.25 - 0.15) + 2 (0.75 - 0.6) + 3 (-0.75 + 0.95) + 4 (-0.75) = -2; g = 1 / sqrt(4 * 1)
    same(module.scale.grad, [-1.0])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gradients_against_autograd(bits, make, randn):
    """The formula with (round(x) - x) detached, in FP64; g counts 9 weights and qmax."""
    weight = randn(5, 9, dtype=torch.float64).requires_grad_()
    upstream = randn(5, 9, seed=1, dtype=torch.float64)
    module = make("seq", weight.detach() * 0.8, bits)
    n, s = 2 ** (bits - 1), module.scale.detach().clone().requires_grad_()
    x = (weight / s.unsqueeze(1)).clamp(-0.99, 0.99) * n - 0.5
    expected = s.unsqueeze(1) * ((x + (x.round() - x).detach()) + 0.5) / n
    of_weight, of_scale = torch.autograd.grad(expected, (weight, s), upstream)
    output = module(weight)
    torch.testing.assert_close(output, expected)
    actual = torch.autograd.grad(output, (weight, module.scale), upstream)
    torch.testing.assert_close(actual[0], of_weight)
    torch.testing.assert_close(actual[1], of_scale / (9 * (n - 1)) ** 0.5)
    assert bool((of_weight == 0).any())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_with_the_scale_of_statsq_it_is_statsq(bits, make, randn):
    weight = randn(6, 50)
    module = make("seq", weight, bits)
    module.scale.data.copy_(statsq_scale(weight).flatten())
    inside = (weight / statsq_scale(weight)).abs() < 0.99
    torch.testing.assert_close(module(weight)[inside], statsq(weight, bits)[inside])
    reference = make("statsq", weight, bits)
    assert torch.equal(module.codes(weight)[inside], reference.codes(weight)[inside])


@pytest.mark.parametrize(("bits", "ends"), [(2, (-2, 1)), (7, (-64, 63)), (8, (-127, 126))])
def test_outer_codes(bits, ends, make):
    """0.99 * 2^(b-1) - 1/2 rounds to the outer code, but not at 8 bits: 126.22."""
    weight = torch.tensor([[-100.0, 100.0]])
    module = make("seq", weight, bits, scale=1.0)
    assert tuple(module.codes(weight)[0].tolist()) == ends


def test_start_is_the_largest_magnitude(make, same):
    weight = torch.tensor([[0.5, -2.0], [1.0, 0.25]])
    same(make("seq", weight, 4).scale, [2.0, 1.0])


def test_a_negative_scale_still_gets_a_gradient(module):
    module.scale.data.fill_(-1.0)
    output = module(torch.tensor(WEIGHT))
    assert bool(output.isfinite().all())
    output[0, 0].backward()
    # 0.3 is far beyond a scale of 1e-5: g h = 0.5 * 0.75
    assert module.scale.grad.tolist() == [0.375]
