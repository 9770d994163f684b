"""Evaluation by exact counts, independent of the batch size."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ofq_core.data import PreparedData, Split


@dataclass(frozen=True)
class Evaluation:
    """top1, top5 in percent; loss: mean cross-entropy in nats; counts are exact."""

    top1: float
    top5: float
    loss: float
    n_images: int
    n_correct: int
    n_correct_top5: int

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json."""
        return asdict(self)


@torch.inference_mode()
def evaluate(model: nn.Module, data: PreparedData, split: Split, batch_size: int) -> Evaluation:
    """Run the model in evaluation mode over a split; its mode is restored."""
    training = model.training
    model.eval()
    correct, correct_top5, loss = 0, 0, 0.0
    for start in range(0, len(split), batch_size):
        images = data.normalise(split.images[start : start + batch_size])
        labels = split.labels[start : start + batch_size]
        logits = model(images)
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = top == labels[:, None]
        correct += int(hits[:, 0].sum())
        correct_top5 += int(hits.sum())
        loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
    model.train(training)
    count = len(split)
    return Evaluation(
        top1=100.0 * correct / count,
        top5=100.0 * correct_top5 / count,
        loss=loss / count,
        n_images=count,
        n_correct=correct,
        n_correct_top5=correct_top5,
    )
