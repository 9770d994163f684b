"""Gradients that are not the derivative of the forward: scaled ones, and LSQ's for any codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ofq_core.quant.lsq import SCALE_FLOOR, broadcast_scale
from ofq_core.quant.statsq import at_least_float32, straight_through


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, factor: float | Tensor
    ) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        scaled: Tensor = grad * ctx.factor  # type: ignore[attr-defined]
        return scaled.to(grad.dtype), None


def scale_gradient(x: Tensor, factor: float | Tensor) -> Tensor:
    """x in the forward; in the backward the gradient times `factor` (a number, or x's shape).

    The usual x f + (x - x f) without a graph is not exactly x in floating point.
    """
    result: Tensor = _ScaleGradient.apply(x, factor)  # type: ignore[no-untyped-call]
    return result


def lsq_gradient_scale(entries: float, qmax: int) -> float:
    """LSQ's g = 1 / sqrt(entries per scale * qmax)."""
    return 1.0 / math.sqrt(entries * qmax)


def floored(scale: Tensor) -> Tensor:
    """Scales of at least 1e-5; the gradient passes where they are floored too, as in LSQ."""
    return straight_through(scale, scale.detach().clamp(min=SCALE_FLOOR))


def row_scale(scale: Tensor, weight: Tensor, qmax: int) -> Tensor:
    """Learned scales as they enter a formula: (rows, 1, ...), floored, their gradient times g.

    Args:
        scale: one entry per row.
        weight: (rows, ...), for its shape.
        qmax: largest code.
    """
    gain = lsq_gradient_scale(weight.numel() / scale.numel(), qmax)
    return broadcast_scale(floored(scale_gradient(scale, gain)), weight.ndim, 0)


def quantize_as(weight: Tensor, scale: Tensor, codes: Tensor, qmin: int, qmax: int) -> Tensor:
    """s codes, with the gradients that LSQ has for its own codes.

        dq/dw = 1[qmin <= w/s <= qmax],  dq/ds = g (code - w/s 1[qmin <= w/s <= qmax])

    Args:
        weight: (rows, ...), any floating dtype; computed in at least FP32.
        scale: one entry per row.
        codes: the codes to use, any dtype, shape of the weights.
        qmin, qmax: code range; outside it a weight passes no gradient.

    Returns:
        Shape and dtype of the weights.
    """
    step = row_scale(scale, weight, qmax)
    inside = (at_least_float32(weight) / step).clamp(qmin, qmax)
    return (straight_through(inside, codes) * step).to(weight.dtype)
