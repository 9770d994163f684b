"""LSQ between two learnable biases as it stands in every quantized layer, and what fuses with it.

    v = (x + b1) / s,  z = round(clamp(v, qmin, qmax)),  y = z s + b2        (spec 3.1)

`lsq` has the gradients. Here they are plain functions without a graph, from which the autograd
functions of `fused_linear` and `fused_attention` are built: those save x alone and compute v anew
in the backward. A pass over memory is what these formulas cost, so work is done in place, and masks
are numbers: on a CPU, making and applying a boolean mask takes ten times as long.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

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
    """Of one quantizer: scales (vector), and biases (vectors) or None for none."""

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


def quantize(x: Tensor, p: Parameters, grid: Grid) -> Tensor:
    """y: shape of x, at least FP32, a new tensor."""
    step = _step(p.scale, grid)
    codes = _positions(x, step, p, grid).clamp_(grid.qmin, grid.qmax).round_()
    return _values(codes, step, x, p.after, grid)


def quantize_again(x: Tensor, p: Parameters, grid: Grid) -> tuple[Tensor, Slopes]:
    """`quantize` in the backward, with what `gradients` needs."""
    step = _step(p.scale, grid)
    v = _positions(x, step, p, grid)
    clamped = v.clamp(grid.qmin, grid.qmax)
    inside = v.eq_(clamped)
    codes = clamped.round()
    residual = clamped.mul_(inside).sub_(codes)
    return _values(codes, step, x, p.after, grid), Slopes(inside, residual)


def gradients(grad: Tensor, slopes: Slopes, x: Tensor, p: Parameters, grid: Grid) -> Gradients:
    """Of y, whose gradient is `grad`. Uses up `slopes`."""
    wide = at_least_float32(grad)
    seen = wide.reshape(grid.view)
    entries = x.numel() // p.scale.numel() * grid.whole
    gain = -1.0 / math.sqrt(grid.qmax * entries)
    scale = slopes.residual.mul_(seen).sum_to_size(grid.scale).mul(gain)
    into_x = slopes.inside.mul_(seen).reshape(x.shape)
    return Gradients(
        x=into_x.to(x.dtype),
        scale=scale.view(p.scale.shape).to(p.scale.dtype),
        before=_bias_gradient(into_x, p.before, grid),
        after=_bias_gradient(wide, p.after, grid),
    )


def _bias_gradient(grad: Tensor, bias: Tensor | None, grid: Grid) -> Tensor | None:
    if bias is None:
        return None
    # Of a two-dimensional tensor torch sums the rows several times as fast as of more dimensions.
    columns = math.prod(grid.bias)
    return grad.reshape(-1, columns).sum(0).view(bias.shape).to(bias.dtype)
