"""Weight quantizers as modules: the functions of `ofq_core.quant` plus the little state they need.

All have one interface, so that layers, CGA and the oscillation tracker need not know which is in
use. Weights come as (rows, ...); StatsQ needs a matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ofq_core.quant import (
    code_range,
    free_mask,
    lsq,
    lsq_codes,
    lsq_init_scale,
    lsq_position,
    observed_code_range,
    statsq_dequantize,
    statsq_position,
    statsq_scale,
    straight_through,
)


class WeightQuantizer(nn.Module):
    """Base: latent weights in, quantized weights out, and where each weight stands on its grid.

    Attributes:
        bits: 2 to 8, or 32 when nothing is quantized.
        low, high: smallest and largest code.
        record: keep the codes of the last training forward in `last_codes` (for the tracker).
        gradient_band: when set, only weights within this many steps of a threshold pass a
            gradient back (CGA on a product of parameters, where no weight can be restored).
        observed_range: CGA counts only thresholds between codes that occur (released behaviour).
    """

    bits: int
    low: int
    high: int

    def __init__(self) -> None:
        super().__init__()
        self.record = False
        self.last_codes: Tensor | None = None
        self.gradient_band: float | None = None
        self.observed_range = False

    def position(self, weight: Tensor) -> Tensor:
        """Unrounded codes; decision thresholds lie at t + 1/2 for t = low .. high - 1."""
        raise NotImplementedError

    def codes(self, weight: Tensor) -> Tensor:
        """Integer codes as int8 (int16 where they do not fit), shape of the weights."""
        kind = torch.int8 if self.low >= -128 and self.high <= 127 else torch.int16
        return self.position(weight).round_().clamp_(self.low, self.high).to(kind)

    def scales(self, weight: Tensor) -> Tensor:
        """The scales in use, a vector, detached."""
        raise NotImplementedError

    def free(self, weight: Tensor, boundary_range: float) -> Tensor:
        """CGA: True where a weight lies within `boundary_range` steps of a threshold."""
        position = self.position(weight)
        low, high = self.low, self.high
        if self.observed_range:
            low, high = observed_code_range(self.codes(weight))
        return free_mask(position, boundary_range, low, high)


class StatsQWeight(WeightQuantizer):
    """StatsQ (`ofq_core.quant.statsq`): no parameters, one scale per row from the weights.

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

    def position(self, weight: Tensor) -> Tensor:
        """See `WeightQuantizer.position`."""
        return statsq_position(weight, self.bits, clip=self.clip)

    def scales(self, weight: Tensor) -> Tensor:
        """See `WeightQuantizer.scales`."""
        return statsq_scale(weight).flatten()

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize (rows, cols); the gradient passes straight through to the weights."""
        scale = statsq_scale(weight)
        position = statsq_position(weight, self.bits, scale, self.clip)
        codes = position.round().clamp_(self.low, self.high)
        if self.record and self.training:
            self.last_codes = codes
        free = None
        if self.gradient_band is not None and self.training:
            free = self.free(weight, self.gradient_band)
        return straight_through(weight, statsq_dequantize(codes, scale, self.bits), free)

    def extra_repr(self) -> str:
        """Show the bit width when the module is printed."""
        return f"bits={self.bits}"


class LSQWeight(WeightQuantizer):
    """LSQ (`ofq_core.quant.lsq`) with one learned scale per row, set from the weights given."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.low, self.high = code_range(bits, signed=True)
        self.scale = nn.Parameter(lsq_init_scale(weight, axis=0, qmax=self.high, factor=2.0))

    def position(self, weight: Tensor) -> Tensor:
        """See `WeightQuantizer.position`; beyond the outer codes it is clipped half a step out."""
        v = lsq_position(weight.detach(), self.scale.detach(), axis=0)
        return v.clamp_(self.low - 0.5, self.high + 0.5)

    def codes(self, weight: Tensor) -> Tensor:
        """See `WeightQuantizer.codes`."""
        codes = lsq_codes(weight.detach(), self.scale.detach(), self.low, self.high, axis=0)
        return codes.to(torch.int8)

    def scales(self, weight: Tensor) -> Tensor:
        """See `WeightQuantizer.scales`."""
        return self.scale.detach()

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize (rows, ...) with the gradients of LSQ."""
        if self.record and self.training:
            self.last_codes = self.codes(weight)
        if self.gradient_band is not None and self.training:
            free = self.free(weight, self.gradient_band)
            weight = straight_through(weight, weight.detach(), free)
        return lsq(weight, self.scale, self.low, self.high, axis=0)

    def extra_repr(self) -> str:
        """Show the bit width when the module is printed."""
        return f"bits={self.bits}"


class FullPrecisionWeight(WeightQuantizer):
    """The quantizer that is switched off (32 bits)."""

    bits = 32

    def __init__(self, weight: Tensor) -> None:
        super().__init__()

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weights themselves."""
        return weight


MakeWeightQuantizer = Callable[[Tensor], WeightQuantizer]
