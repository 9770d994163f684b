"""The distillation loss (spec 7.1): hard labels on the class head, soft ones on the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofq_core.quant.statsq import at_least_float32
from ofq_core.training.teacher_cache import TeacherCache


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
    """Cross-entropy to the labels plus soft cross-entropy to the teacher, in at least FP32.

    Args:
        outputs: (class logits, distillation logits) of a distilled model, or one tensor, which
            then takes both terms; (batch, classes) each.
        labels: class indices (batch,) or probabilities (batch, classes) of mixed images.
        teacher_logits: (batch, classes), not differentiated; None: the second head learns the
            labels too (training without a teacher).
        label_smoothing: of class indices; probabilities are taken as they are, mixing has
            smoothed them (spec 7.1).
    """
    class_logits, other_logits = map(
        at_least_float32, outputs if isinstance(outputs, tuple) else (outputs, outputs)
    )
    if labels.ndim == 2:
        label_smoothing = 0.0
    hard = F.cross_entropy(class_logits, labels, label_smoothing=label_smoothing)
    if teacher_logits is not None:
        soft = soft_cross_entropy(
            other_logits, at_least_float32(teacher_logits.detach()), temperature
        )
    elif isinstance(outputs, tuple):
        soft = F.cross_entropy(other_logits, labels, label_smoothing=label_smoothing)
    else:
        soft = hard.new_zeros(())
    return Losses(hard_weight * hard + soft_weight * soft, hard, soft)


class Teacher:
    """A frozen full-precision model with a stated output head.

    Args:
        model: its parameters stop requiring gradients.
        head: "mean" (its inference output, the mean of a distilled model's heads) or "cls" (the
            class head alone, as in the released code). The same for a model with one head.
        mode: "eval", or "train" as in the released code: dropout and stochastic depth act.
        cache: answers of earlier runs; for mode "eval" alone, since the other draws its answers.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Literal["mean", "cls"],
        mode: Literal["eval", "train"] = "eval",
        cache: TeacherCache | None = None,
    ) -> None:
        if cache is not None and mode == "train":
            raise ValueError("mode = 'train': its answers are drawn and cannot be cached")
        self.cache = cache
        self.model: Any = model.train(mode == "train").requires_grad_(False)
        heads = {
            ("eval", "mean"): self._inference,
            ("eval", "cls"): self._class_head,
            ("train", "mean"): self._mean_of_outputs,
            ("train", "cls"): self._first_output,
        }
        distilled = hasattr(model, "head_dist")
        self._logits: Callable[[Tensor], Tensor]
        self._logits = heads[mode, head] if distilled else self._inference

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (batch, classes), detached."""
        return self._ask(images) if self.cache is None else self.cache.logits(images, self._ask)

    def _ask(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = self._logits(images)
        # A copy made here is a plain tensor, which the student's graph may save.
        return logits.clone()

    def _inference(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def _class_head(self, images: Tensor) -> Tensor:
        class_token = self.model.forward_features(images)[:, 0]
        logits: Tensor = self.model.head(self.model.head_drop(class_token))
        return logits

    # In training mode a distilled model returns (class logits, distillation logits).
    def _first_output(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)[0]
        return logits

    def _mean_of_outputs(self, images: Tensor) -> Tensor:
        class_logits, other_logits = self.model(images)
        mean: Tensor = (class_logits + other_logits) / 2
        return mean
