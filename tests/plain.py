"""The plain form of a converted model: the same parameters, every formula written out.

`plain` copies a model and gives each quantized layer a forward of plain autograd expressions, from
`ofq_core.quant.reference` and torch's own operations. It shares no code with the fast paths, so it
is the oracle of the tests of exactness, and what benchmarks compare with. It saves every
intermediate tensor, as the released code does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofq_core.methods.lsq import LSQWeight
from ofq_core.methods.statsq import StatsQWeight
from ofq_core.nn import (
    FullPrecisionWeight,
    LSQActivation,
    LSQRule,
    QKRAttention,
    QKRWindowAttention,
    QuantAttention,
    QuantConv2d,
    QuantLinear,
    QuantWindowAttention,
    TokenLSQ,
    WeightQuantizer,
)
from ofq_core.quant.lsq import SCALE_FLOOR
from ofq_core.quant.reference import (
    freeze_mask_reference,
    lsq_reference,
    qkr_product_reference,
    statsq_reference,
)


def plain(model: nn.Module) -> Any:
    """A deep copy of a calibrated model, or of one layer, that computes by the plain formulas.

    Parameters have the names and values of the original, so gradients can be compared by name.
    FP32 or FP64, without autocast. Codes are not recorded: no tracker can follow the copy.

    Raises:
        TypeError: a quantizer is of a method other than StatsQ and LSQ.
    """
    result = copy.deepcopy(model)
    for module in result.modules():
        if isinstance(module, LSQActivation):
            if type(module.rule) is not LSQRule:
                raise TypeError(f"no plain form of the rule {type(module.rule).__name__}")
            forward = _activation
        elif isinstance(module, WeightQuantizer):
            if type(module) not in _WEIGHTS or module.observed_range:
                raise TypeError(f"no plain form of {type(module).__name__}")
            forward = _WEIGHTS[type(module)]
        elif type(module) in _LAYERS:
            forward = _LAYERS[type(module)]
        else:
            continue
        # An attribute of the object goes before the method of its class.
        module.forward = MethodType(forward, module)
    return result


# ------------------------------------------------------------------------------- activations


def _activation(self: Any, x: Tensor) -> Tensor:
    """LSQ(x + bias_before) + bias_after, one scale per index of an axis."""
    if self.bias_before is not None:
        x = x + self.bias_before.view(self.bias_shape)
    shape = x.shape
    if isinstance(self, TokenLSQ):
        # (batch, ..., groups * channels): one scale per position and group, or per image column.
        x = x.reshape(-1, self.length, shape[-1] // self.groups)
    scale = _of_whole_batch(self.scale, self.whole_batch)
    x = lsq_reference(x, scale, self.low, self.high, self.axis).reshape(shape)
    if self.bias_after is not None:
        x = x + self.bias_after.view(self.bias_shape)
    return x


def _of_whole_batch(scale: Tensor, whole: float) -> Tensor:
    """The scale itself, with its gradient divided by sqrt(whole): LSQ's g for a larger batch."""
    return scale.detach() + (scale - scale.detach()) / math.sqrt(whole)


# ----------------------------------------------------------------------------------- weights


def _full_precision_weight(self: Any, weight: Tensor) -> Tensor:
    return weight


def _statsq_weight(self: Any, weight: Tensor) -> Tensor:
    if self.clip is not None:
        raise TypeError("no plain form of StatsQ with another clip than 1")
    n = 2 ** (self.bits - 1)
    scale = 2 * weight.detach().abs().mean(dim=1, keepdim=True)
    position = torch.clamp(weight.detach() / scale, -1, 1 - 1e-6) * n - 0.5
    return statsq_reference(_held(self, weight, position), self.bits)


def _lsq_weight(self: Any, weight: Tensor) -> Tensor:
    scale = self.scale.detach().clamp(min=SCALE_FLOOR)
    position = weight.detach() / scale.view(-1, *[1] * (weight.ndim - 1))
    position = position.clamp(self.low - 0.5, self.high + 0.5)
    return lsq_reference(_held(self, weight, position), self.scale, self.low, self.high, 0)


def _held(self: Any, weight: Tensor, position: Tensor) -> Tensor:
    """The same values; under CGA on a product, without a gradient where a weight is frozen."""
    if self.gradient_band is None or not self.training:
        return weight
    frozen = freeze_mask_reference(position, self.gradient_band, self.low, self.high)
    return torch.where(frozen, weight.detach(), weight)


# ------------------------------------------------------------------------------------ layers


def _linear(self: Any, x: Tensor) -> Tensor:
    # The GELU between the layers of an MLP belongs to the second of them.
    if getattr(self, "activation", None) is not None:
        x = self.activation(x)
    return F.linear(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)


def _conv2d(self: Any, x: Tensor) -> Tensor:
    weight = self.weight_quantizer(self.weight)
    return F.conv2d(self.input_quantizer(x), weight, self.bias, self.stride, self.padding)


# --------------------------------------------------------------------------------- attention
# B images (or windows), N tokens, C channels, H heads, d = C / H.


def _attention(
    self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, with q, k, v and the probabilities quantized."""
    q, k, v = self.qkv(x).chunk(3, dim=-1)
    q = _split(self.quant_q(q), self.num_heads)
    k = _split(self.quant_k(k), self.num_heads)
    v = _split(self.quant_v(v), self.num_heads)
    logits = (q * self.scale) @ k.transpose(-2, -1)
    return _values(self, _masked(logits, attn_mask, is_causal), v)


def _window_attention(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = self.qkv(x).chunk(3, dim=-1)
    q = _split(self.quant_q(q), self.num_heads)
    k = _split(self.quant_k(k), self.num_heads)
    v = _split(self.quant_v(v), self.num_heads)
    logits = (q * self.scale) @ k.transpose(-2, -1)
    return _values(self, _in_windows(self, logits, mask), v)


def _qkr(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Attention with one quantized matrix per head in the place of queries and keys."""
    logits, v = _qkr_logits(self, x)
    return _values(self, _masked(logits, attn_mask, is_causal), v)


def _window_qkr(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    logits, v = _qkr_logits(self, x)
    return _values(self, _in_windows(self, logits, mask), v)


def _qkr_logits(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """logits[h, i, j] = (x'[i] . z[j, h] + (W_k[h]^T b_q[h]) . x'[j]) / sqrt(d), and the values.

    x' is the quantized input, z[j, h] = LSQ(Q(W_q[h]^T W_k[h]) x'[j]).
    """
    images, tokens, channels = x.shape
    x = self.input_quantizer(x)
    v = _split(self.quant_v(self.v(x)), self.num_heads)
    product = qkr_product_reference(self.q_weight, self.k_weight, self.num_heads)
    z = self.quant_z(F.linear(x, self.qk_quantizer(product)))
    z = z.reshape(images, tokens, self.num_heads, channels)
    logits = (x * self.scale).unsqueeze(1) @ z.permute(0, 2, 3, 1)
    if self.q_bias is not None:
        heads = zip(
            self.q_bias.chunk(self.num_heads), self.k_weight.chunk(self.num_heads), strict=True
        )
        for_keys = torch.stack([(bias * self.scale) @ weight for bias, weight in heads])
        logits = logits + (x @ for_keys.T).transpose(1, 2).unsqueeze(2)
    return logits, v


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) to (B, H, N, d)."""
    images, tokens, channels = x.shape
    return x.reshape(images, tokens, heads, channels // heads).permute(0, 2, 1, 3)


def _masked(logits: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    if is_causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if mask is None:
        return logits
    if mask.dtype == torch.bool:
        return torch.where(mask, logits, torch.full_like(logits, -math.inf))
    return logits + mask


def _in_windows(self: Any, logits: Tensor, mask: Tensor | None) -> Tensor:
    """Swin's relative position bias, and a mask for each window of an image."""
    tokens = logits.shape[-1]
    rows = self.relative_position_bias_table[self.relative_position_index.reshape(-1)]
    logits = logits + rows.reshape(tokens, tokens, self.num_heads).permute(2, 0, 1)
    if mask is None:
        return logits
    images = len(logits) // len(mask)
    return logits + mask.repeat(images, 1, 1).unsqueeze(1)


def _values(self: Any, logits: Tensor, v: Tensor) -> Tensor:
    """Quantized probabilities times values, projected: (B, H, N, N) to (B, N, C)."""
    probabilities = self.quant_map(logits.softmax(dim=-1))
    heads = self.attn_drop(probabilities) @ v
    merged = heads.permute(0, 2, 1, 3).reshape(len(heads), heads.shape[2], -1)
    result: Tensor = self.proj_drop(self.proj(merged))
    return result


_WEIGHTS: dict[type, Callable[..., Tensor]] = {
    FullPrecisionWeight: _full_precision_weight,
    StatsQWeight: _statsq_weight,
    LSQWeight: _lsq_weight,
}
_LAYERS: dict[type, Callable[..., Tensor]] = {
    QuantLinear: _linear,
    QuantConv2d: _conv2d,
    QuantAttention: _attention,
    QuantWindowAttention: _window_attention,
    QKRAttention: _qkr,
    QKRWindowAttention: _window_qkr,
}
