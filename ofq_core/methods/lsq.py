"""LSQ: a learned scale per row (Esser et al., "Learned Step Size Quantization", ICLR 2020).

    v = w / s,  q = s round(clip(v, qmin, qmax)),  signed codes -2^(b-1) .. 2^(b-1) - 1
    dq/dw = 1 inside the range, else 0
    dq/ds = g (round(v) - v) inside, g qmin or g qmax outside,
            g = 1 / sqrt(entries per scale * qmax)
    start: s = 2 mean|w| / sqrt(qmax)

The formula and its gradients are `ofq_core.quant.lsq`. Deviations: a scale per row instead of one
per layer, as in the OFQ code; the mask includes its ends; scales are floored at 1e-5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ofq_core.nn import WeightQuantizer
from ofq_core.quant import code_range, lsq, lsq_codes, lsq_init_scale, lsq_position


class LSQWeight(WeightQuantizer):
    """LSQ with one learned scale per row, set from the weights given; the base of its variants."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.low, self.high = code_range(bits, signed=True)
        self.scale = nn.Parameter(self._first_scale(weight))

    def _first_scale(self, weight: Tensor) -> Tensor:
        """Scales to start from, one per row."""
        return lsq_init_scale(weight, axis=0, qmax=self.high, factor=2.0)

    def position(self, weight: Tensor, scales: Tensor | None = None) -> Tensor:
        """See `WeightQuantizer.position`; beyond the outer codes it is clipped half a step out."""
        v = lsq_position(weight.detach(), self.scales(weight) if scales is None else scales, axis=0)
        return v.clamp_(self.low - 0.5, self.high + 0.5)

    def codes(self, weight: Tensor, scales: Tensor | None = None) -> Tensor:
        """See `WeightQuantizer.codes`."""
        used = self.scales(weight) if scales is None else scales
        return lsq_codes(weight.detach(), used, self.low, self.high, axis=0).to(torch.int8)

    def scales(self, weight: Tensor) -> Tensor:
        """See `WeightQuantizer.scales`."""
        return self.scale.detach()

    def clipped(self, weight: Tensor) -> Tensor:
        """Beyond the outermost codes, where LSQ passes no gradient."""
        v = lsq_position(weight.detach(), self.scale.detach(), axis=0)
        return (v < self.low) | (v > self.high)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize (rows, ...) with the gradients of LSQ."""
        codes = None
        if self.records:
            codes = lsq_codes(weight.detach(), self.scales(weight), self.low, self.high, axis=0)
            self.last_codes = codes
        return lsq(self._held(weight), self.scale, self.low, self.high, axis=0, codes=codes)
