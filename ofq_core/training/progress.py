"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class Running:
    """The epoch under way, after `steps` of its steps.

    losses: sums over steps of the total, hard and soft loss of the whole batch. frozen: sum over
    steps of the weights that CGA froze. counts: the tracker's counts before the first step.
    seconds: over all attempts.
    """

    steps: int = 0
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    frozen: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    counts: tuple[int, int] = (0, 0)
    seconds: float = 0.0


@dataclass
class Progress:
    """Everything in it is part of the checkpoint.

    epoch: finished epochs. step: optimizer steps so far. running: the epoch under way. history:
    one dict per finished epoch. best: epoch, validation top-1 (None without a validation split)
    and weights of the selected model so far. seconds: training time over all attempts.
    unreadable: names of images that no process could read.
    """

    epoch: int = 0
    step: int = 0
    running: Running = field(default_factory=Running)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = -1
    best_top1: float | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    unreadable: list[str] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "running": dict(vars(self.running))}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Progress:
        """Inverse of `state_dict`; KeyError where a key is missing or unknown."""
        for kind, given in ((cls, state), (Running, state["running"])):
            different = given.keys() ^ {each.name for each in fields(kind)}
            if different:
                raise KeyError(sorted(different)[0])
        return cls(**{**state, "running": Running(**state["running"])})


@dataclass(frozen=True)
class StepEvent:
    """Told to the observer after every step.

    images_per_second: of the current epoch. val_top1: of the last finished epoch; None before, and
    without a validation split.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    loss: float
    val_top1: float | None
