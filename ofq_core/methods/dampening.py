"""Oscillation dampening: weights are pulled to the middle of their bin (Nagel et al., ICML 2022).

    forward and gradients: LSQ
    penalty = lambda(t) sum (q(w) - clip(w, s qmin, s qmax))^2,  q(w) and s without gradient
    lambda(t): cosine from 0 to `strength` over the run

A weight beyond the outer codes has no penalty and no gradient of it. Default strength 0.1: the
authors' scripts for MobileNetV2 (repository oscillations-qat). Deviations: those of LSQ.
"""

from __future__ import annotations

from torch import Tensor

from ofq_core.methods.lsq import LSQWeight
from ofq_core.quant import at_least_float32
from ofq_core.quant.annealing import cosine_anneal
from ofq_core.quant.lsq import SCALE_FLOOR, broadcast_scale


class DampenedWeight(LSQWeight):
    """LSQ with the dampening loss; strength: lambda at the end of the run."""

    def __init__(self, weight: Tensor, bits: int, strength: float) -> None:
        super().__init__(weight, bits)
        self.strength = strength

    def penalty(self, weight: Tensor, progress: float) -> Tensor | None:
        """Sum over all weights (rows, ...), a scalar of at least FP32; None while lambda is 0."""
        strength = cosine_anneal(0.0, self.strength, progress)
        if strength == 0.0:
            return None
        step = broadcast_scale(self.scale.detach(), weight.ndim, 0).clamp(min=SCALE_FLOOR)
        latent = at_least_float32(self._held(weight)).clamp(step * self.low, step * self.high)
        return strength * (self.codes(weight) * step - latent).square().sum()
