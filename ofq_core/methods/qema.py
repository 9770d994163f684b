"""Q-EMA: round toward a moving average of the weights (TetraJet, Chen et al., ICML 2025), on LSQ.

    a <- decay a + (1 - decay) w after each step, started at the first weights
    v = w / s,  v_a = a / s,  code = floor(v) + [v_a - floor(v) >= 1/2], clipped to the range
    q = s code;  dq/dw = 1 where v is inside the range, else 0
    dq/ds = g (code - v) inside, g code outside,  g as in LSQ

The code is that of the two neighbours of w which is nearer to the average, so a weight that jumps
over a threshold does not take its code along at once. Default decay 0.998: the authors' values are
0.9972 to 0.999.

Deviations: integer codes with a learned scale instead of MXFP4 blocks; both w and a are divided by
the current scale; the average counts from the first step on (there: from the tenth), when it is
still close to the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ofq_core.methods.lsq import LSQWeight
from ofq_core.quant import at_least_float32, lsq_position
from ofq_core.quant.gradient import quantize_as


class EMARoundedWeight(LSQWeight):
    """LSQ that rounds by `average`, a buffer of the weights' shape, at least FP32.

    `position` is that of the weight itself, so a code need not be the rounded position.
    """

    average: Tensor

    def __init__(self, weight: Tensor, bits: int, decay: float) -> None:
        super().__init__(weight, bits)
        self.decay = decay
        self.register_buffer("average", at_least_float32(weight.detach()).clone())

    def codes(self, weight: Tensor, scales: Tensor | None = None) -> Tensor:
        """See `WeightQuantizer.codes`; of the neighbours of w the one nearer to the average."""
        used = self.scales(weight) if scales is None else scales
        below = lsq_position(weight.detach(), used, axis=0).floor_()
        up = lsq_position(self.average, used, axis=0) - below >= 0.5
        return (below + up).clamp_(self.low, self.high).to(torch.int8)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize (rows, ...) with LSQ's gradients for these codes."""
        codes = self.codes(weight)
        self._record(lambda: codes)
        return quantize_as(self._held(weight), self.scale, codes, self.low, self.high)

    @torch.no_grad()
    def after_step(self, weight: Tensor, progress: float) -> None:
        """Let the average follow the weights."""
        self.average.lerp_(weight.detach().to(self.average.dtype), 1.0 - self.decay)
