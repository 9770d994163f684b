"""The dampening loss by hand."""

import pytest
import torch

# s = 0.5, codes -2 .. 1. v = 0.2, -1.2, 4, -6; q = 0, -0.5, 0.5, -1; clipped 0.1, -0.6, 0.5, -1.
WEIGHT = [[0.1, -0.6, 2.0, -3.0]]


@pytest.fixture
def module(make):
    return make("dampening", torch.tensor(WEIGHT), 2, scale=0.5, strength=10.0)


@pytest.mark.parametrize(("progress", "strength"), [(1 / 3, 2.5), (0.5, 5.0), (1.0, 10.0)])
def test_penalty(module, progress, strength, same):
    """Cosine: 10 (1 - cos(pi / 3)) / 2 = 2.5 after a third. 0.1^2 + 0.1^2 = 0.02."""
    weight = torch.tensor(WEIGHT, requires_grad=True)
    penalty = module.penalty(weight, progress)
    same(penalty, 0.02 * strength)
    penalty.backward()
    # 2 lambda (clip(w) - q): 0.1, -0.1, nothing beyond the outer codes
    same(weight.grad, [[0.2 * strength, -0.2 * strength, 0.0, 0.0]])
    assert module.scale.grad is None


def test_it_begins_at_zero_and_can_be_off(module, make):
    weight = torch.tensor(WEIGHT)
    assert module.penalty(weight, 0.0) is None
    assert make("dampening", weight, 2, strength=0.0).penalty(weight, 1.0) is None


def test_it_is_a_sum_over_weights(make, same):
    weight = torch.tensor(WEIGHT).repeat(3, 2)
    same(make("dampening", weight, 2, 0.5, strength=1.0).penalty(weight, 1.0), 6 * 0.02)


def test_forward_is_lsq(module, make, randn):
    weight = randn(1, 4)
    assert torch.equal(module(weight), make("lsq", weight, 2, scale=0.5)(weight))
