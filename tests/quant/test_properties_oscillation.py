"""The vectorised oscillation tracker against loops that follow the definition weight by weight."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofq_core.quant import IterativeFreezing, OscillationState

WALKS = st.integers(1, 6).flatmap(
    lambda weights: st.lists(
        st.lists(st.sampled_from([-128, -2, -1, 0, 1, 127]), min_size=weights, max_size=weights),
        min_size=2,
        max_size=25,
    )
)
MOMENTA = st.sampled_from([0.01, 0.1, 0.5])


def sign(x):
    return (x > 0) - (x < 0)


class OneWeight:
    """Nagel's definition for a single weight, in Python numbers."""

    def __init__(self, code):
        self.code, self.direction, self.frequency, self.reversals = code, 0, 0.0, 0

    def step(self, code, momentum):
        direction = sign(code - self.code)
        oscillated = direction != 0 and direction == -self.direction
        if direction:
            self.direction = direction
        self.code = code
        self.frequency = momentum * oscillated + (1 - momentum) * self.frequency
        self.reversals += oscillated
        return oscillated


@given(walk=WALKS, momentum=MOMENTA)
def test_tracker_equals_naive_loop(walk, momentum):
    state = OscillationState.start(torch.tensor(walk[0]))
    weights = [OneWeight(code) for code in walk[0]]
    flips = 0
    for before, codes in pairwise(walk):
        flips += sum(a != b for a, b in zip(before, codes, strict=True))
        expected = [w.step(c, momentum) for w, c in zip(weights, codes, strict=True)]
        assert state.update(torch.tensor(codes), momentum).tolist() == expected
    assert state.codes.tolist() == walk[-1]
    assert state.direction.tolist() == [w.direction for w in weights]
    assert state.reversals.tolist() == [w.reversals for w in weights]
    assert state.frequency.tolist() == pytest.approx([w.frequency for w in weights], rel=1e-5)
    assert int(state.flips) == flips
    assert state.steps == len(walk) - 1


@given(walk=WALKS, momentum=MOMENTA)
def test_freezing_keeps_frozen_weights_out_of_reach(walk, momentum):
    """From the step after on a frozen weight is at its frozen code, its neighbours untouched."""
    freezing = IterativeFreezing.start(torch.tensor(walk[0]))
    frozen = torch.zeros(len(walk[0]), dtype=torch.bool)
    for codes in walk[1:]:
        given_codes = torch.tensor(codes, dtype=torch.int8)
        held = freezing.frozen_code.clone()
        used = freezing.update(given_codes, threshold=0.05, momentum=momentum)
        assert torch.equal(used[frozen], held[frozen])
        assert torch.equal(used[~frozen], given_codes[~frozen])
        assert bool((frozen <= freezing.frozen).all())
        frozen = freezing.frozen.clone()
        above = freezing.oscillation.frequency > 0.05
        assert bool((above <= frozen).all())


@given(walk=WALKS, momentum=MOMENTA, off=st.integers(0, 25))
def test_freezing_equals_naive_loop(walk, momentum, off):
    """Frozen at the rounded mean of the codes before the current one, refreshed while above.

    A jump to the frozen code is a change like any other. Nothing freezes for `off` steps.
    """
    freezing = IterativeFreezing.start(torch.tensor(walk[0]))
    weights = [OneWeight(code) for code in walk[0]]
    means, frozen = [float(code) for code in walk[0]], [None] * len(weights)
    for step, codes in enumerate(walk[1:]):
        threshold = 0.0 if step < off else 0.05
        used = freezing.update(torch.tensor(codes), threshold, momentum)
        for i, code in enumerate(codes):
            weights[i].step(code if frozen[i] is None else frozen[i], momentum)
            if threshold == 0.0:
                continue
            if weights[i].frequency > threshold:
                frozen[i] = round(means[i])
            means[i] += momentum * (weights[i].code - means[i])
        assert used.tolist() == [weight.code for weight in weights]
        assert freezing.frozen.tolist() == [code is not None for code in frozen]
    assert freezing.oscillation.reversals.tolist() == [weight.reversals for weight in weights]
    assert freezing.mean_code.tolist() == pytest.approx(means, rel=1e-4, abs=1e-4)


def test_the_jump_to_the_frozen_code_is_a_flip():
    """It was 0 long enough for a mean of 0, turned back at 1 and is taken back once more."""
    freezing = IterativeFreezing.start(torch.tensor([0]))
    for code in (1, 0):
        assert freezing.update(torch.tensor([code]), 0.15, 0.1).item() == code
    assert freezing.update(torch.tensor([1]), 0.15, 0.1).item() == 1
    assert freezing.frozen.item()
    assert int(freezing.oscillation.flips) == 3
    for _ in range(2):
        assert freezing.update(torch.tensor([1]), 0.15, 0.1).item() == 0
        assert int(freezing.oscillation.flips) == 4
        assert int(freezing.oscillation.reversals) == 3


def test_first_flip_never_counts():
    state = OscillationState.start(torch.tensor([0]))
    assert not state.update(torch.tensor([1]), 0.1).item()
    assert not state.update(torch.tensor([1]), 0.1).item()
    assert not state.update(torch.tensor([2]), 0.1).item()  # same direction: a drift
    assert state.update(torch.tensor([1]), 0.1).item()
    assert int(state.flips) == 3


def test_the_largest_jump_of_eight_bits_has_the_right_direction():
    """127 - (-128) does not fit int8."""
    state = OscillationState.start(torch.tensor([-128]))
    state.update(torch.tensor([127]), 0.1)
    assert state.direction.item() == 1
    assert state.update(torch.tensor([-128]), 0.1).item()


def test_codes_of_any_shape_and_type():
    matrix = torch.tensor([[0, 1], [-1, -2]])
    one, other = OscillationState.start(matrix), OscillationState.start(matrix.flatten().float())
    for step in (matrix + 1, matrix, matrix + 1):
        assert torch.equal(one.update(step), other.update(step.flatten().float()))
    assert torch.equal(one.frequency, other.frequency)


@pytest.mark.parametrize("bits", [2, 8])
def test_both_ways_to_take_codes_give_the_same_bits(bits):
    """A GPU goes over all weights, a CPU over those that flipped."""
    generator = torch.Generator().manual_seed(bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    steps = torch.randint(low, high, (12, 500), generator=generator).to(torch.int8)
    # Most weights stay in most steps.
    steps = torch.where(torch.rand(12, 500, generator=generator) < 0.3, steps, steps[:1])
    some, every = OscillationState.start(steps[0]), OscillationState.start(steps[0])
    oscillated = 0
    for codes in steps[1:]:
        flipped = codes != every.codes
        mask = every._take_all(codes, flipped, 0.01)
        every.codes, every.steps = codes, every.steps + 1
        assert torch.equal(some.update(codes, 0.01), mask)
        oscillated += int(mask.sum())
    assert oscillated > 100
    assert some.state_dict().keys() == every.state_dict().keys()
    for name, value in some.state_dict().items():
        other = every.state_dict()[name]
        assert torch.equal(value, other) if torch.is_tensor(value) else value == other
