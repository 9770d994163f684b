"""StatsQ: the scale is a statistic of the weights (Liu et al., OFQ, ICML 2023, section 3.1, Eq. 7).

    s = 2 mean|w| of each row,  u = clamp(w / s, -1, 1 - 1e-6) n - 1/2,  n = 2^(b-1)
    q = s (round(u) + 1/2) / n,  dq/dw = 1

The formula is `ofq_core.quant.statsq`. No parameters, no clipping mask. Deviation: returns the
grid values themselves, where the released code returns (q - w) + w.
"""

from __future__ import annotations

from torch import Tensor

from ofq_core.nn import WeightQuantizer
from ofq_core.quant import (
    at_least_float32,
    code_range,
    statsq_position,
    statsq_quantize,
    statsq_scale,
    straight_through,
)


class StatsQWeight(WeightQuantizer):
    """StatsQ, one scale per row from the weights (rows, cols).

    clip: c of `statsq_position`, a buffer that only an imported checkpoint sets; None is 1.
    """

    clip: Tensor | None

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.low, self.high = code_range(bits, signed=True)
        self.register_buffer("clip", None)

    def set_clip(self, clip: Tensor) -> None:
        """Clip at c instead of 1, as a released checkpoint may say; c above 1 adds outer codes."""
        self.clip = clip.detach().clone()
        n = 1 << (self.bits - 1)
        self.low = int((-self.clip * n - 0.5).round())
        self.high = int(((self.clip - 1e-6) * n - 0.5).round())

    def position(self, weight: Tensor, scales: Tensor | None = None) -> Tensor:
        """See `WeightQuantizer.position`."""
        rows = None if scales is None else scales.unsqueeze(1)
        return statsq_position(weight, self.bits, rows, self.clip)

    def scales(self, weight: Tensor) -> Tensor:
        """See `WeightQuantizer.scales`."""
        return statsq_scale(weight).flatten()

    def clipped(self, weight: Tensor) -> Tensor:
        """Beyond the outermost grid cell; StatsQ passes their gradient all the same."""
        bound = statsq_scale(weight) * (1.0 if self.clip is None else self.clip)
        return at_least_float32(weight.detach()).abs() > bound

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize (rows, cols); the gradient passes straight through to the weights."""
        values, codes = statsq_quantize(weight, self.bits, self.clip, with_codes=self.records)
        if codes is not None:
            self.last_codes = codes
        return straight_through(self._held(weight), values)
