"""The oscillation tracker and iterative freezing against the released tracker, step by step.

The released direction is previous minus current code, ours is current minus previous.
"""

import pytest
import torch

from ofq_core.quant import IterativeFreezing, OscillationState

MOMENTUM = 0.1


def test_tracker(golden, close, exact):
    group = golden["oscillation_tracker"]
    codes = torch.tensor(group["codes"])
    state = OscillationState.start(codes[0])
    for step, expected in zip(codes[1:], group["no_freeze"][1:], strict=True):
        oscillated = state.update(step, MOMENTUM)
        assert int(oscillated.sum()) == expected["oscillated"]
        exact(state.codes, [int(c) for c in expected["returned"]])
        close(state.frequency, expected["ema"], "frequency")
        exact(state.reversals, [int(t) for t in expected["total"]])
        exact(-state.direction, [int(d) for d in expected["prev_dir"]])
    assert state.steps == len(codes) - 1
    assert int(state.flips) == int((codes[1:] != codes[:-1]).sum())


def test_iterative_freezing(golden, close, exact):
    group = golden["oscillation_tracker"]
    codes = torch.tensor(group["codes"])
    freezing = IterativeFreezing.start(codes[0])
    for step, expected in zip(codes[1:], group["freeze_threshold_0_25"][1:], strict=True):
        used = freezing.update(step, threshold=0.25, momentum=MOMENTUM)
        exact(used, [int(c) for c in expected["returned"]])
        exact(freezing.frozen, expected["frozen"])
        close(freezing.mean_code, expected["ema_int"], "mean code")
        close(freezing.oscillation.frequency, expected["ema"], "frequency")
        exact(freezing.oscillation.reversals, [int(t) for t in expected["total"]])
        exact(-freezing.oscillation.direction, [int(d) for d in expected["prev_dir"]])
    assert bool(freezing.frozen.any())


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_state_survives_a_save(golden, cut):
    """Saved and restored at any step, both continue as if nothing had happened."""
    codes = torch.tensor(golden["oscillation_tracker"]["codes"])
    whole, first = IterativeFreezing.start(codes[0]), IterativeFreezing.start(codes[0])
    for step in codes[1:cut]:
        first.update(step, 0.25, MOMENTUM)
    resumed = IterativeFreezing.from_state_dict(first.state_dict())
    for step in codes[cut:]:
        resumed.update(step, 0.25, MOMENTUM)
    for step in codes[1:]:
        whole.update(step, 0.25, MOMENTUM)
    assert torch.equal(whole.mean_code, resumed.mean_code)
    assert torch.equal(whole.frozen_code, resumed.frozen_code)
    assert torch.equal(whole.oscillation.frequency, resumed.oscillation.frequency)
    assert whole.oscillation.steps == resumed.oscillation.steps
