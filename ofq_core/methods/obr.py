"""OBR, the oscillation-aware bin regularisation of VVTQ (Huang et al., TMLR 2024), on LSQ.

    c = clip(w, s qmin, s qmax)
    penalty = lambda(t) mean over rows of
        [ mean (c - q(w))^2 + sum over codes k of var{c : code of w is k} ],  q(w) without gradient
    dc/dw = 1 inside the range, else 0;  dc/ds = 0 inside, g qmin or g qmax outside,  g as in LSQ
    lambda(t): 0 for the first 25 % of the run, then cosine from 0 to `strength`

var divides by the number of weights less one; a code with fewer than two weights counts 0. q(w) and
the assignment to codes are constants. As in the authors' code (repository Quantization-Variation) a
clipped weight gets no gradient from the penalty; it stands at an outer code, and pulls the scale
toward the rest of its bin instead. (The paper's formula has the latent weights themselves.) Default
strength 0.01: the same code.

Deviations: a bin is a code of one row, because scales are per row here (one per layer or head
there), so var is averaged over rows; lambda changes with every step (there: every epoch). The rest
of VVTQ (scales per head that start at least squared error, gradient scale from the L1 norm, soft
labels of several crops) is not part of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ofq_core.methods.lsq import LSQWeight
from ofq_core.quant import at_least_float32
from ofq_core.quant.annealing import cosine_anneal
from ofq_core.quant.gradient import row_scale

START = 0.25


class BinRegularisedWeight(LSQWeight):
    """LSQ with OBR; strength: lambda at the end of the run."""

    def __init__(self, weight: Tensor, bits: int, strength: float) -> None:
        super().__init__(weight, bits)
        self.strength = strength

    def penalty(self, weight: Tensor, progress: float) -> Tensor | None:
        """A scalar of at least FP32, for weights (rows, ...); None while lambda is 0."""
        strength = cosine_anneal(0.0, self.strength, progress, START)
        if strength == 0.0:
            return None
        step = row_scale(self.scale, weight, self.high)
        clipped = at_least_float32(self._held(weight)).clamp(step * self.low, step * self.high)
        codes = self.codes(weight)
        error = (clipped - codes * step.detach()).square().mean()
        return strength * (error + self._variance(clipped.flatten(1), codes.flatten(1)))

    def _variance(self, latent: Tensor, codes: Tensor) -> Tensor:
        """Sum over codes of the variance of a row's values with that code, mean over rows."""
        bins = codes.long() - self.low
        shape = (latent.shape[0], self.high - self.low + 1)
        with torch.no_grad():
            count = latent.new_zeros(shape).scatter_add_(1, bins, torch.ones_like(latent))
            total = latent.new_zeros(shape).scatter_add_(1, bins, latent)
            mean = (total / count.clamp(min=1.0)).gather(1, bins)
            divisor = (count - 1.0).clamp(min=1.0).gather(1, bins)
        # The mean can be a constant: the deviations from it sum to zero in each bin, and with them
        # the gradient through it.
        return ((latent - mean).square() / divisor).sum() / latent.shape[0]
