"""StatsQ: a weight quantizer whose scale is a statistic of the weights (OFQ, section 3.1, Eq. 7).

    s_r = 2 mean_j |W_rj|                               one scale per output row r
    u   = clamp(W / s, -1, 1 - 1e-6) n - 1/2,           n = 2^(b-1)
    k   = round(u)  in {-n, ..., n - 1}                 round half to even
    Q   = s (k + 1/2) / n

The grid is mid-rise: it has no zero. The gradient passes straight through, without a clipping
mask and without a path through s: dL/dW = dL/dQ. All arithmetic is FP32 or FP64, because 1 - 1e-6
is 1 in half precision and the top code would leave the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ofq_core.quant import kernels

CLIP_HIGH = 1.0 - 1e-6


def check_bits(bits: int) -> int:
    """Return the number n = 2^(bits-1) of levels on each side of zero.

    Raises:
        ValueError: bits is not an integer from 2 to 8. With 1 bit the released StatsQ has three
            levels, one of them outside its grid, so 1 bit is refused.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"bits = {bits!r}: StatsQ takes an integer from 2 to 8")
    return 1 << (bits - 1)


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision tensors as FP32; FP32 and FP64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def statsq_scale(weight: Tensor) -> Tensor:
    """Row scales s = 2 mean|W|, shape (..., rows, 1) for weights of shape (..., rows, cols).

    FP32 for half-precision weights, else the dtype of the weights. Detached.
    """
    return at_least_float32(weight.detach()).abs().mean(dim=-1, keepdim=True) * 2.0


def _step(scale: Tensor, n: int) -> Tensor:
    """s / n for a division: n is a power of two, so W / (s / n) is exactly W / s times n, a pass
    less over the weights."""
    return scale.clamp(min=torch.finfo(scale.dtype).tiny * n) / n


def statsq_position(
    weight: Tensor, bits: int, scale: Tensor | None = None, clip: Tensor | None = None
) -> Tensor:
    """Position u of each weight on the code axis, before rounding; thresholds lie at t + 1/2.

    Args:
        weight: (..., rows, cols), any floating dtype.
        bits: 2 to 8.
        scale: (..., rows, 1); computed from the weights where it is not given.
        clip: c in clamp(W / s, -c, c - 1e-6), one entry; 1 where it is not given. The released code
            keeps 2 c in its checkpoints ("clip_val"), never trains it, and starts from 2.

    A row of zeros has scale 0; its position is -1/2, as that of any zero weight.
    """
    n = check_bits(bits)
    scale = statsq_scale(weight) if scale is None else scale
    position = at_least_float32(weight.detach()) / _step(scale, n)
    if clip is None:
        position.clamp_(-n, CLIP_HIGH * n)
    else:
        position.clamp_(-clip * n, (clip - 1e-6) * n)
    return position.sub_(0.5)


def statsq_codes(weight: Tensor, bits: int, scale: Tensor | None = None) -> Tensor:
    """Integer codes k in {-n, ..., n-1} as int8, shape of the weights."""
    n = check_bits(bits)
    position = statsq_position(weight, bits, scale)
    return position.round_().clamp_(-n, n - 1).to(torch.int8)


def statsq_dequantize(codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Grid values s (k + 1/2) / n in the dtype of the scale."""
    return (codes.to(scale.dtype) + 0.5).mul_(scale / check_bits(bits))


def statsq_quantize(
    weight: Tensor, bits: int, clip: Tensor | None = None, with_codes: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Grid values and, if wanted, codes, both at least FP32 and without a graph.

    Args:
        weight, bits, clip: as of `statsq_position`. With a clip, codes may leave {-n, ..., n-1}.
    """
    n, scale = check_bits(bits), statsq_scale(weight)
    if clip is None and weight.is_contiguous() and kernels.usable(weight, scale):
        bounds = (-n, CLIP_HIGH * n)
        return kernels.statsq(weight.detach(), _step(scale, n), scale / n, bounds, with_codes)
    # What is clipped in position ends on the outer codes: halves round to even.
    codes = statsq_position(weight, bits, scale, clip).round_()
    return statsq_dequantize(codes, scale, bits), codes if with_codes else None


class _StraightThrough(torch.autograd.Function):
    """Forward: the quantized values. Backward: the upstream gradient, unless a weight is frozen."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        weight: Tensor,
        quantized: Tensor,
        free: Tensor | None,
    ) -> Tensor:
        ctx.free = free  # type: ignore[attr-defined]
        return quantized.to(weight.dtype)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx,
        grad: Tensor,
    ) -> tuple[Tensor, None, None]:
        free = ctx.free  # type: ignore[attr-defined]
        return (grad if free is None else grad * free), None, None


def straight_through(weight: Tensor, quantized: Tensor, free: Tensor | None = None) -> Tensor:
    """`quantized` in the forward, the identity in the backward (straight-through estimator).

    Args:
        weight: the latent weights that receive the gradient.
        quantized: the values to return, same shape, cast to the dtype of `weight`.
        free: optional boolean mask; where it is False the gradient is zero (CGA on a product).
    """
    result: Tensor = _StraightThrough.apply(weight, quantized, free)  # type: ignore[no-untyped-call]
    return result


def statsq(weight: Tensor, bits: int) -> Tensor:
    """Quantize weights (..., rows, cols) with StatsQ; straight-through gradient to the weights.

    Returns the exact grid values in the dtype of the weights. The released code returns
    (Q - W) + W, which differs from them by at most one unit in the last place.

    Raises:
        ValueError: bits is not an integer from 2 to 8.
    """
    scale = statsq_scale(weight)
    return straight_through(
        weight, statsq_dequantize(statsq_codes(weight, bits, scale), scale, bits)
    )
