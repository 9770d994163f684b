"""Learning rate per epoch: linear warm-up, cosine, then a constant floor (spec 7.1)."""

from __future__ import annotations

import math


def learning_rate(
    epoch: int, epochs: int, lr: float, min_lr: float, warmup_lr: float, warmup_epochs: int
) -> float:
    """Learning rate of a 0-based epoch.

    Warm-up runs from `warmup_lr` towards `lr`; the cosine continues at the epoch's own number,
    not from zero; from `epochs` on the rate is `min_lr` (cool-down and CGA).
    """
    if epoch < warmup_epochs:
        return warmup_lr + epoch * (lr - warmup_lr) / warmup_epochs
    if epoch >= epochs:
        return min_lr
    return min_lr + 0.5 * (lr - min_lr) * (1.0 + math.cos(math.pi * epoch / epochs))
