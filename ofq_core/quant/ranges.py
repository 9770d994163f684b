"""Scales that are set once from data: from its extremes, and those of least squared error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ofq_core.quant.lsq import broadcast_scale, lsq_codes, shared_axes
from ofq_core.quant.statsq import at_least_float32


def group_extremes(x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each group, vectors along `axis` (length 1 for None)."""
    axes = shared_axes(x.ndim, axis)
    if not axes:
        return x.reshape(-1), x.reshape(-1)
    return x.amin(dim=axes).reshape(-1), x.amax(dim=axes).reshape(-1)


def squared_error(x: Tensor, quantized: Tensor, axis: int | None) -> Tensor:
    """Sum of (x - quantized)^2 over each group, a vector along `axis` (length 1 for None)."""
    axes = shared_axes(x.ndim, axis)
    error = (x - quantized).square_()
    return (error.sum(dim=axes) if axes else error).reshape(-1)


def range_scale(x: Tensor, axis: int | None, qmin: int, qmax: int) -> Tensor:
    """Scales at which nothing is off by more than half a step, a vector along `axis` (or length 1).

    Signed: 2 max|x| / (2^b - 1), so that from -max|x| to max|x| there are as many steps as codes
    less one, and all codes can occur. Unsigned: max(x) / qmax; what is not positive counts as 0,
    and the scale is 0 where nothing is positive. A group of zeros has scale 0.
    """
    low, high = group_extremes(at_least_float32(x.detach()), axis)
    if qmin == 0:
        return high.clamp(min=0.0) / qmax
    return torch.maximum(-low, high) * (2.0 / (qmax - qmin))


def least_error_scale(
    x: Tensor, axis: int | None, qmin: int, qmax: int, factors: Sequence[float]
) -> Tensor:
    """Of `range_scale` times each factor, the scale with the least squared error of each group.

    One candidate at a time, for all groups together: needs a few times the memory of x. Of equal
    errors the first counts.
    """
    x = at_least_float32(x.detach())
    largest = range_scale(x, axis, qmin, qmax)
    best = largest.clone()
    least = torch.full_like(largest, torch.inf)
    for factor in factors:
        scale = largest * factor
        step = broadcast_scale(scale, x.ndim, axis)
        error = squared_error(x, lsq_codes(x, scale, qmin, qmax, axis).mul_(step), axis)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best
