"""StableQAT: a smooth gradient of rounding from its Fourier series (Chen et al., 2026), on LSQ.

    forward, dq/ds: LSQ
    start: s = max|w| of each row / qmax, which is max|w| at 2 bits
    dq/dw = (1 - z) / (1 + z) inside the range, else 0
    z = sqrt(2) pi A cos(pi (v + round(v))),  v = w / s

cos(pi (v + round(v))) = cos(pi (v - round(v))), so the factor is 1 at a threshold and smallest, but
above zero for A < 1 / (sqrt(2) pi) = 0.225, in the middle of a bin. A = 0 is the straight-through
estimator. The authors' code (repository microsoft/StableQAT, commit 68a6572) starts at max|w| at 2
bits and at max|w| / (2^(b-1) - 1) at 3 and 4, which is one rule, as qmax is 1 at 2 bits. Only the
first term of the series (k = 0), as in its training configurations, which set A = 0.21 at 2, 3 and
4 bits (an earlier version has a fixed 0.2): the default. The scale keeps LSQ's gradient, as there.

Deviations: g counts the weights of a row, not of the tensor; the mask includes its ends; scales are
floored at 1e-5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ofq_core.methods.lsq import LSQWeight
from ofq_core.quant import at_least_float32, lsq, lsq_position
from ofq_core.quant.gradient import scale_gradient


class StableWeight(LSQWeight):
    """LSQ with StableQAT's gradient of the weights; amplitude: A, 0 to below 0.225."""

    def __init__(self, weight: Tensor, bits: int, amplitude: float) -> None:
        super().__init__(weight, bits)
        self.amplitude = amplitude

    def _first_scale(self, weight: Tensor) -> Tensor:
        return at_least_float32(weight.detach()).flatten(1).abs().amax(1) / self.high

    @torch.no_grad()
    def surrogate(self, weight: Tensor) -> Tensor:
        """(1 - z) / (1 + z), at least FP32, shape of the weights (rows, ...)."""
        v = lsq_position(weight.detach(), self.scale.detach(), axis=0)
        z = (v - v.round()).mul_(math.pi).cos_().mul_(math.sqrt(2.0) * math.pi * self.amplitude)
        return (1.0 - z) / (1.0 + z)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize (rows, ...) as LSQ does; its gradient to the weights times the surrogate."""
        self._record(lambda: self.codes(weight))
        shaped = scale_gradient(self._held(weight), self.surrogate(weight))
        return lsq(shaped, self.scale, self.low, self.high, axis=0)
