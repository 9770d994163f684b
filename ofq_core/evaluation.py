"""Evaluation by exact counts, independent of the batch size and the number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofq_core.compiling import not_compiled
from ofq_core.data import Data, Share, SplitName
from ofq_core.distributed import CPU, World
from ofq_core.errors import DataError, ModelError
from ofq_core.finite import first_not_finite, not_finite_tensor
from ofq_core.nn import quantized_once
from ofq_core.precision import Precision, matrix_precision
from ofq_core.quant.statsq import at_least_float32

ALONE = Share()


class ClassCount(NamedTuple):
    """Images of one class, and how many of them were recognised."""

    label: int
    n_images: int
    n_correct: int


@dataclass(frozen=True)
class Evaluation:
    """top1, top5 in percent; loss: mean cross-entropy in nats; counts are exact.

    top1_low, top1_high: Wilson's 95 % interval of top1, in percent. n_unreadable: images of the
    split that could not be read and are in none of the other numbers. per_class_images,
    per_class_correct: one count per class.
    """

    top1: float
    top1_low: float
    top1_high: float
    top5: float
    loss: float
    n_images: int
    n_correct: int
    n_correct_top5: int
    n_unreadable: int
    per_class_images: list[int]
    per_class_correct: list[int]

    @property
    def per_class(self) -> list[ClassCount]:
        """Counts of every class, by its number."""
        pairs = zip(self.per_class_images, self.per_class_correct, strict=True)
        return [ClassCount(label, *pair) for label, pair in enumerate(pairs)]

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json."""
        return asdict(self)


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), both ends in [0, 1].

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),   p = correct / total

    z: quantile of the normal distribution, by default that of 95 %.

    Raises:
        ValueError: there is no trial, or the count is not from 0 to total.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} of {total}: expected a count from 0 to total, total above 0")
    p, square = correct / total, z * z / total
    centre = p + square / 2
    half = z * math.sqrt(p * (1 - p) / total + square / (4 * total))
    low, high = ((centre + sign * half) / (1 + square) for sign in (-1, 1))
    # Exact at the ends, where rounding would leave the range.
    return (0.0 if correct == 0 else low), (1.0 if correct == total else high)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: Data,
    split: SplitName,
    batch_size: int,
    share: Share = ALONE,
    device: torch.device = CPU,
    precision: Precision = "fp32",
    name: str = "",
) -> Evaluation:
    """Run the model in evaluation mode over a split; its mode is restored.

    Args:
        model: on `device`; the same weights in every process.
        batch_size: images per forward of one process.
        share: this process's part; all processes of the share's world must call, and all get the
            result over all images.
        name: how a message calls the model, such as the file of its weights.

    Raises:
        DataError: not one image of the split could be read.
        ModelError: a weight, or a logit of some image, is NaN or infinite; in all processes,
            whichever saw it.
    """
    called = f"{name}: " if name else ""
    # An activation's quantizer clips what is infinite: not all of it would reach the logits.
    wrong = not_finite_tensor(model.state_dict().items())
    if wrong is not None:
        raise ModelError(f"{called}{wrong}: no accuracy can be told")
    training = model.training
    model.eval()
    per_class = torch.zeros(2, data.classes, dtype=torch.int64, device=device)
    correct_top5 = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    broken = torch.zeros((), dtype=torch.int64, device=device)

    def forward() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in data.eval_batches(split, batch_size, share, device):
            with matrix_precision(precision, device):
                logits = at_least_float32(model(batch.images))
            yield logits, batch.targets

    with quantized_once(model), not_compiled(model):
        for logits, labels in forward():
            broken += (~logits.isfinite()).any(1).sum()
            top = logits.topk(min(5, logits.shape[1]), dim=1).indices
            hits = top == labels[:, None]
            for row, counted in enumerate((labels, labels[hits[:, 0]])):
                per_class[row] += torch.bincount(counted, minlength=data.classes)
            correct_top5 += hits.sum()
            loss += F.cross_entropy(logits.double(), labels, reduction="sum")
        world = World(share.rank, share.world, device)
        sums = torch.cat([per_class.flatten(), torch.stack([correct_top5, broken])])
        *counts, top5, not_finite = world.total(sums).tolist()
        if not_finite:
            found = world.gathered(first_not_finite({"": model}, lambda: _first_broken(forward())))
    model.train(training)
    images_of, correct_of = counts[: data.classes], counts[data.classes :]
    count, correct = sum(images_of), sum(correct_of)
    if not_finite:
        where = next((module for module in found if module is not None), "the last operation")
        raise ModelError(
            f"{called}{not_finite} of {count} {split} images get logits that are "
            f"NaN or infinite, first in {where}: no accuracy can be told"
        )
    if count == 0:
        raise DataError(f"not one of {data.split_size(split)} images of the {split} split was read")
    low, high = wilson_interval(correct, count)
    return Evaluation(
        top1=100.0 * correct / count,
        top1_low=100.0 * low,
        top1_high=100.0 * high,
        top5=100.0 * top5 / count,
        loss=float(world.total(loss)) / count,
        n_images=count,
        n_correct=correct,
        n_correct_top5=top5,
        n_unreadable=data.split_size(split) - count,
        per_class_images=images_of,
        per_class_correct=correct_of,
    )


def _first_broken(forwards: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Go on up to the first batch with logits that are not finite."""
    for logits, _ in forwards:
        if not bool(logits.isfinite().all()):
            return
