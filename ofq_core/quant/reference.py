"""The quantizers as plain autograd expressions: the readable definition and the tests' oracle.

Slow and memory-hungry on purpose. The fast versions in `statsq` and `lsq` must give the same
values and gradients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ofq_core.quant.lsq import SCALE_FLOOR, broadcast_scale


def statsq_reference(weight: Tensor, bits: int) -> Tensor:
    """StatsQ of a weight matrix (rows, cols), FP32 or FP64, written as in the specification."""
    n = 2 ** (bits - 1)
    scale = 2 * weight.abs().mean(dim=1, keepdim=True)
    u = torch.clamp(weight / scale, -1, 1 - 1e-6) * n - 0.5
    quantized = scale * (torch.round(u).clamp(-n, n - 1) + 0.5) / n
    result: Tensor = (quantized - weight).detach() + weight
    return result


def lsq_reference(x: Tensor, scale: Tensor, qmin: int, qmax: int, axis: int | None) -> Tensor:
    """LSQ, FP32 or FP64, with the gradient written as detached terms."""
    gain = 1 / math.sqrt(qmax * x.numel() / scale.numel())
    s = broadcast_scale(scale, x.ndim, axis)
    # The floor changes the value only; the gradient reaches s as if it were not there. Terms of the
    # form a - a.detach() are exactly zero, so they leave the value as it is.
    s = s.detach().clamp(min=SCALE_FLOOR) + (s - s.detach()) * gain
    v = x / s
    inside = (v >= qmin) & (v <= qmax)
    clamped = torch.where(inside, v, v.detach().clamp(qmin, qmax))
    codes = clamped.detach().round() + (clamped - clamped.detach())
    return codes * s


def qkr_product_reference(w_q: Tensor, w_k: Tensor, heads: int) -> Tensor:
    """W_qk[h] = W_q[h]^T W_k[h], head by head, stacked to (heads * dim, dim)."""
    head_dim = w_q.shape[0] // heads
    blocks = []
    for h in range(heads):
        rows = slice(h * head_dim, (h + 1) * head_dim)
        blocks.append(w_q[rows].T @ w_k[rows])
    return torch.cat(blocks)


def freeze_mask_reference(position: Tensor, boundary_range: float, kmin: int, kmax: int) -> Tensor:
    """CGA's mask, threshold by threshold: True where a weight is frozen."""
    free = torch.zeros_like(position, dtype=torch.bool)
    for t in range(kmin, kmax):
        distance = position - t
        free |= (distance >= 0.5 - boundary_range) & (distance <= 0.5 + boundary_range)
    return ~free
