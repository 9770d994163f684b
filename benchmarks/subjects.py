"""What the benchmarks measure: models in several sizes and methods, and the pieces of a step.

Only public interfaces of `ofq_core` are used, so the same file measures other commits as well
(`benchmarks.against`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ofq_core.models import QuantPlan, build_model, convert
from ofq_core.nn import calibrate
from ofq_core.settings import FidelitySettings, ModelSettings, QuantSettings, RecipeSettings
from ofq_core.training import (
    ConfidenceGuidedAnnealing,
    OscillationTracker,
    Teacher,
    distillation_loss,
    held_weights,
)
from ofq_core.training.optimizer import make_optimizer

FULL_PRECISION = "full_precision"
# Weight quantizer and QKR of each method; activations are LSQ.
METHODS = {"lsq": ("lsq", False), "statsq": ("statsq", False), "statsq_qkr": ("statsq", True)}
DEIT = "deit_tiny_distilled_patch16_224"
BOUNDARY_RANGE = 0.005


@dataclass(frozen=True)
class Size:
    """A distilled DeiT: timm's name, and what differs from it."""

    name: str
    classes: int = 1000
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width) of its images."""
        side = self.changes.get("img_size", 224)
        return self.changes.get("in_chans", 3), side, side


SIZES = {
    # The digits model of the default study.
    "micro": Size(
        DEIT,
        10,
        {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 32, "depth": 3}
        | {"num_heads": 2, "mlp_ratio": 2.0},
    ),
    "deit_tiny": Size(DEIT),
    "deit_small": Size("deit_small_distilled_patch16_224"),
}


def images_for(size: Size, batch: int) -> Tensor:
    """Random images (batch, channels, height, width), FP32, always the same."""
    return torch.randn(batch, *size.image, generator=torch.Generator().manual_seed(0))


def labels_for(size: Size, batch: int) -> Tensor:
    """Class indices (batch,), int64."""
    return torch.arange(batch) % size.classes


def full_precision(size: Size) -> nn.Module:
    """timm's model, in training mode."""
    return build_model(ModelSettings(name=size.name, num_classes=size.classes, **size.changes), 0)


def make_model(size: Size, method: str) -> nn.Module:
    """A model in training mode, calibrated where it is quantized, W2A2.

    method: of `METHODS`, or FULL_PRECISION.
    """
    model = full_precision(size)
    if method != FULL_PRECISION:
        weight, qkr = METHODS[method]
        quant = QuantSettings(weight=weight, qkr=qkr, cga=False, wbits=2, abits=2)
        convert(model, QuantPlan.from_settings(quant, FidelitySettings()))
        calibrate(model, images_for(size, 2))
    return model.train()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch on so many threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cached_teacher(size: Size, images: Tensor) -> Teacher:
    """A teacher that was asked about these images before, as `distill.cache_teacher` has it."""
    # Here, since earlier commits, which these sources measure too, have no cache.
    from ofq_core.training.teacher_cache import TeacherCache

    with tempfile.TemporaryDirectory(prefix="ofq-answers-") as folder:
        cache = TeacherCache(Path(folder), print)
        teacher = Teacher(full_precision(size), "mean", cache=cache)
        cache.enter(0)
        teacher(images)
        cache.finish()
        cache.enter(0)
    return teacher


class Step:
    """A training step of one model: a forward, a backward, an update, each by itself.

    Args:
        model: in training mode.
        size, batch: of its images.
        teacher: "none"; "forward": frozen, no graph; "cached": its answers come from a
            `TeacherCache` of an earlier run; "graph": the teacher's graph is kept and
            back-propagated through, its gradients thrown away, as in the released code.
        annealing: CGA holds the confident weights.
        track: None without a tracker, else sample every so many steps (0: frequency only).

    Attributes:
        weights: set to the model's `ofq_core.nn.HeldWeights`, it quantizes the weights ahead of the
            forward, as training does where blocks are compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        size: Size,
        batch: int,
        teacher: str = "none",
        annealing: bool = False,
        track: int | None = None,
    ) -> None:
        self.weights: Any = None
        self.model, self.images = model, images_for(size, batch)
        self.labels = labels_for(size, batch)
        recipe = RecipeSettings(epochs=1, cga_epochs=0, batch_size=batch, lr=1e-5)
        self.optimizer = make_optimizer(model, recipe)
        self.annealing: ConfidenceGuidedAnnealing | None = None
        if annealing:
            held = held_weights(model, FidelitySettings())
            self.annealing = ConfidenceGuidedAnnealing(self.optimizer, held, BOUNDARY_RANGE)
            self.annealing.start()
        self.tracker = None if track is None else OscillationTracker(model, every=track)
        self.teacher: Teacher | None = None
        self.teacher_in_graph: nn.Module | None = None
        if teacher == "forward":
            self.teacher = Teacher(full_precision(size), "mean")
        elif teacher == "cached":
            self.teacher = _cached_teacher(size, self.images)
        elif teacher == "graph":
            self.teacher_in_graph = full_precision(size).eval()

    def lasting(self) -> list[Tensor]:
        """Tensors that are there before and after a step: parameters, buffers, images, labels."""
        kept: list[Tensor] = [self.images, self.labels]
        teacher = self.teacher.model if self.teacher is not None else self.teacher_in_graph
        for model in (self.model, teacher):
            if model is not None:
                kept += [*model.parameters(), *model.buffers()]
        return kept

    def forward(self) -> Tensor:
        """The loss, with its graph."""
        if self.weights is not None:
            self.weights.hold()
            self.weights.release()
        if self.tracker is not None:
            self.tracker.begin_step()
        if self.teacher_in_graph is not None:
            return self._released_loss(self.teacher_in_graph(self.images))
        soft = None if self.teacher is None else self.teacher(self.images)
        return distillation_loss(self.model(self.images), self.labels, soft).total

    def _released_loss(self, soft: Tensor) -> Tensor:
        """The same value as `distillation_loss`, without detaching the teacher's logits."""
        class_logits, distilled = self.model(self.images)
        hard = nn.functional.cross_entropy(class_logits, self.labels)
        target = soft.softmax(dim=-1)
        loss: Tensor = hard - (target * distilled.log_softmax(dim=-1)).sum(dim=-1).mean()
        return loss

    def update(self) -> None:
        """What follows the backward: optimizer, annealing, tracker."""
        if self.tracker is not None:
            self.tracker.before_update()
        if self.annealing is not None:
            self.annealing.step()
        else:
            self.optimizer.step()
        if self.tracker is not None:
            self.tracker.update()

    def clear(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad()
        if self.teacher_in_graph is not None:
            self.teacher_in_graph.zero_grad()

    def __call__(self) -> None:
        """All of it."""
        self.clear()
        self.forward().backward()  # type: ignore[no-untyped-call]
        self.update()

    def forward_backward(self) -> None:
        """The step without its update."""
        self.clear()
        self.forward().backward()  # type: ignore[no-untyped-call]
