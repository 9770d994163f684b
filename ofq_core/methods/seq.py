"""SEQ, the stretched elastic quantizer of ParetoQ (Liu et al., 2025).

    h(r) = (round(clip(r, -1 + d, 1 - d) n - 1/2) + 1/2) / n,  n = 2^(b-1),  d = 0.01
    q = s h(w / s),  s learned, one per row, start: max|w| of the row
    dq/dw = 1 where |w / s| <= 1 - d, else 0
    dq/ds = g (h - w / s) there, g h elsewhere,  g = 1 / sqrt(entries per scale * qmax)

dq/ds follows from the formula with a straight-through round. The codes are round(.) above, on
StatsQ's mid-rise grid, so this is StatsQ with a learned scale and a masked gradient: its learned
twin. qmax = 2^(b-1) - 1, as for LSQ.

Deviations: ParetoQ uses it at 2 bits (and for ternary weights) and LSQ at 3 and 4; here it is
defined at all bits, for that comparison. At 8 bits d is more than a step, and the two outermost
codes do not occur. g counts the weights of a row, not of the tensor; scales are floored at 1e-5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ofq_core.nn import WeightQuantizer
from ofq_core.quant import at_least_float32, code_range, straight_through
from ofq_core.quant.gradient import row_scale
from ofq_core.quant.lsq import lsq_position

MARGIN = 0.01


class SEQWeight(WeightQuantizer):
    """SEQ with one learned scale per row of (rows, ...): half the width of its range."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.low, self.high = code_range(bits, signed=True)
        self.side = -self.low
        self.scale = nn.Parameter(at_least_float32(weight.detach()).flatten(1).abs().amax(1))

    def position(self, weight: Tensor, scales: Tensor | None = None) -> Tensor:
        """See `WeightQuantizer.position`; clipped where the quantizer clips."""
        used = self.scales(weight) if scales is None else scales
        ratio = lsq_position(weight.detach(), used, axis=0).clamp_(-1.0 + MARGIN, 1.0 - MARGIN)
        return ratio.mul_(self.side).sub_(0.5)

    def scales(self, weight: Tensor) -> Tensor:
        """See `WeightQuantizer.scales`."""
        return self.scale.detach()

    def clipped(self, weight: Tensor) -> Tensor:
        """Where |w / s| > 1 - d, and no gradient passes."""
        return lsq_position(weight.detach(), self.scale.detach(), axis=0).abs() > 1.0 - MARGIN

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize (rows, ...) with a gradient to the weights and to the scales."""
        self._record(lambda: self.codes(weight))
        with torch.no_grad():
            levels = self.position(weight).round_().clamp_(self.low, self.high)
            levels.add_(0.5).div_(self.side)
        step = row_scale(self.scale, weight, self.high)
        inside = (at_least_float32(self._held(weight)) / step).clamp(-1.0 + MARGIN, 1.0 - MARGIN)
        return (straight_through(inside, levels) * step).to(weight.dtype)
