"""The distillation loss (spec 7.1): hard labels on the class head, soft ones on the other."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Losses(NamedTuple):
    """Scalars: the weighted sum that is minimised, and its two parts before weighting."""

    total: Tensor
    hard: Tensor
    soft: Tensor


def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """- mean over the batch of sum_c p_teacher(c) log p_student(c); both (batch, classes).

    Scaled by temperature^2, so that the gradient's size does not depend on it.
    """
    target = F.softmax(teacher_logits / temperature, dim=-1)
    loss = F.cross_entropy(logits / temperature, target)
    return loss * temperature**2


def distillation_loss(
    outputs: Tensor | tuple[Tensor, Tensor],
    labels: Tensor,
    teacher_logits: Tensor | None,
    hard_weight: float = 1.0,
    soft_weight: float = 1.0,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> Losses:
    """Cross-entropy to the labels plus soft cross-entropy to the teacher.

    Args:
        outputs: (class logits, distillation logits) of a distilled model, or one tensor, which
            then takes both terms; (batch, classes) each.
        labels: class indices (batch,) or probabilities (batch, classes).
        teacher_logits: (batch, classes), not differentiated; None: the second head learns the
            labels too (training without a teacher).
    """
    class_logits, other_logits = outputs if isinstance(outputs, tuple) else (outputs, outputs)
    hard = F.cross_entropy(class_logits, labels, label_smoothing=label_smoothing)
    if teacher_logits is not None:
        soft = soft_cross_entropy(other_logits, teacher_logits.detach(), temperature)
    elif isinstance(outputs, tuple):
        soft = F.cross_entropy(other_logits, labels, label_smoothing=label_smoothing)
    else:
        soft = hard.new_zeros(())
    return Losses(hard_weight * hard + soft_weight * soft, hard, soft)


class Teacher:
    """A frozen full-precision model in evaluation mode with a stated output head.

    Args:
        model: its parameters stop requiring gradients.
        head: "mean" (its inference output) or "cls" (the class head of a distilled model, as in
            the released code). The same for a model with one head.
    """

    def __init__(self, model: nn.Module, head: str) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.head = head

    @torch.no_grad()  # not inference mode: its tensors may not enter the student's graph
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        if self.head == "cls" and hasattr(self.model, "head_dist"):
            class_token = self.model.forward_features(images)[:, 0]
            logits: Tensor = self.model.head(self.model.head_drop(class_token))
            return logits
        logits = self.model(images)
        return logits
