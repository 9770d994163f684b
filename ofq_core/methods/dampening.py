"""Oscillation dampening: weights are pulled to the middle of their bin (Nagel et al., ICML 2022).

    forward and gradients: LSQ
    penalty = lambda(t) mean over columns of
        [ sum over rows of (q(w) - clip(w, s qmin, s qmax))^2 ],  q(w) without gradient
    lambda(t): 0 for the first 25 % of the run, then cosine from 0 to `strength`

A weight beyond the outer codes has no penalty and no gradient of it, so the penalty does not move s
either. Sum over rows and mean over columns ("kernel_mean"), the 25 % and the default strength 0.1
are the authors' defaults and their scripts for MobileNetV2 (repository oscillations-qat).

Deviations: those of LSQ; the authors start scales at least squared error and train them by Adam
with a rate of 1e-5, here they start as LSQ's and have the recipe's rate. The first and last layer
have no penalty.
"""

from __future__ import annotations

from torch import Tensor

from ofq_core.methods.lsq import LSQWeight
from ofq_core.quant import at_least_float32
from ofq_core.quant.annealing import cosine_anneal
from ofq_core.quant.lsq import SCALE_FLOOR, broadcast_scale

START = 0.25


class DampenedWeight(LSQWeight):
    """LSQ with the dampening loss; strength: lambda at the end of the run."""

    def __init__(self, weight: Tensor, bits: int, strength: float) -> None:
        super().__init__(weight, bits)
        self.strength = strength

    def penalty(self, weight: Tensor, progress: float) -> Tensor | None:
        """A scalar of at least FP32, for weights (rows, ...); None while lambda is 0."""
        strength = cosine_anneal(0.0, self.strength, progress, START)
        if strength == 0.0:
            return None
        step = broadcast_scale(self.scale.detach(), weight.ndim, 0).clamp(min=SCALE_FLOOR)
        latent = at_least_float32(self._held(weight)).clamp(step * self.low, step * self.high)
        return strength * (self.codes(weight) * step - latent).square().sum(0).mean()
