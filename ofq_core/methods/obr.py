"""OBR, the oscillation-aware bin regularisation of VVTQ (Huang et al., TMLR 2024), on LSQ.

    penalty = lambda(t) mean over rows of
        [ mean (w - q(w))^2 + sum over codes k of var{w : code of w is k} ],  q(w) without gradient
    lambda(t): 0 for the first 25 % of the run, then cosine from 0 to `strength`

var divides by the number of weights less one; a code with fewer than two weights counts 0. q(w) and
the assignment to codes are constants, as in the authors' code (repository Quantization-Variation):
else the penalty would move the scale. Default strength 0.01: the same code.

Deviations: a bin is a code of one row, because scales are per row here (one per layer or head
there), so var is averaged over rows; the latent weights are taken as they are, as in the paper (the
code clips them to the range first). The rest of VVTQ (scales per head, gradient scale from the L1
norm, soft labels of several crops) is not part of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ofq_core.methods.lsq import LSQWeight
from ofq_core.quant import at_least_float32
from ofq_core.quant.annealing import cosine_anneal

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
        latent = at_least_float32(self._held(weight)).flatten(1)
        quantized = at_least_float32(self.quantized(weight)).flatten(1)
        error = (latent - quantized).square().mean()
        return strength * (error + self._variance(latent, self.codes(weight).flatten(1)))

    def _variance(self, latent: Tensor, codes: Tensor) -> Tensor:
        """Sum over codes of the variance of a row's weights with that code, mean over rows."""
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
