"""Training in FP64, and two runs compared step by step, each step from equal states.

Two runs that add the same terms in another order cannot be compared at their ends: once one code
differs, they part by whole quantization steps, and AdamW turns a gradient whose true value is zero
into a step of the size of the learning rate. So the gradients of one run are recorded; another one
compares its own with them at every step and then goes on with those recorded. All that follows
(optimizer, CGA, tracker) is thus computed from equal numbers, and must be equal to the bit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ofq_core import checkpoints
from ofq_core.data import Data, open_data
from ofq_core.models import build_model
from ofq_core.settings import RunSettings
from ofq_core.training import Teacher, Trainer, make_deterministic
from pipelines.training import Inputs, build_student

# Begins the names of gradients that are of no parameter.
PRODUCT = "product of "


class Doubled(Data):
    """Other data with images in FP64. seen: the images of every training batch."""

    def __init__(self, data):
        self.data, self.seen = data, []
        self.classes, self.shape, self.train_size = data.classes, data.shape, data.train_size
        self.manifest_sha256 = data.manifest_sha256

    def train_batches(self, *where):
        for batch in self.data.train_batches(*where):
            self.seen.append(batch.images.clone())
            yield replace(batch, images=batch.images.double())

    def eval_batches(self, *where):
        for batch in self.data.eval_batches(*where):
            yield replace(batch, images=batch.images.double())

    def split_size(self, split):
        return self.data.split_size(split)

    def calibration_images(self, seed, count):
        return self.data.calibration_images(seed, count)


def doubled_trainer(settings: RunSettings, inputs: Inputs, checkpoint: Path, world=None, **options):
    """The trainer of a run, in FP64; starts from the same FP32 numbers for every world."""
    make_deterministic(settings.seed, 1)
    data = open_data(settings.data, inputs.data)
    full = build_model(settings.model, settings.seed)
    checkpoints.load_weights(full, inputs.teacher, "teacher")
    student = build_student(settings, inputs, data, lambda message: None).double()
    fidelity = settings.fidelity
    teacher = Teacher(full.double(), fidelity.teacher_head, fidelity.teacher_mode)
    return Trainer(settings, student, teacher, Doubled(data), checkpoint, world=world, **options)


def outcome(trainer):
    """What a run ended with: losses, accuracies, weights after the last step."""
    keys = ("train_loss", "train_hard_loss", "train_soft_loss", "val_top1")
    return {
        "history": [[row[key] for key in keys] for row in trainer.progress.history],
        "val_loss": [row["val_loss"] for row in trainer.progress.history],
        "free": [row["free_share"] for row in trainer.progress.history],
        "state": trainer.model.state_dict(),
        "oscillation": trainer.oscillation,
    }


def record_gradients(trainer):
    """{(epoch, step): (losses, gradients by name)} of the run to come, filled as it goes on.

    Gradients are those of parameters, and of products of parameters where the tracker asked.
    """
    fill, recorded = trainer.gradients.fill, {}

    def record(batch, epoch, step):
        losses = fill(batch, epoch, step)
        found = {name: value.clone() for name, value in _gradients(trainer).items()}
        recorded[epoch, step] = losses.clone(), found
        return losses

    trainer.gradients.fill = record
    return recorded


def follow_gradients(trainer, recorded):
    """Compare each step of the run to come with the recorded one, and go on with that.

    Two orders of the same sums differ by a few units in the last place of the largest term: each
    sum has up to 600 terms (32 images of 17 tokens) of 2e-16, some thirty of them follow each
    other, and cancelling takes some digits: 1e-9 of a gradient's largest entry leaves a hundredfold
    for that. A gradient that cancels completely is compared with the largest one of the model, to
    600 terms of 2e-16. A loss is one such sum. An image that is counted twice or left out changes
    the first digits.

    AssertionError, in the run: losses or gradients differ.
    """
    fill, world = trainer.gradients.fill, trainer.world

    def follow(batch, epoch, step):
        losses = fill(batch, epoch, step)
        expected_losses, expected = recorded[epoch, step]
        whole = world.total(losses.clone()) if world.size > 1 else losses
        torch.testing.assert_close(whole, expected_losses, rtol=1e-12, atol=0.0)
        ours = _gradients(trainer)
        assert ours.keys() == expected.keys()
        largest = max(float(value.abs().max()) for value in expected.values())
        for name, value in ours.items():
            # Of parameters it is the mean over processes already, of products each one's part.
            parts = world.size > 1 and name.startswith(PRODUCT)
            total = world.total(value.clone()) / world.size if parts else value
            bound = 1e-9 * float(expected[name].abs().max()) + 1e-13 * largest
            difference = float((total - expected[name]).abs().max())
            where = f"{name} at step {step} of epoch {epoch}"
            assert difference <= bound, f"{where}: {difference:.1e} > {bound:.1e}"
            value.copy_(expected[name] if world.main or not parts else torch.zeros_like(value))
        return expected_losses if world.main else torch.zeros_like(losses)

    trainer.gradients.fill = follow


def assert_same_outcome(actual, expected):
    """Of a run that followed another's gradients: equal to the bit, whatever cut its batches.

    A validation is a forward of its own, over other pieces of the split.
    """
    assert actual["state"].keys() == expected["state"].keys()
    for name, value in expected["state"].items():
        assert torch.equal(actual["state"][name], value), name
    for key in ("history", "free", "oscillation"):
        assert actual[key] == expected[key], key
    assert actual["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-12)


def _gradients(trainer):
    """Every gradient of the model, by name."""
    found = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    for weight in trainer.tracker.weights:
        if weight.parameter is None and weight.quantizer.gradient is not None:
            found[PRODUCT + weight.name] = weight.quantizer.gradient
    return found
