"""The dampening loss by hand."""

import pytest
import torch

# s = 0.5, codes -2 .. 1. v = 0.2, -1.2, 4, -6; q = 0, -0.5, 0.5, -1; clipped 0.1, -0.6, 0.5, -1.
WEIGHT = [[0.1, -0.6, 2.0, -3.0]]


@pytest.fixture
def module(make):
    return make("dampening", torch.tensor(WEIGHT), 2, scale=0.5, strength=10.0)


# A third and a half of the cosine are at 0.25 + 0.75 / 3 and 0.25 + 0.75 / 2.
@pytest.mark.parametrize(("progress", "strength"), [(0.5, 2.5), (0.625, 5.0), (1.0, 10.0)])
def test_penalty(module, progress, strength, same):
    """10 (1 - cos(pi / 3)) / 2 = 2.5. One row, four columns: (0.1^2 + 0.1^2) / 4 = 0.005."""
    weight = torch.tensor(WEIGHT, requires_grad=True)
    penalty = module.penalty(weight, progress)
    same(penalty, 0.005 * strength)
    penalty.backward()
    # 2 lambda (clip(w) - q) / 4: 0.1, -0.1, nothing beyond the outer codes
    same(weight.grad, [[0.05 * strength, -0.05 * strength, 0.0, 0.0]])
    assert module.scale.grad is None


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.25])
def test_it_begins_after_a_quarter_and_can_be_off(module, progress, make):
    weight = torch.tensor(WEIGHT)
    assert module.penalty(weight, progress) is None
    assert module.penalty(weight, 0.26) is not None
    assert make("dampening", weight, 2, strength=0.0).penalty(weight, 1.0) is None


def test_it_is_a_sum_over_rows_and_a_mean_over_columns(make, same):
    """So it does not grow with the width of a layer's input."""
    for rows, columns in ((1, 1), (3, 1), (1, 2), (3, 2)):
        weight = torch.tensor(WEIGHT).repeat(rows, columns)
        same(make("dampening", weight, 2, 0.5, strength=1.0).penalty(weight, 1.0), rows * 0.005)


def test_forward_is_lsq(module, make, randn):
    weight = randn(1, 4)
    assert torch.equal(module(weight), make("lsq", weight, 2, scale=0.5)(weight))
