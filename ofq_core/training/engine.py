"""The training loop: deterministic, resumable, the same for every method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ofq_core import checkpoints
from ofq_core.data import PreparedData, augment
from ofq_core.errors import DataError, OFQError
from ofq_core.evaluation import evaluate
from ofq_core.settings import DistillSettings, RunSettings
from ofq_core.training.cga import ConfidenceGuidedAnnealing
from ofq_core.training.distill import Teacher, distillation_loss
from ofq_core.training.lowbit import low_bit_weights
from ofq_core.training.optimizer import make_optimizer
from ofq_core.training.schedule import learning_rate
from ofq_core.training.seeds import generator
from ofq_core.training.tracker import OscillationTracker


class TrainingError(OFQError):
    """Training cannot go on, such as after a loss that is not finite."""


@dataclass
class Progress:
    """Where a run stands; everything in it is part of the checkpoint.

    history: one dict per finished epoch. best: epoch, validation top-1 and weights of the selected
    model so far. seconds: training time over all attempts.
    """

    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = -1
    best_top1: float = -1.0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class StepEvent:
    """Told to the observer after every step. images_per_second is that of the current epoch."""

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    loss: float


def _ignore(event: StepEvent) -> None:
    pass


class Trainer:
    """Train one model as its settings say.

    Args:
        model: converted and calibrated, or full precision.
        teacher: None trains on the labels alone.
        checkpoint: where the run's checkpoint is; if the file exists, the run goes on from it.
        observe: called after each step.

    The order of images, their augmentation and every other draw depend on the seed and the epoch
    or step alone, so a resumed run is bit-identical to an undisturbed one.
    """

    def __init__(
        self,
        settings: RunSettings,
        model: nn.Module,
        teacher: Teacher | None,
        data: PreparedData,
        checkpoint: Path,
        observe: Callable[[StepEvent], None] = _ignore,
    ) -> None:
        self.settings, self.recipe = settings, settings.recipe
        self.model, self.teacher, self.data = model, teacher, data
        self.checkpoint, self.observe = checkpoint, observe
        self.optimizer = make_optimizer(model, self.recipe)
        self.tracker = OscillationTracker(model)
        self.annealing = ConfidenceGuidedAnnealing(
            self.optimizer, low_bit_weights(model), settings.quant.boundary_range
        )
        self.progress = Progress()
        # Of the weights after the last step, whichever epoch is selected.
        self.oscillation: dict[str, float] | None = None
        self.oscillation_layers: dict[str, dict[str, Any]] = {}
        # Without a teacher both heads learn the labels with equal weight.
        self.distill = settings.distill or DistillSettings()
        self.epochs = self.recipe.epochs + self.recipe.cga_epochs
        self.batch_size = self.recipe.batch_size
        if self.batch_size > len(data.train):
            raise DataError(
                f"recipe.batch_size = {self.batch_size}, but there are only {len(data.train)} "
                "training images: expected at most as many"
            )
        self.steps = len(data.train) // self.batch_size

    def run(self) -> Progress:
        """Train to the end, then load the selected weights into the model.

        Raises:
            TrainingError: the loss is not finite.
            CheckpointError: the checkpoint cannot be read or written.
        """
        if self.checkpoint.exists():
            self._resume()
        saved = time.monotonic()
        while self.progress.epoch < self.epochs:
            self._epoch(self.progress.epoch)
            last = self.progress.epoch == self.epochs
            if last or time.monotonic() - saved >= self.recipe.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
        self.annealing.stop()
        self.tracker.finish()
        self.oscillation = self.tracker.summary()
        self.oscillation_layers = self.tracker.layers()
        self.model.load_state_dict(self.progress.best_state)
        return self.progress

    def _epoch(self, epoch: int) -> None:
        recipe, progress = self.recipe, self.progress
        phase = "anneal" if epoch >= recipe.epochs else "qat"
        annealing = phase == "anneal" and self.settings.quant.cga
        if annealing:
            self.annealing.start()
        if epoch == recipe.epochs:
            self.tracker.restart()
        counts = self.tracker.counts()
        free_shares: list[float] = []
        lr = learning_rate(
            epoch,
            recipe.epochs,
            recipe.lr,
            recipe.min_lr,
            recipe.warmup_lr,
            recipe.warmup_epochs,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        began = time.monotonic()
        self.model.train()
        seed = self.settings.seed
        order = torch.randperm(len(self.data.train), generator=generator(seed, "order", epoch))
        sums = torch.zeros(3, dtype=torch.float64)
        for step in range(self.steps):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            views = augment(
                self.data.train.images[index],
                self.settings.data,
                generator(seed, "augment", epoch, step),
            )
            sums += self._step(self.data.normalise(views), self.data.train.labels[index], annealing)
            if annealing:
                free_shares.append(self.annealing.free_share())
            elapsed = time.monotonic() - began
            rate = (step + 1) * self.batch_size / elapsed
            loss = float(sums[0]) / (step + 1)
            self.observe(StepEvent(epoch, self.epochs, step, self.steps, rate, loss))
        seconds = time.monotonic() - began
        progress.seconds += seconds
        means = (sums / self.steps).tolist()
        row = {
            "epoch": epoch,
            "phase": phase,
            "lr": lr,
            "train_loss": means[0],
            "train_hard_loss": means[1],
            "train_soft_loss": means[2],
            "seconds": seconds,
            "images_per_second": self.steps * self.batch_size / seconds,
            "oscillation_share": self.tracker.share(),
            "flip_rate": self.tracker.flips_per_step(*counts),
            "free_share": sum(free_shares) / len(free_shares) if free_shares else None,
        }
        self._finish_epoch(row)

    def _step(self, images: Tensor, labels: Tensor, annealing: bool) -> Tensor:
        """One optimizer step; returns total, hard and soft loss as FP64."""
        distill = self.distill
        targets = None if self.teacher is None else self.teacher(images)
        losses = distillation_loss(
            self.model(images),
            labels,
            targets,
            distill.hard_weight,
            distill.soft_weight,
            distill.temperature,
            self.recipe.label_smoothing,
        )
        if not math.isfinite(losses.total.item()):
            self._stop_on(losses.total)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        if annealing:
            self.annealing.step()
        else:
            self.optimizer.step()
        self.tracker.update()
        self.progress.step += 1
        return torch.stack([part.detach().double() for part in losses])

    def _stop_on(self, loss: Tensor) -> None:
        broken = [
            name for name, p in self.model.named_parameters() if not bool(torch.isfinite(p).all())
        ]
        where = f", first in {broken[0]}" if broken else " (all weights are still finite)"
        kept = f"; last good checkpoint: {self.checkpoint}" if self.checkpoint.exists() else ""
        raise TrainingError(
            f"loss = {loss.item()} at step {self.progress.step} (epoch {self.progress.epoch})"
            f"{where}{kept}. Lower recipe.lr = {self.recipe.lr:g}."
        )

    def _finish_epoch(self, row: dict[str, Any]) -> None:
        progress, epoch = self.progress, row["epoch"]
        val = evaluate(self.model, self.data, self.data.val, self.batch_size)
        progress.history.append({**row, "val_loss": val.loss, "val_top1": val.top1})
        # Only epochs of the last phase compete, for every method, so that the model of a run with
        # CGA has always been through CGA. On a tie the later one is taken.
        candidate = row["phase"] == "anneal" or self.recipe.cga_epochs == 0
        if candidate and val.top1 >= progress.best_top1:
            progress.best_epoch, progress.best_top1 = epoch, val.top1
            progress.best_state = {k: v.clone() for k, v in self.model.state_dict().items()}
        progress.epoch = epoch + 1

    def _save(self) -> None:
        checkpoints.save(
            self.checkpoint,
            {
                "format": checkpoints.FORMAT,
                "settings_sha256": self.settings.sha256(),
                "progress": dict(vars(self.progress)),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "tracker": self.tracker.state_dict(),
                "torch_rng": torch.get_rng_state(),
            },
        )

    def _resume(self) -> None:
        state = checkpoints.load_checkpoint(self.checkpoint, self.settings.sha256())
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.tracker.load_state_dict(state["tracker"])
        torch.set_rng_state(state["torch_rng"])
        self.progress = Progress(**state["progress"])
