"""LSQ between two learnable biases as it stands in every quantized layer, and what fuses with it.

    v = (x + b1) / s,  z = round(clamp(v, qmin, qmax)),  y = z s + b2        (spec 3.1)

`lsq` has the gradients. Here they are plain functions without a graph, from which the autograd
functions of `fused_linear` and `fused_attention` are built: those save x alone and compute v anew
in the backward. A pass over memory is what these formulas cost, so `kernels` does them in one where
it can. Elsewhere torch's operators do the same to the bit: in place, and with masks that are
numbers, since on a CPU making and applying a boolean mask takes ten times as long.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ofq_core.quant import kernels
from ofq_core.quant.lsq import SCALE_FLOOR
from ofq_core.quant.statsq import at_least_float32


class Grid(NamedTuple):
    """How LSQ divides a tensor.

    qmin, qmax: code range. view: shape in which x is seen (as many entries). scale: shape of the
    scales beside it. bias: shape in which both biases are added to x. whole: images of the batch
    of an optimizer step per image of x.
    """

    qmin: int
    qmax: int
    view: tuple[int, ...]
    scale: tuple[int, ...]
    bias: tuple[int, ...]
    whole: float = 1.0


class Parameters(NamedTuple):
    """Of one quantizer: scales (vector), and biases (vectors) or None for none. Contiguous."""

    scale: Tensor
    before: Tensor | None
    after: Tensor | None


class Gradients(NamedTuple):
    """With respect to x and the parameters, each in its shape and dtype."""

    x: Tensor
    scale: Tensor
    before: Tensor | None
    after: Tensor | None


class Slopes(NamedTuple):
    """What the backward needs of the forward, in at least FP32 and shape `grid.view`.

    inside: 1 where qmin <= v <= qmax, else 0. residual: v inside - z.
    """

    inside: Tensor
    residual: Tensor


def _step(scale: Tensor, grid: Grid) -> Tensor:
    return scale.clamp(min=SCALE_FLOOR).view(grid.scale)


def _positions(x: Tensor, step: Tensor, p: Parameters, grid: Grid) -> Tensor:
    """v, a new tensor of shape `grid.view`."""
    x = at_least_float32(x)
    if p.before is None:
        return x.reshape(grid.view) / step
    return (x + p.before.view(grid.bias)).reshape(grid.view).div_(step)


def _values(codes: Tensor, step: Tensor, x: Tensor, after: Tensor | None, grid: Grid) -> Tensor:
    """y in the place of its codes."""
    y = codes.mul_(step).reshape(x.shape)
    return y if after is None else y.add_(after.view(grid.bias))


def _layout(x: Tensor, p: Parameters, grid: Grid) -> kernels.Layout | None:
    """How `kernels` go through x; None where they cannot."""
    if not kernels.usable(x, p.scale):
        return None
    columns = 0 if p.before is None and p.after is None else math.prod(grid.bias)
    return kernels.layout(
        x.shape,
        kernels.row_distance(x),
        grid.view,
        grid.scale,
        columns,
        (grid.qmin, grid.qmax, SCALE_FLOOR),
        torch.get_num_threads(),
    )


def quantize(x: Tensor, p: Parameters, grid: Grid) -> Tensor:
    """y: shape of x, at least FP32, a new tensor."""
    layout = _layout(x, p, grid)
    if layout is not None:
        return kernels.forward(x, *p, layout)
    step = _step(p.scale, grid)
    codes = _positions(x, step, p, grid).clamp_(grid.qmin, grid.qmax).round_()
    return _values(codes, step, x, p.after, grid)


def in_one_pass(x: Tensor, p: Parameters, grid: Grid) -> bool:
    """Whether `gradients` needs nothing of `quantize_again`."""
    return _layout(x, p, grid) is not None


def quantize_again(x: Tensor, p: Parameters, grid: Grid) -> tuple[Tensor, Slopes | None]:
    """`quantize` in the backward, with what `gradients` needs beyond its other arguments."""
    layout = _layout(x, p, grid)
    if layout is not None:
        return kernels.forward(x, *p, layout), None
    step = _step(p.scale, grid)
    v = _positions(x, step, p, grid)
    clamped = v.clamp(grid.qmin, grid.qmax)
    inside = v.eq_(clamped)
    codes = clamped.round()
    residual = clamped.mul_(inside).sub_(codes)
    return _values(codes, step, x, p.after, grid), Slopes(inside, residual)


def gradients(
    grad: Tensor,
    slopes: Slopes | None,
    x: Tensor,
    p: Parameters,
    grid: Grid,
    spent: Tensor | None = None,
) -> Gradients:
    """Of y, whose gradient is `grad`.

    Args:
        slopes: of `quantize_again`, used up; None with `in_one_pass`.
        spent: y, where nothing will look at it any more; then its memory and that of grad may be
            taken for results.
    """
    wide = at_least_float32(grad)
    entries = x.numel() // p.scale.numel() * grid.whole
    gain = -1.0 / math.sqrt(grid.qmax * entries)
    after = _bias_gradient(wide, p.after, grid)
    if slopes is None:
        layout = _layout(x, p, grid)
        assert layout is not None
        owned = (wide is not grad or spent is not None) and wide.is_contiguous()
        into_x = wide if owned else wide.clone(memory_format=torch.contiguous_format)
        residual = torch.empty_like(into_x) if spent is None else spent
        kernels.backward(x, p.scale, p.before, into_x, residual, layout)
        residual = residual.view(grid.view)
    else:
        seen = wide.reshape(grid.view)
        residual = slopes.residual.mul_(seen)
        into_x = slopes.inside.mul_(seen).reshape(x.shape)
    scale = residual.sum_to_size(grid.scale).mul(gain)
    return Gradients(
        x=into_x.to(x.dtype),
        scale=scale.view(p.scale.shape).to(p.scale.dtype),
        before=_bias_gradient(into_x, p.before, grid),
        after=after,
    )


def _bias_gradient(grad: Tensor, bias: Tensor | None, grid: Grid) -> Tensor | None:
    if bias is None:
        return None
    # Of a two-dimensional tensor torch sums the rows several times as fast as of more dimensions.
    columns = math.prod(grid.bias)
    return grad.reshape(-1, columns).sum(0).view(bias.shape).to(bias.dtype)
