"""Confidence-guided annealing: which weights may still move (OFQ, section 3.3).

A weight is free when its position u on the code axis lies within `boundary_range` of a decision
threshold t + 1/2, t = kmin .. kmax - 1 (inclusive), else frozen: far from a threshold means
confident. The range is in units of one quantization step. Clipped weights are frozen.
"""

from __future__ import annotations

import torch
from torch import Tensor


def free_mask(position: Tensor, boundary_range: float, kmin: int, kmax: int) -> Tensor:
    """Boolean mask, True where a weight is free to move; shape of `position`.

    Args:
        position: u, unrounded codes (`statsq_position`, or v of LSQ), FP32 or FP64.
        boundary_range: half width of the band round a threshold, in steps, 0 < range <= 0.5.
        kmin, kmax: smallest and largest code whose thresholds count. The theoretical range of the
            grid by default; the released code takes the range observed in the tensor.
    """
    if not 0.0 < boundary_range <= 0.5:
        raise ValueError(f"boundary_range = {boundary_range!r}: expected a number in (0, 0.5]")
    # The band round t + 1/2 includes its ends: with range 0.5 kmax itself belongs to t = kmax - 1.
    below = position.floor().clamp_(max=kmax - 1)
    offset = position - below
    inside = offset >= 0.5 - boundary_range
    inside &= offset <= 0.5 + boundary_range
    inside &= below >= kmin
    return inside


def observed_code_range(codes: Tensor) -> tuple[int, int]:
    """Smallest and largest code that occurs in the tensor (released behaviour)."""
    low, high = torch.aminmax(codes)
    return int(low), int(high)
