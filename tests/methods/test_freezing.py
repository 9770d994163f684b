"""Iterative freezing: when, at what, and what a frozen weight does."""

import math

import pytest
import torch

from ofq_core.methods.freezing import MOMENTUM
from ofq_core.quant import IterativeFreezing, lsq_codes

UP, DOWN, REST = -0.4, -0.6, 0.3


def row(first):
    """A weight that is somewhere and one that stays at code 0."""
    return torch.tensor([[first, REST]])


@pytest.fixture
def module(make):
    """s = 1, codes -2 .. 1, at -1 and 0."""
    return make("freezing", row(DOWN), 2, 1.0, first_threshold=0.025, last_threshold=0.025)


def oscillate(module, steps, progress=0.5):
    """Codes 0, -1, 0, ...: from the second step on each is an oscillation."""
    for step in range(steps):
        module.after_step(row(DOWN if step % 2 else UP), progress)


def test_a_weight_freezes_at_its_mean_code(module, same):
    oscillate(module, 3)
    # f = 0.01, then 0.01 + 0.99 * 0.01 = 0.0199, below the threshold of 0.025
    same(module.frequency, [[0.0199, 0.0]])
    assert not module.frozen.any()
    oscillate(module, 4)
    assert module.frozen.tolist() == [[True, False]]
    # The mean began at -1 and has hardly moved.
    assert module.frozen_code[0, 0] == -1


@pytest.fixture
def frozen(module):
    oscillate(module, 5)
    assert module.frozen.tolist() == [[True, False]]
    return module


def test_a_frozen_weight(frozen, same):
    weight = row(0.9).requires_grad_()
    output = frozen(weight)
    same(output, [[-1.0, 0.0]])
    assert frozen.codes(weight).tolist() == [[-1, 0]]
    same(frozen.position(weight), [[-1.0, REST]])
    assert not frozen.clipped(row(9.0)).any()
    output.backward(torch.tensor([[2.0, 3.0]]))
    same(weight.grad, [[0.0, 3.0]])
    # g (2 code + 3 (round(0.3) - 0.3)) = (-2 - 0.9) / sqrt(2 weights * qmax 1)
    same(frozen.scale.grad, [-2.9 / math.sqrt(2)])


def test_the_latent_weight_follows_the_scale(frozen, same):
    parameter = torch.nn.Parameter(row(0.9))
    frozen.scale.data.fill_(0.5)
    frozen.after_step(parameter, 0.5)
    same(parameter.data, [[-0.5, REST]])
    assert parameter.grad_fn is None
    assert parameter.requires_grad


def test_a_product_that_is_computed_anew_keeps_its_frozen_codes(frozen):
    for value in (0.9, UP, 0.6):
        frozen.after_step(row(value), 0.5)
        assert frozen(row(value))[0, 0] == -1


def test_threshold_is_annealed(make):
    """Cosine from 1 (never) to 0.015: 0.5075 halfway; f is 0.0199 after three steps."""
    for progress, expected in ((0.0, False), (0.5, False), (1.0, True)):
        module = make("freezing", row(DOWN), 2, 1.0, first_threshold=1.0, last_threshold=0.015)
        oscillate(module, 3, progress)
        assert module.frozen.tolist() == [[expected, False]]


@pytest.mark.parametrize("threshold", [0.005, 0.015])
@pytest.mark.parametrize("writable", [True, False])
def test_agrees_with_the_pure_class(threshold, writable, make, randn):
    """On a random walk; setting the latent weights or not makes no difference to the codes."""
    weight = randn(5, 7)
    module = make("freezing", weight, 3, first_threshold=threshold, last_threshold=threshold)
    scale = module.scale.detach()
    reference = IterativeFreezing.start(lsq_codes(weight, scale, -4, 3, 0))
    for step in range(60):
        noisy = weight + 0.1 * randn(5, 7, seed=step)
        used = reference.update(lsq_codes(noisy, scale, -4, 3, 0), threshold, MOMENTUM)
        latent = noisy if writable else noisy.clone()
        module.after_step(latent, step / 60)
        assert torch.equal(module.codes(noisy).flatten(), used)
        assert torch.equal(module(noisy), used.view(5, 7) * scale.unsqueeze(1))
    state = reference.oscillation
    assert torch.equal(module.frozen.flatten(), reference.frozen)
    assert 0 < int(reference.frozen.sum()) < 35
    for name, expected in (
        ("frequency", state.frequency),
        ("direction", state.direction),
        ("previous_code", state.codes),
        ("mean_code", reference.mean_code),
        ("frozen_code", reference.frozen_code),
    ):
        assert torch.equal(getattr(module, name).flatten(), expected), name


def test_without_frozen_weights_it_is_lsq(make, randn):
    weight, upstream, results = randn(4, 8), randn(4, 8, seed=1), []
    for name in ("freezing", "lsq"):
        module, latent = make(name, weight), weight.clone().requires_grad_()
        output = module(latent)
        output.backward(upstream)
        results.append((output, latent.grad, module.scale.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
