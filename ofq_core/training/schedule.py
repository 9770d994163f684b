"""Phases of a run, and the learning rate: linear warm-up, cosine, then a constant floor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ofq_core.settings import FidelitySettings, RecipeSettings

QAT, COOLDOWN, ANNEAL = "qat", "cooldown", "anneal"


def learning_rate(
    epoch: float, epochs: int, lr: float, min_lr: float, warmup_lr: float, warmup_epochs: int
) -> float:
    """Learning rate at a 0-based epoch (spec 7.1), or, with a fraction, within one.

    Warm-up runs from `warmup_lr` towards `lr`; the cosine continues at the epoch's own number,
    not from zero; from `epochs` on the rate is `min_lr` (cool-down and CGA).
    """
    if epoch < warmup_epochs:
        return warmup_lr + epoch * (lr - warmup_lr) / warmup_epochs
    if epoch >= epochs:
        return min_lr
    return min_lr + 0.5 * (lr - min_lr) * (1.0 + math.cos(math.pi * epoch / epochs))


@dataclass(frozen=True)
class Schedule:
    """What each epoch and step of a run is.

    phases: one name per epoch: qat (warm-up and cosine), cooldown, anneal (the last phase of
    every method). steps: optimizer steps per epoch. per_step: the rate changes with every step
    instead of once an epoch.
    """

    recipe: RecipeSettings
    phases: tuple[str, ...]
    steps: int
    per_step: bool

    @classmethod
    def from_settings(
        cls, recipe: RecipeSettings, fidelity: FidelitySettings, steps: int
    ) -> Schedule:
        """`recipe.cooldown_epochs` count only with `fidelity.cooldown`."""
        phases = [QAT] * recipe.epochs
        phases += [COOLDOWN] * (recipe.cooldown_epochs if fidelity.cooldown else 0)
        phases += [ANNEAL] * recipe.cga_epochs
        return cls(recipe, tuple(phases), steps, fidelity.lr_step == "step")

    @property
    def last_phase(self) -> int:
        """The first epoch whose weights may be selected.

        That of the last phase, for every method, so that the model of a run with CGA has always
        been through CGA; 0 without such a phase.
        """
        return len(self.phases) - self.recipe.cga_epochs if self.recipe.cga_epochs else 0

    def rate(self, epoch: int, step: int = 0) -> float:
        """Learning rate of a step of an epoch."""
        recipe = self.recipe
        return learning_rate(
            epoch + step / self.steps if self.per_step else epoch,
            recipe.epochs,
            recipe.lr,
            recipe.min_lr,
            recipe.warmup_lr,
            recipe.warmup_epochs,
        )
