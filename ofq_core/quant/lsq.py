"""LSQ: quantization with a learned step size (Esser et al., ICLR 2020), in the form OFQ uses.

    v = x / s,  z = round(clamp(v, qmin, qmax)),  y = z s
    dL/dx = dL/dy  1[qmin <= v <= qmax]
    dL/ds = g sum dL/dy (z - v 1[qmin <= v <= qmax]),   g = 1 / sqrt(qmax M)

M is the number of entries that share one scale, in the whole batch of an optimizer step: where a
forward sees a part of that batch only, `whole` says how many times as large the batch is. The
scale is floored at 1e-5 in the forward; its gradient always reaches the parameter, so a scale that
became negative can recover.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ofq_core.quant.statsq import at_least_float32

SCALE_FLOOR = 1e-5


class CodeRange(NamedTuple):
    """Smallest and largest integer code, both included."""

    qmin: int
    qmax: int


def code_range(bits: int, signed: bool) -> CodeRange:
    """Signed: -2^(b-1) to 2^(b-1) - 1. Unsigned: 0 to 2^b - 1.

    Raises:
        ValueError: bits is not an integer from 2 to 8 (1 bit signed has no input gradient).
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"bits = {bits!r}: LSQ takes an integer from 2 to 8")
    n = 1 << (bits - 1)
    return CodeRange(-n, n - 1) if signed else CodeRange(0, 2 * n - 1)


def broadcast_scale(scale: Tensor, ndim: int, axis: int | None) -> Tensor:
    """View a vector of scales so that it broadcasts along `axis` of a tensor with `ndim` axes."""
    if axis is None:
        return scale.reshape([1] * ndim)
    shape = [1] * ndim
    shape[axis] = -1
    return scale.reshape(shape)


def shared_axes(ndim: int, axis: int | None) -> list[int]:
    """The axes over which one scale is shared: all but `axis`."""
    keep = None if axis is None else axis % ndim
    return [i for i in range(ndim) if i != keep]


def lsq_init_scale(x: Tensor, axis: int | None, qmax: int, factor: float) -> Tensor:
    """Initial scales factor * mean|x| / sqrt(qmax), a vector along `axis` (length 1 for None).

    `factor` is 2 for signed and per-tensor quantizers and 4 for unsigned ones (released code).
    """
    magnitude = at_least_float32(x.detach()).abs()
    axes = shared_axes(x.ndim, axis)
    # No axes at all (a vector with a scale per entry): torch would take [] for every axis.
    mean = magnitude.mean(dim=axes) if axes else magnitude
    return mean.reshape(-1) * (factor / math.sqrt(qmax))


def lsq_position(x: Tensor, scale: Tensor, axis: int | None) -> Tensor:
    """v = x / max(s, 1e-5), at least FP32, same shape as x; thresholds lie at t + 1/2."""
    effective = broadcast_scale(scale, x.ndim, axis).clamp(min=SCALE_FLOOR)
    return at_least_float32(x) / effective


def lsq_codes(x: Tensor, scale: Tensor, qmin: int, qmax: int, axis: int | None) -> Tensor:
    """Integer codes round(clamp(v, qmin, qmax)) as float, same shape as x."""
    return lsq_position(x, scale, axis).clamp(qmin, qmax).round()


class _LSQ(torch.autograd.Function):
    """Saves x and s only and recomputes v and z in the backward."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        scale: Tensor,
        qmin: int,
        qmax: int,
        axis: int | None,
        whole: float,
        codes: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.whole = whole  # type: ignore[attr-defined]
        ctx.range, ctx.axis = (qmin, qmax), axis  # type: ignore[attr-defined]
        effective = broadcast_scale(scale, x.ndim, axis).clamp(min=SCALE_FLOOR)
        if codes is not None:
            return (codes * effective).to(x.dtype)
        codes = (at_least_float32(x) / effective).clamp_(qmin, qmax).round_()
        return codes.mul_(effective).to(x.dtype)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx,
        grad: Tensor,
    ) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        x, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        (qmin, qmax), axis = ctx.range, ctx.axis  # type: ignore[attr-defined]
        effective = broadcast_scale(scale, x.ndim, axis).clamp(min=SCALE_FLOOR)
        grad_wide = at_least_float32(grad)
        v = at_least_float32(x) / effective
        clamped = v.clamp(qmin, qmax)
        # A mask of numbers: making and applying a boolean one takes ten times as long on a CPU.
        inside = v.eq_(clamped)
        codes = clamped.round()
        residual = codes.sub_(clamped.mul_(inside)).mul_(grad_wide)
        grad_x = inside.mul_(grad_wide)
        entries = x.numel() // scale.numel() * ctx.whole  # type: ignore[attr-defined]
        gain = 1.0 / math.sqrt(qmax * entries)
        axes = shared_axes(x.ndim, axis)
        total = residual.sum(dim=axes) if axes else residual
        grad_scale = total.reshape(scale.shape) * gain
        return grad_x.to(x.dtype), grad_scale.to(scale.dtype), None, None, None, None, None


def lsq(
    x: Tensor,
    scale: Tensor,
    qmin: int,
    qmax: int,
    axis: int | None,
    whole: float = 1.0,
    codes: Tensor | None = None,
) -> Tensor:
    """Quantize x with learned scales; gradients to x and to the scales as in the module's head.

    Args:
        x: any shape, any floating dtype; computed in at least FP32, returned in its own dtype.
        scale: vector with one entry per index of `axis`, or one entry when axis is None.
        qmin, qmax: code range, see `code_range`; qmax > 0.
        axis: the axis along which scales differ (-2 per token or row, -1 per channel, None per
            tensor).
        whole: images of the whole batch per image of x, at least 1 (see M in the module's head).
        codes: what `lsq_codes` gives for these arguments, where it is known already.

    Raises:
        ValueError: the number of scales does not fit the axis.
    """
    expected = 1 if axis is None else x.shape[axis]
    if scale.numel() != expected:
        raise ValueError(
            f"{scale.numel()} scales for axis {axis} of a tensor of shape {tuple(x.shape)}: "
            f"expected {expected} (a quantizer is made for a fixed number of tokens or channels)"
        )
    result: Tensor = _LSQ.apply(x, scale, qmin, qmax, axis, whole, codes)  # type: ignore[no-untyped-call]
    return result
