"""A linear layer on quantized input, LSQ and product in one autograd function.

    y = (z s + b2) W^T + b,   z as in `biased_lsq`, optionally of GELU(x) instead of x

For the backward x is saved (4 bytes an entry) and nothing else of its size: z, and GELU(x), are
computed anew. b2 W^T is folded into the bias, so that b2 costs no pass over the input, forward or
backward: dL/db2 = (sum over rows of dL/dy) W.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ofq_core.quant.biased_lsq import (
    Grid,
    Parameters,
    gradients,
    in_one_pass,
    quantize,
    quantize_again,
)
from ofq_core.quant.product_type import product_dtype


class LinearPlan(NamedTuple):
    """grid: of the input. gelu: timm's approximation ("none" or "tanh"), or "" for no GELU."""

    grid: Grid
    gelu: str = ""


class _QuantizedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        before: Tensor | None,
        after: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        plan: LinearPlan,
    ) -> Tensor:
        dtype = product_dtype(x)
        ctx.save_for_backward(x, scale, before, after, weight)
        ctx.plan, ctx.dtype, ctx.has_bias = plan, dtype, bias is not None
        inner = F.gelu(x, approximate=plan.gelu) if plan.gelu else x
        y = quantize(inner, Parameters(scale, before, None), plan.grid)
        if after is not None:
            with torch.autocast(x.device.type, enabled=False):
                bias = F.linear(after, weight, bias)
        bias = None if bias is None else bias.to(dtype)
        return F.linear(y.to(dtype), weight.to(dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, before, after, weight = ctx.saved_tensors
        plan, dtype = ctx.plan, ctx.dtype
        p = Parameters(scale, before, None)
        inner = F.gelu(x, approximate=plan.gelu) if plan.gelu else x
        y, slopes = quantize_again(inner, p, plan.grid)
        rows = grad.reshape(-1, grad.shape[-1])
        sums = rows.sum(0, dtype=torch.float32 if dtype.itemsize < 4 else None)
        into_weight = rows.t() @ y.to(dtype).reshape(-1, y.shape[-1])
        into_weight = into_weight.to(weight.dtype)
        into_after = None
        if after is not None:
            into_weight.addr_(sums, after)
            into_after = sums @ weight
        into_y = (rows @ weight.to(dtype)).reshape(x.shape)
        of = gradients(into_y, slopes, inner, p, plan.grid, spent=y)
        into_x = of.x
        if plan.gelu:
            into_x = torch.ops.aten.gelu_backward(into_x, x, approximate=plan.gelu)
        into_bias = sums if ctx.has_bias else None
        return into_x, of.scale, of.before, into_after, into_weight, into_bias, None


def quantized_linear(
    x: Tensor, p: Parameters, weight: Tensor, bias: Tensor | None, plan: LinearPlan
) -> Tensor:
    """Quantize x, then y = x W^T + b; gradients to x, p, weight and bias.

    Args:
        x: (..., in), any floating dtype; quantized in at least FP32.
        weight: (out, in), quantized already, at least FP32.
        bias: (out,), of the dtype of `weight`.

    Returns:
        (..., out), in the dtype of autocast where it is on, else of the quantized input.
    """
    result: Tensor = _QuantizedLinear.apply(x, *p, weight, bias, plan)  # type: ignore[no-untyped-call]
    return result


class _BiasedLSQ(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        before: Tensor | None,
        after: Tensor | None,
        grid: Grid,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, before, after)
        ctx.grid = grid
        return quantize(x, Parameters(scale, before, after), grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        p = Parameters(*saved)
        slopes = None if in_one_pass(x, p, ctx.grid) else quantize_again(x, p, ctx.grid)[1]
        return (*gradients(grad, slopes, x, p, ctx.grid), None)


def biased_lsq(x: Tensor, p: Parameters, grid: Grid) -> Tensor:
    """LSQ between its biases as in `ofq_core.quant.biased_lsq`, with gradients to x and p.

    x of any floating dtype; the result has its shape, in at least FP32. Saves x alone.
    """
    result: Tensor = _BiasedLSQ.apply(x, *p, grid)  # type: ignore[no-untyped-call]
    return result
