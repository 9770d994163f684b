"""Iterative freezing: when, at what, and what a frozen weight does."""

import math

import pytest
import torch

from ofq_core.methods import freezing
from ofq_core.quant.annealing import cosine_anneal

UP, DOWN, REST = -0.4, -0.6, 0.3


def row(first):
    """A weight that is somewhere and one that stays at code 0."""
    return torch.tensor([[first, REST]])


@pytest.fixture
def module(make, monkeypatch):
    """s = 1, codes -2 .. 1, at -1 and 0; the usual momentum would need thousands of steps."""
    monkeypatch.setattr(freezing, "MOMENTUM", 0.01)
    return make("freezing", row(DOWN), 2, 1.0, first_threshold=0.025, last_threshold=0.025)


def oscillate(module, steps, progress=0.5):
    """Codes 0, -1, 0, ...: from the second step on each is an oscillation."""
    for step in range(steps):
        module.after_step(row(DOWN if step % 2 else UP), progress)


def test_a_weight_freezes_at_its_mean_code(module, same):
    oscillate(module, 4)
    # Three oscillations: 0.01, then twice 0.01 + 0.99 f, which is above the threshold of 0.025.
    same(module.frequency, [[0.029701, 0.0]])
    assert not module.frozen.any(), "what it counts is of the next forward, which is still free"
    assert module(row(UP))[0, 0] == 0.0
    module.after_step(row(UP), 0.5)
    assert module.frozen.tolist() == [[True, False]]
    # The mean began at -1 and has hardly moved.
    assert module.frozen_code[0, 0] == -1
    assert module(row(UP))[0, 0] == -1.0


def test_the_authors_settings(make):
    assert freezing.MOMENTUM == 0.001
    assert freezing.START == 0.25
    assert make("freezing", row(DOWN), 4).thresholds == (0.1, 0.01)
    assert make("freezing", row(DOWN), 3).thresholds == (0.1, 0.011)


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


def test_nothing_freezes_in_the_first_quarter_then_the_threshold_falls(make, monkeypatch):
    """Cosine from 1 (never) to 0.015: 0.5075 halfway down; f is 0.0199 after three steps."""
    monkeypatch.setattr(freezing, "MOMENTUM", 0.01)
    for first, progress, expected in (
        (0.001, 0.0, False),
        (0.001, 0.249, False),
        (0.001, 0.25, True),
        (1.0, 0.25, False),
        (1.0, 0.625, False),
        (1.0, 1.0, True),
        (0.0, 0.5, False),
    ):
        last = 0.0 if first == 0.0 else 0.015
        module = make("freezing", row(DOWN), 2, 1.0, first_threshold=first, last_threshold=last)
        oscillate(module, 4, progress)
        assert module.frozen.tolist() == [[expected, False]], (first, progress)


class Tracked:
    """One weight as the authors' code treats it: its tracker is called in each forward."""

    def __init__(self):
        self.before, self.direction, self.frequency = None, 0, 0.0
        self.frozen, self.mean, self.reversals = None, None, 0

    def forward(self, code, threshold, momentum):
        code = code if self.frozen is None else self.frozen
        self.before = code if self.before is None else self.before
        turn = (code > self.before) - (code < self.before)
        oscillates = turn * self.direction == -1
        self.frequency += momentum * (oscillates - self.frequency)
        self.reversals += oscillates
        self.direction = turn or self.direction
        self.before = code
        if threshold > 0:
            self.mean = code if self.mean is None else self.mean
            if self.frequency > threshold:
                self.frozen = round(self.mean)
            self.mean += momentum * (code - self.mean)
        return code


@pytest.mark.parametrize("momentum", [0.001, 0.05])
@pytest.mark.parametrize("writable", [True, False])
def test_every_forward_is_as_with_the_authors_tracker(momentum, writable, make, randn, monkeypatch):
    """A run of 200 steps on noisy weights; setting the latent weights or not changes no code."""
    monkeypatch.setattr(freezing, "MOMENTUM", momentum)
    first, last, steps = 8 * momentum, 3 * momentum, 200
    weight = randn(5, 7)
    module = make("freezing", weight, 3, first_threshold=first, last_threshold=last)
    scale = module.scale.detach().unsqueeze(1)
    tracked = [Tracked() for _ in range(35)]
    current, jumps = weight.clone(), 0
    for step in range(1, steps + 1):
        free = (current / scale).round().clamp(-4, 3).flatten().tolist()
        share = step / steps
        threshold = 0.0 if share < 0.25 else cosine_anneal(first, last, share, 0.25)
        expected = []
        for one, code in zip(tracked, free, strict=True):
            before, frozen = one.before, one.frozen is not None
            expected.append(one.forward(int(code), threshold, momentum))
            jumps += frozen and one.before != before
        assert module.codes(current).flatten().tolist() == expected
        expected_values = torch.tensor(expected).view(5, 7) * scale
        assert torch.equal(module(current), expected_values)
        noisy = weight + 0.1 * randn(5, 7, seed=step)
        module.after_step(noisy if writable else noisy.clone(), share)
        current = noisy
    assert module.frozen.flatten().tolist() == [one.frozen is not None for one in tracked]
    assert 0 < int(module.frozen.sum()) < 35
    assert jumps > 0
    codes = [0 if one.frozen is None else one.frozen for one in tracked]
    assert (module.frozen_code * module.frozen).flatten().tolist() == codes


def test_without_frozen_weights_it_is_lsq(make, randn):
    weight, upstream, results = randn(4, 8), randn(4, 8, seed=1), []
    for name in ("freezing", "lsq"):
        module, latent = make(name, weight), weight.clone().requires_grad_()
        output = module(latent)
        output.backward(upstream)
        results.append((output, latent.grad, module.scale.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
