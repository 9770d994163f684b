"""Sampled figures of the low-bit weights, worked out by hand on a few weights."""

import math

import pytest
import torch
from torch import nn

from ofq_core.distributed import World
from ofq_core.methods.lsq import LSQWeight
from ofq_core.methods.statsq import StatsQWeight
from ofq_core.training.lowbit import LowBitWeight
from ofq_core.training.samples import GRADIENT_BANDS, StepSamples, sample_figures
from pipelines.training import Inputs
from tests.training.doubled import doubled_trainer

UP, DOWN = 1.0, -1.0


def low_bit(kind, rows, scale=None):
    """A 2-bit matrix: codes -2 to 1; LSQ with this scale."""
    parameter = nn.Parameter(torch.tensor(rows))
    quantizer = kind(parameter.detach(), 2)
    if scale is not None:
        quantizer.scale.data.fill_(scale)
    return LowBitWeight("m", quantizer, parameter, parameter.detach, lambda: parameter)


def one_step(samples, step, gradients=None, move=lambda: None):
    """A step in which `move` takes the place of the optimizer."""
    samples.begin(step)
    for weight, gradient in zip(samples.weights, gradients or [], strict=bool(gradients)):
        weight.parameter.grad = torch.tensor(gradient)
    samples.before(step)
    with torch.no_grad():
        move()
    samples.after()


def figures(samples, index=0):
    return sample_figures(samples.phase[index])


def flips(found):
    return [found[f"flips_{cause}"] for cause in ("weight", "scale", "both")]


def test_only_the_weight_moves():
    """0.4 to 0.6 with step 1: code 0 to 1. The others stay: 0.6 to 0.7 is no flip."""
    weight = low_bit(LSQWeight, [[0.4, 0.6, -1.4, 0.0]], 1.0)
    samples = StepSamples([weight], 1)
    one_step(samples, 0, move=lambda: weight.parameter.add_(torch.tensor([[0.2, 0.1, 0.0, 0.0]])))
    assert flips(figures(samples)) == [0.25, 0.0, 0.0]


def test_only_the_scale_moves():
    """Step 1 to 0.7: 0.4 is at 0.57, -1.4 at -2; the last has no further code."""
    weight = low_bit(LSQWeight, [[0.4, -1.4, 0.1, 1.2]], 1.0)
    samples = StepSamples([weight], 1)
    one_step(samples, 0, move=lambda: weight.quantizer.scale.fill_(0.7))
    found = figures(samples)
    assert flips(found) == [0.0, 0.5, 0.0]
    assert found["path_ratio"] is None, "no latent weight moved"


def test_both_move():
    """0.4 to 0.6, step 1 to 0.7: either would do; 0.4 to 0.45, step 1 to 0.85: only together."""
    weight = low_bit(LSQWeight, [[0.4], [0.4], [0.4]], 1.0)
    samples = StepSamples([weight], 1)

    def move():
        weight.parameter.copy_(torch.tensor([[0.6], [0.45], [0.6]]))
        # The last: the weight alone flips, but the scale takes it back.
        weight.quantizer.scale.copy_(torch.tensor([0.7, 0.85, 1.3]))

    one_step(samples, 0, move=move)
    assert flips(figures(samples)) == [0.0, 0.0, pytest.approx(2 / 3)]


def test_a_scale_that_follows_the_weights():
    """StatsQ, s = 1.8: codes 0, 1, 1, -1. The last weight's move makes s = 2.2: 1 / 2.2 < 1 / 2."""
    weight = low_bit(StatsQWeight, [[0.8, 1.0, 1.2, -0.6]])
    samples = StepSamples([weight], 1)
    one_step(samples, 0, move=lambda: weight.parameter[0, 3].fill_(-1.4))
    found = figures(samples)
    assert weight.quantizer.codes(weight.latent()).tolist() == [[0, 0, 1, -2]]
    assert flips(found) == [0.25, 0.25, 0.0]
    # s / 4 = 0.45, 0.55 times 2k + 1 = 1, 3, 3, -1 before and 1, 1, 3, -3 after
    assert found["path_ratio"] == pytest.approx((0.1 + 0.8 + 0.3 + 1.2) / 0.8, rel=1e-5)
    assert found["code_entropy"] == pytest.approx(1.5)


def test_clipped_after_dead_before_the_step():
    """Clipped: below -2 or above 1, after the step. Dead: a gradient of exactly zero before it."""
    weight = low_bit(LSQWeight, [[-2.5, 0.9, 1.0, -2.0]], 1.0)
    samples = StepSamples([weight], 1)
    gradient = [[0.0, 1e-30, -1.0, 0.0]]
    one_step(samples, 0, [gradient], lambda: weight.parameter[0, 1].fill_(1.1))
    found = figures(samples)
    assert found["clipped_share"] == 0.5
    assert found["dead_share"] == 0.5
    assert found["code_entropy"] == pytest.approx(1.0), "-2, 1, 1, -2"


def test_no_gradient_at_all_is_dead():
    weight = low_bit(LSQWeight, [[0.1, 0.2]], 1.0)
    samples = StepSamples([weight], 1)
    one_step(samples, 0)
    assert figures(samples)["dead_share"] == 1.0


def test_figures_are_means_over_steps_and_weights():
    """Entropy 0 of six weights and then 1: the mean; and another matrix of two weights."""
    one, other = low_bit(LSQWeight, [[0.1] * 6], 1.0), low_bit(LSQWeight, [[0.1, 0.9]], 1.0)
    samples = StepSamples([one, other], 1)
    one_step(samples, 0)
    one_step(samples, 1, move=lambda: one.parameter[0, :3].fill_(0.8))
    assert figures(samples, 0)["code_entropy"] == pytest.approx(0.5)
    assert figures(samples, 1)["code_entropy"] == pytest.approx(1.0)
    assert flips(figures(samples, 0)) == [0.25, 0.0, 0.0]
    everything = sample_figures(samples.phase.sum(0))
    assert everything["flips_weight"] == pytest.approx(3 / 16)
    assert everything["code_entropy"] == pytest.approx((6 * 0.5 + 2 * 1.0) / 8)


# Paths


def test_path_ratio_and_the_share_above_16():
    """A flip moves by 1. 0.49 to 0.52: 33; 0.4 to 0.6: 5; no move: never, whatever s does."""
    weight = low_bit(LSQWeight, [[0.49, 0.4], [0.49, 0.9]], 1.0)
    samples = StepSamples([weight], 1)
    one_step(samples, 0, move=lambda: weight.parameter[0].copy_(torch.tensor([0.52, 0.6])))
    assert figures(samples)["path_ratio"] == pytest.approx(2 / 0.23, rel=1e-5)
    assert samples.above_limit(0) == 0.25
    one_step(samples, 1, move=lambda: weight.quantizer.scale[1:].fill_(40.0))
    # The second row did not move, but its last value went from 1 to 0.
    assert figures(samples)["path_ratio"] == pytest.approx(3 / 0.23, rel=1e-5)
    assert samples.above_limit(0) == 0.25
    # Moves add up over steps: 1 / 0.08 is below.
    one_step(samples, 2, move=lambda: weight.parameter[0, 0].add_(0.05))
    assert samples.above_limit(0) == 0.0
    assert figures(samples)["path_ratio"] == pytest.approx(3 / 0.28, rel=1e-5)


def test_a_ratio_of_exactly_16_is_not_above():
    """0.9375 to 1.0625 with step 2: 2 / 0.125, all exact. To 1.03125: above."""
    weight = low_bit(LSQWeight, [[0.9375], [0.9375]], 2.0)
    samples = StepSamples([weight], 1)
    one_step(samples, 0, move=lambda: weight.parameter.copy_(torch.tensor([[1.0625], [1.03125]])))
    assert samples.paths[0].flatten().tolist() == [2.0, 2.0, 0.125, 0.09375]
    assert samples.above_limit(0) == 0.5


def test_restart_and_start_epoch_forget_what_is_theirs():
    weight = low_bit(LSQWeight, [[0.49, 0.4]], 1.0)
    samples = StepSamples([weight], 1)
    one_step(samples, 0, [[[UP, UP]]], lambda: weight.parameter[0, 0].fill_(0.52))
    both = samples.phase.clone()
    assert both.any()
    assert torch.equal(samples.epoch, both)
    samples.start_epoch()
    assert not samples.epoch.any()
    assert torch.equal(samples.phase, both)
    one_step(samples, 1, [[[DOWN, UP]]])
    samples.restart()
    assert not samples.phase.any()
    assert samples.epoch.any()
    assert samples.above_limit(0) == 0.0
    assert figures(samples)["flips_weight"] is None


# Signs of gradients

# With step 1, distances to a threshold: 0.002, 0.02, 0.2, 0.5 and 0.75.
BANDS = [[0.502, 0.52, 0.3, 0.0, 1.25]]


def test_sign_flips_per_band():
    """The third has no sign in the second step; the last is beyond every band."""
    weight = low_bit(LSQWeight, BANDS, 1.0)
    samples = StepSamples([weight], 2)
    one_step(samples, 0, [[[UP, UP, UP, UP, UP]]])
    assert set(figures(samples)["gradient_flips"].values()) == {None}, "no pair yet"
    one_step(samples, 1, [[[DOWN, UP, 0.0, DOWN, DOWN]]])
    found = figures(samples)["gradient_flips"]
    narrow = dict.fromkeys(("0.003", "0.005", "0.007", "0.01"), 1.0)
    assert found == {**narrow, "0.05": 0.5, "0.1": 0.5, "0.25": 0.5, "0.5": pytest.approx(2 / 3)}
    assert list(found) == [str(band) for band in GRADIENT_BANDS]


@pytest.mark.parametrize(("first", "second"), [(0.0, UP), (DOWN, 0.0), (0.0, 0.0)])
def test_zero_gradients_make_no_pair(first, second):
    samples = StepSamples([low_bit(LSQWeight, BANDS, 1.0)], 2)
    one_step(samples, 0, [[[first] * 5]])
    one_step(samples, 1, [[[second] * 5]])
    found = figures(samples)
    assert set(found["gradient_flips"].values()) == {None}
    assert found["dead_share"] == float(first == 0.0)


def test_the_sign_counts_and_not_the_size():
    samples = StepSamples([low_bit(LSQWeight, BANDS, 1.0)], 2)
    one_step(samples, 0, [[[1e-30] * 5]])
    one_step(samples, 1, [[[1e-30, -1e30, -1e-30, 1.0, 1.0]]])
    found = figures(samples)["gradient_flips"]
    assert (found["0.003"], found["0.05"], found["0.5"]) == (0.0, 0.5, 0.5)


# Which steps


def test_only_multiples_and_the_step_after():
    weight = low_bit(LSQWeight, BANDS, 1.0)
    samples = StepSamples([weight], 3)
    seen = []
    for step in range(8):
        before = samples.phase.clone()
        one_step(samples, step, [[[UP if step % 2 else DOWN] * 5]])
        change = samples.phase[0] - before[0]
        pairs = change[-2 * len(GRADIENT_BANDS) : -len(GRADIENT_BANDS)]
        seen.append((int(change[0]), int(pairs[-1])))
        assert (samples.signs is not None) == (step % 3 == 0)
        assert samples.due(step) == (step % 3 == 0)
    # Weights of a sampled step; pairs within 0.5 of the step after it.
    assert seen == [(5, 0), (0, 4), (0, 0)] * 2 + [(5, 0), (0, 4)]
    assert figures(samples)["gradient_flips"]["0.5"] == 1.0


def test_every_step():
    samples = StepSamples([low_bit(LSQWeight, BANDS, 1.0)], 1)
    for step, sign in enumerate([UP, UP, DOWN, DOWN]):
        one_step(samples, step, [[[sign] * 5]])
    assert samples.phase[0, 0] == 20
    assert figures(samples)["gradient_flips"]["0.5"] == pytest.approx(1 / 3)


def test_never():
    weight = low_bit(LSQWeight, [[0.4, 0.6]], 1.0)
    product = LowBitWeight("p", weight.quantizer, None, weight.latent, weight.differentiable)
    samples = StepSamples([weight, product], 0)
    for step in range(3):
        samples.begin(step)
        assert not weight.quantizer.keep_gradient
        samples.before(step)
        with torch.no_grad():
            weight.parameter.neg_()
        samples.after()
        assert not samples.due(step)
    assert not samples.phase.any()
    assert samples.signs is None
    assert samples.paths == []


def test_without_weights():
    samples = StepSamples([], 1)
    one_step(samples, 0)
    assert not samples.due(0)
    assert samples.phase.shape[0] == 0


def test_gradients_of_a_product_are_added_over_processes():
    """A parameter's are the same in every process already."""
    weight = low_bit(LSQWeight, [[0.502]], 1.0)
    made = low_bit(LSQWeight, [[0.502]], 1.0)
    product = LowBitWeight("p", made.quantizer, None, made.latent, made.differentiable)
    samples = StepSamples([weight, product], 1, total=lambda gradient: gradient + 2.0)
    for step, own in enumerate([3.0, -1.0, -3.0]):
        samples.begin(step)
        assert made.quantizer.keep_gradient
        assert not weight.quantizer.keep_gradient
        weight.parameter.grad = torch.tensor([[own]])
        made.quantizer.gradient = torch.tensor([[own]])
        samples.before(step)
        assert [int(sign) for sign in samples.signs] == [math.copysign(1, own), (1, 1, -1)[step]]
        assert made.quantizer.gradient is None
        samples.after()


# QKR's product in a model


@pytest.fixture
def attention_of(make_trainer, micro, tmp_path):
    def make():
        trainer = make_trainer(micro("ofq"), tmp_path / "c.pt")
        model = trainer.model.double().train()
        attention = model.blocks[0].attn
        (product,) = [w for w in trainer.tracker.weights if w.parameter is None]
        assert product.quantizer is attention.qk_quantizer
        return model, attention, product.quantizer

    return make


def loss_of(model, images):
    return sum(output.square().sum() for output in model(images))


def test_gradient_of_a_product_is_autograds(attention_of, monkeypatch):
    model, attention, quantizer = attention_of()
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    quantizer.keep_gradient = True
    latent = attention.product()
    monkeypatch.setattr(attention, "product", lambda: latent)
    loss = loss_of(model, images)
    (expected,) = torch.autograd.grad(loss, latent, retain_graph=True)
    quantizer.gradient = None
    loss.backward()
    assert expected.abs().max() > 0
    torch.testing.assert_close(quantizer.gradient, expected)
    whole = attention.q_weight.grad.clone()

    # CGA takes confident entries' gradient from W_q and W_k, not from what is looked at.
    monkeypatch.undo()
    model.zero_grad()
    quantizer.gradient, quantizer.gradient_band = None, 0.05
    loss_of(model, images).backward()
    torch.testing.assert_close(quantizer.gradient, expected)
    assert not torch.allclose(attention.q_weight.grad, whole)
    quantizer.gradient, quantizer.keep_gradient = None, False
    loss_of(model, images).backward()
    assert quantizer.gradient is None


@pytest.mark.parametrize("micro_batch", [16, 11])
def test_gradients_of_pieces_add_up(micro_batch, micro, digits, teacher_file, tmp_path):
    """In FP64: one forward over the batch, or several."""
    found = []
    for world in (None, World(micro_batch=micro_batch)):
        trainer = doubled_trainer(
            micro("ofq"), Inputs(digits, teacher_file), tmp_path / "c.pt", world
        )
        where = (trainer.recipe, 0, 0, 0, trainer.world.share, trainer.world.device)
        batch = next(iter(trainer.data.train_batches(*where)))
        for _ in range(2):  # what an earlier step left is dropped
            trainer.tracker.begin_step()
            trainer.gradients.fill(batch, 0, 0)
        (product,) = [w for w in trainer.tracker.weights if w.parameter is None]
        found.append(product.quantizer.gradient)
        assert trainer.gradients.pieces == (1 if world is None else -(-32 // micro_batch))
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)
