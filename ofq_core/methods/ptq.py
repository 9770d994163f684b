"""Calibrated post-training quantization: scales of least squared error, without any training.

    s = argmin over c of sum (x - s round(clip(x / s, qmin, qmax)))^2,  s = c s_0,  c = 0.92^k
    s_0: the scale of round to nearest, from the largest magnitude;  k = 0, ..., 47

The search per row of weights and per group of activations (the calibration batch) is the usual one
of PTQ toolkits ("MSE" range setting). c goes down to 0.02, because single activations of vision
transformers are far larger than the rest. Between round to nearest and methods that reconstruct
layers or treat LayerNorm in their own way (RepQ-ViT), which are not implemented.
"""

from __future__ import annotations

from torch import Tensor

from ofq_core.methods.rtn import RoundToNearestWeight
from ofq_core.nn import LSQActivation, LSQRule
from ofq_core.nn.activation import without_zeros
from ofq_core.quant.ranges import least_error_scale

SHRINK = tuple(0.92**k for k in range(48))


class LeastErrorWeight(RoundToNearestWeight):
    """A fixed scale per row, of least squared error on the weights (rows, ...) given."""

    def _first_scale(self, weight: Tensor) -> Tensor:
        return least_error_scale(weight, 0, self.low, self.high, SHRINK)


class LeastErrorActivation(LSQRule):
    """LSQ's grid with scales of least squared error on the calibration batch."""

    def start(self, module: LSQActivation, x: Tensor) -> None:
        """Scales from a search over shrunk ranges, for all groups at once."""
        module.scale.copy_(
            without_zeros(least_error_scale(x, module.axis, module.low, module.high, SHRINK))
        )
