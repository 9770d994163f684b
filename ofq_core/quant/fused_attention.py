"""Quantized attention in one autograd function that keeps nothing of size N x N.

    P = softmax(c L R^T + B),  Y = Q(P) Q(v)

    plain:  L = Q(q), R = Q(k), head by head        QKR:  L = x' for all heads, R = Q(z)

c is the scale of the logits, B what is added to them (relative position bias and mask, or QKR's
folded query bias), Q LSQ with its biases. The probability map is quantized per query, so flash
attention cannot be used; instead of keeping the map, the backward computes it anew from what is
saved: the operands before they were quantized. That costs one more product c L R^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ofq_core.quant.biased_lsq import (
    Grid,
    Parameters,
    gradients,
    quantize,
    quantize_again,
)
from ofq_core.quant.product_type import product_dtype
from ofq_core.quant.statsq import at_least_float32


class AttentionGrids(NamedTuple):
    """heads: H. scale: c. left: None where L is given quantized, for all heads. map: of P."""

    heads: int
    scale: float
    left: Grid | None
    right: Grid
    value: Grid
    map: Grid


class AttentionParameters(NamedTuple):
    """left: None with `AttentionGrids.left`. map: has no biases."""

    left: Parameters | None
    right: Parameters
    value: Parameters
    map: Parameters


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, N, H K) to (B, H, N, K), a view."""
    batch, tokens, width = x.shape
    return x.view(batch, tokens, heads, width // heads).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    """(B, H, N, K) to (B, N, H K)."""
    return x.transpose(1, 2).flatten(2)


def _by_period(logits: Tensor, term: Tensor) -> Tensor:
    """(B, H, N, N) as (B / W, W, H, N, N), for a term that repeats every W entries of the batch."""
    period = term.shape[0] if term.ndim == 4 else 1
    if period in (1, logits.shape[0]):
        return logits
    return logits.view(-1, period, *logits.shape[1:])


class _Logits(NamedTuple):
    """The product c L R^T and its backward.

    left: c L, (B, N, width). right: R, (B, N, width). shared: L is the same for all heads; then
    the products go head by head, since one product for all would need a copy of L per head.
    """

    left: Tensor
    right: Tensor
    heads: int
    shared: bool

    def product(self) -> Tensor:
        """(B, H, N, N)."""
        if not self.shared:
            right = _split(self.right, self.heads)
            return _split(self.left, self.heads) @ right.transpose(-2, -1)
        rights = self.right.chunk(self.heads, -1)
        return torch.stack([torch.bmm(self.left, r.transpose(1, 2)) for r in rights], 1)

    def into_left(self, grad: Tensor) -> Tensor:
        """With respect to c L, (B, N, width)."""
        if not self.shared:
            return _join(grad @ _split(self.right, self.heads))
        first, *more = zip(grad.unbind(1), self.right.chunk(self.heads, -1), strict=True)
        total = torch.bmm(*first)
        for of_head, right in more:
            total = torch.baddbmm(total, of_head, right)
        return total

    def into_right(self, grad: Tensor) -> Tensor:
        """With respect to R, (B, N, width)."""
        turned = grad.transpose(-2, -1)
        if not self.shared:
            return _join(turned @ _split(self.left, self.heads))
        return torch.cat([torch.bmm(of_head, self.left) for of_head in turned.unbind(1)], -1)


def _probabilities(logits: Tensor, added: tuple[Tensor, ...]) -> Tensor:
    """softmax(logits + B) over the last axis, (B, H, N, N), at least FP32, a new tensor."""
    for term in added:
        logits = (_by_period(logits, term) + term).view(logits.shape)
    return at_least_float32(logits).softmax(-1)


class _QuantizedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grids: AttentionGrids, left: Tensor, right: Tensor, value: Tensor, *rest: Any
    ) -> Tensor:
        p, added = _unpack(rest, grids)
        dtype = product_dtype(value)
        ctx.save_for_backward(left, right, value, *rest)
        ctx.grids, ctx.dtype = grids, dtype
        heads = grids.heads
        with torch.autocast(value.device.type, enabled=False):
            if p.left is not None and grids.left is not None:
                left = quantize(left, p.left, grids.left)
            scaled, of_right = (left * grids.scale).to(dtype), quantize(right, p.right, grids.right)
            products = _Logits(scaled, of_right.to(dtype), heads, p.left is None)
            map_ = _probabilities(products.product(), added)
            map_ = quantize(map_, p.map, grids.map).to(dtype)
            value_heads = _split(quantize(value, p.value, grids.value).to(dtype), heads)
            return _join(map_ @ value_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        left, right, value, *rest = ctx.saved_tensors
        grids, dtype, heads = ctx.grids, ctx.dtype, ctx.grids.heads
        p, added = _unpack(rest, grids)
        left_y, left_slopes = left, None
        if p.left is not None and grids.left is not None:
            left_y, left_slopes = quantize_again(left, p.left, grids.left)
        right_y, right_slopes = quantize_again(right, p.right, grids.right)
        scaled = (left_y * grids.scale).to(dtype)
        products = _Logits(scaled, right_y.to(dtype), heads, p.left is None)
        map_ = _probabilities(products.product(), added)
        map_y, map_slopes = quantize_again(map_, p.map, grids.map)

        value_y, value_slopes = quantize_again(value, p.value, grids.value)
        above = _split(grad.to(dtype), heads)
        into_map = above @ _split(value_y.to(dtype), heads).transpose(-2, -1)
        into_value = _join(map_y.to(dtype).transpose(-2, -1) @ above)
        of_value = gradients(into_value, value_slopes, value, p.value, grids.value, value_y)
        of_map = gradients(into_map, map_slopes, map_, p.map, grids.map, map_y)
        into_logits = torch.ops.aten._softmax_backward_data(of_map.x, map_, -1, map_.dtype)
        first = len(ctx.needs_input_grad) - len(added)
        into_added = [
            _by_period(into_logits, term).sum_to_size(term.shape).to(term.dtype) if needed else None
            for term, needed in zip(added, ctx.needs_input_grad[first:], strict=True)
        ]
        into_logits = into_logits.to(dtype)
        into_left = products.into_left(into_logits).mul_(grids.scale)
        into_right = products.into_right(into_logits)
        of_right = gradients(into_right, right_slopes, right, p.right, grids.right, right_y)
        left_gradients: list[Tensor | None] = []
        if p.left is None or grids.left is None:
            into_left = into_left.to(left.dtype)
        else:
            of_left = gradients(into_left, left_slopes, left, p.left, grids.left, left_y)
            into_left, *left_gradients = of_left
        return (
            None,
            into_left,
            of_right.x,
            of_value.x,
            of_map.scale,
            *of_right[1:],
            *of_value[1:],
            *left_gradients,
            *into_added,
        )


def _unpack(
    flat: Sequence[Any], grids: AttentionGrids
) -> tuple[AttentionParameters, tuple[Tensor, ...]]:
    """Parameters and what is added to the logits, as `quantized_attention` lays them out."""
    map_scale, right, value, rest = flat[0], flat[1:4], flat[4:7], flat[7:]
    left = None if grids.left is None else Parameters(*rest[:3])
    p = AttentionParameters(
        left, Parameters(*right), Parameters(*value), Parameters(map_scale, None, None)
    )
    return p, tuple(rest if left is None else rest[3:])


def quantized_attention(
    left: Tensor,
    right: Tensor,
    value: Tensor,
    added: tuple[Tensor, ...],
    p: AttentionParameters,
    grids: AttentionGrids,
) -> Tensor:
    """Quantize the operands, attend, quantize the map, weigh the values.

    Args:
        left: (B, N, H d) before quantization, or (B, N, K) quantized and shared by all heads.
        right: (B, N, H d), or (B, N, H K).
        value: (B, N, H d).
        added: terms added to the logits, each broadcasts to (B, H, N, N); one whose first axis is
            shorter than B repeats along it.

    Returns:
        (B, N, H d), heads joined, in autocast's dtype where it is on.
    """
    of_left = () if p.left is None else p.left
    result: Tensor = _QuantizedAttention.apply(  # type: ignore[no-untyped-call]
        grids, left, right, value, p.map.scale, *p.right, *p.value, *of_left, *added
    )
    return result
