"""Round to nearest: post-training quantization without calibration of the weights, the floor.

    weights: s = 2 max|w| / (2^b - 1) of each row,  q = s clip(round(w / s), -2^(b-1), 2^(b-1) - 1)
    activations: s = max|x| / ((2^b - 1) / 2) of each group of the calibration batch (signed),
        max(x) / (2^b - 1) (unsigned)

The usual range rule (as in GPTQ's symmetric mode). The largest magnitude lies half a step from an
outer code on either side, so nothing is off by more than half a step and all 2^b codes can occur;
max|w| / (2^(b-1) - 1) would leave one code unused, which at 2 bits is one of four. Nothing is
trained: the scale of weights is a buffer.
"""

from __future__ import annotations

from torch import Tensor

from ofq_core.methods.lsq import LSQWeight
from ofq_core.nn import LSQActivation, LSQRule
from ofq_core.nn.activation import without_zeros
from ofq_core.quant.ranges import range_scale


class RoundToNearestWeight(LSQWeight):
    """LSQ's grid with a fixed scale per row, from the weights (rows, ...) given; no parameters.

    The gradient of the weights is LSQ's.
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        scale = self.scale.detach()
        del self.scale
        self.register_buffer("scale", scale)

    def _first_scale(self, weight: Tensor) -> Tensor:
        return range_scale(weight, 0, self.low, self.high)


class RangeActivation(LSQRule):
    """LSQ's grid with scales at which nothing of the batch is off by more than half a step."""

    def start(self, module: LSQActivation, x: Tensor) -> None:
        """Scales from smallest and largest value of each group."""
        module.scale.copy_(without_zeros(range_scale(x, module.axis, module.low, module.high)))
