"""Steps of the digits' model: training, with CGA, with a tracker, with a teacher."""

import pytest
import torch

from benchmarks.subjects import (
    BOUNDARY_RANGE,
    FULL_PRECISION,
    METHODS,
    SIZES,
    Step,
    full_precision,
    make_model,
)
from ofq_core.training import OscillationTracker, low_bit_weights
from tests.plain import plain

MICRO, BATCH = SIZES["micro"], 16
EVERY = 16


def steps(method, **options):
    """A step of each form."""
    return {
        FULL_PRECISION: Step(full_precision(MICRO).train(), MICRO, BATCH),
        "plain": Step(plain(make_model(MICRO, method)), MICRO, BATCH),
        "ours": Step(make_model(MICRO, method), MICRO, BATCH, **options),
    }


@pytest.mark.parametrize("method", METHODS)
def test_training_step(method, form, side_by_side):
    step = steps(method)[form]
    before = [parameter.detach().clone() for parameter in step.model.parameters()]
    side_by_side(f"training step, {method}", step)
    after = step.model.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_distillation_step(form, side_by_side):
    """Full precision: without a teacher. Plain: the teacher is back-propagated through."""
    made = {
        FULL_PRECISION: lambda: Step(full_precision(MICRO).train(), MICRO, BATCH),
        "plain": lambda: Step(plain(make_model(MICRO, "statsq")), MICRO, BATCH, teacher="graph"),
        "ours": lambda: Step(make_model(MICRO, "statsq"), MICRO, BATCH, teacher="forward"),
    }
    step = made[form]()
    side_by_side("distillation step", step)
    assert all(p.grad is not None for p in step.model.parameters())
    in_graph = step.teacher_in_graph
    assert in_graph is None or all(p.grad is not None for p in in_graph.parameters())


def test_a_cached_teacher_answers_without_its_model():
    asked = Step(make_model(MICRO, "statsq"), MICRO, BATCH, teacher="forward")
    cached = Step(make_model(MICRO, "statsq"), MICRO, BATCH, teacher="cached")
    cached.teacher.model = None
    assert torch.equal(asked.forward(), cached.forward())


def plain_annealing(step):
    """CGA's update, threshold by threshold and weight by weight of the list."""
    weights = low_bit_weights(step.model)

    def update():
        before = {}
        for weight in weights:
            parameter, quantizer = weight.parameter, weight.quantizer
            position = quantizer.position(parameter)
            free = torch.zeros_like(parameter, dtype=torch.bool)
            for threshold in range(quantizer.low, quantizer.high):
                free |= (position - threshold - 0.5).abs() <= BOUNDARY_RANGE
            parameter.grad = torch.where(free, parameter.grad, torch.zeros_like(parameter))
            before[weight.name] = parameter.detach().clone(), free
        step.optimizer.step()
        with torch.no_grad():
            for weight in weights:
                values, free = before[weight.name]
                weight.parameter.copy_(torch.where(free, weight.parameter, values))

    return update


def test_annealing_update(form, side_by_side):
    """Full precision: the optimizer alone."""
    step = Step(make_model(MICRO, "statsq"), MICRO, BATCH, annealing=form == "ours")
    updates = {FULL_PRECISION: step.update, "plain": plain_annealing(step), "ours": step.update}
    step.forward_backward()
    held = [weight.parameter for weight in low_bit_weights(step.model)]
    before = [parameter.detach().clone() for parameter in held]
    side_by_side("update with CGA", updates[form])
    moved = sum(int((a != b).sum()) for a, b in zip(held, before, strict=True))
    if form == FULL_PRECISION:
        assert moved > 0.9 * sum(parameter.numel() for parameter in held)
    else:
        assert moved < 0.1 * sum(parameter.numel() for parameter in held)


def plain_frequency(model):
    """Nagel's frequency of every matrix by itself, as the paper writes it."""
    weights = low_bit_weights(model)
    state = {}

    def update():
        for weight in weights:
            codes = weight.quantizer.codes(weight.latent()).long()
            if weight.name not in state:
                zeros = torch.zeros_like(codes)
                state[weight.name] = codes, zeros, torch.zeros(codes.shape)
                continue
            old, direction, frequency = state[weight.name]
            change = codes - old
            flip = change != 0
            against = flip & (direction != 0) & (torch.sign(change) != direction)
            direction = torch.where(flip, torch.sign(change), direction)
            state[weight.name] = codes, direction, 0.01 * against + 0.99 * frequency

    return update


def test_tracker(form, side_by_side):
    """A tracker's part of a step. Full precision has no weights to follow."""
    model = full_precision(MICRO).train() if form == FULL_PRECISION else make_model(MICRO, "statsq")
    tracker = OscillationTracker(model, every=EVERY)
    Step(model, MICRO, BATCH).forward_backward()

    def ours():
        tracker.begin_step()
        tracker.before_update()
        tracker.update()

    update = plain_frequency(model) if form == "plain" else ours
    side_by_side("oscillation tracker, update", update)
    assert (tracker.state is None) == (form != "ours")
