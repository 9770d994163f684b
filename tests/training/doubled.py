"""Training in FP64, where another order of sums moves no code: runs can be compared to the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ofq_core import checkpoints
from ofq_core.data import Data, open_data
from ofq_core.models import build_model
from ofq_core.settings import RunSettings
from ofq_core.training import Teacher, Trainer, make_deterministic
from pipelines.training import Inputs, build_student


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
    keys = ("train_loss", "train_hard_loss", "train_soft_loss", "val_loss", "val_top1")
    return {
        "history": [[row[key] for key in keys] for row in trainer.progress.history],
        "free": [row["free_share"] for row in trainer.progress.history],
        "state": trainer.model.state_dict(),
        "oscillation": trainer.oscillation,
    }
