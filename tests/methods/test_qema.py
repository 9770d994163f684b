"""Q-EMA: which neighbour is taken, LSQ's gradients for it, and the average."""

import math

import pytest
import torch

# s = 1, codes -4 .. 3. floor(w) = 1, 1, 1, -3, 9, -9; average less that: 0.6, 0.2, 0.2, 0.6, -9, 9.
WEIGHT = [[1.3, 1.3, 1.7, -2.6, 9.0, -9.0]]
AVERAGE = [[1.6, 1.2, 1.2, -2.4, 0.0, 0.0]]
CODES = [[2, 1, 1, -2, 3, -4]]


@pytest.fixture
def module(make):
    built = make("qema", torch.tensor(AVERAGE), 3, scale=1.0, decay=0.75)
    assert built.average.tolist() == torch.tensor(AVERAGE).tolist()
    return built


def test_codes(module, same):
    weight = torch.tensor(WEIGHT)
    assert module.codes(weight).tolist() == CODES
    same(module(weight), CODES)
    same(module.position(weight), [[1.3, 1.3, 1.7, -2.6, 3.5, -4.5]])
    # On twice the scale: w / s = 0.65, 0.65, 0.85, -1.3, 4.5, -4.5 and average / s = 0.8, 0.6, ...
    assert module.codes(weight, torch.tensor([2.0])).tolist() == [[1, 1, 1, -1, 3, -4]]


def test_gradients(module, same):
    weight = torch.tensor(WEIGHT, requires_grad=True)
    module(weight).sum().backward()
    same(weight.grad, [[1.0, 1.0, 1.0, 1.0, 0.0, 0.0]])
    # code - v inside, the code outside: 0.7 - 0.3 - 0.7 + 0.6 + 3 - 4 = -0.7; 6 weights, qmax 3
    same(module.scale.grad, [-0.7 / math.sqrt(18)])


def test_average(module, same):
    """0.75 a + 0.25 w, once per step."""
    weight = torch.tensor(WEIGHT)
    module(weight)
    same(module.average, AVERAGE)
    module.after_step(weight, 0.5)
    # 1.2 + 0.325, 0.9 + 0.325, 0.9 + 0.425, -1.8 - 0.65, 2.25, -2.25
    same(module.average, [[1.525, 1.225, 1.325, -2.45, 2.25, -2.25]])
    assert not module.average.requires_grad


def test_state(module, make):
    module.after_step(torch.tensor(WEIGHT), 0.5)
    other = make("qema", torch.zeros(1, 6), 3)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.average, module.average)
    assert torch.equal(other(torch.tensor(WEIGHT)), module(torch.tensor(WEIGHT)))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_where_the_average_is_the_weight_it_is_lsq(bits, make, randn):
    weight, upstream, results = randn(6, 40), randn(6, 40, seed=1), []
    for name in ("qema", "lsq"):
        module, latent = make(name, weight, bits), weight.clone().requires_grad_()
        output = module(latent)
        output.backward(upstream)
        results.append((output, latent.grad, module.scale.grad))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_jump_over_a_threshold_does_not_take_the_code_along(make):
    """1.4 for long, then 1.6 for a step: 2 by rounding, 1 here until the average follows."""
    module = make("qema", torch.tensor([[1.4]]), 3, scale=1.0, decay=0.5)
    jumped = torch.tensor([[1.6]])
    codes = []
    for _ in range(3):
        codes.append(int(module.codes(jumped)))
        module.after_step(jumped, 0.5)
    # averages 1.4, 1.5, 1.55
    assert codes[0] == 1
    assert codes[2] == 2
