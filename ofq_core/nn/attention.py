"""Quantized self-attention: plain and with the query-key reparameterisation (QKR), also in windows.

They take the place of timm's `Attention` or `WindowAttention` and are built from one. B batch
(in Swin images * windows), N tokens, C channels, H heads, d = C / H. The scale per token of q and k
is shared over heads, so they are quantized as (B, N, C), before they are split into heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofq_core.nn.activation import ActivationRule, LSQActivation, TokenLSQ
from ofq_core.nn.layers import QuantLinear
from ofq_core.nn.weight import HeldWeight, MakeWeightQuantizer, WeightQuantizer
from ofq_core.quant import folded_query_bias, qkr_product
from ofq_core.quant.fused_attention import (
    AttentionGrids,
    AttentionParameters,
    quantized_attention,
)


@dataclass(frozen=True)
class AttentionPlan:
    """How an attention layer is quantized.

    tokens: N. activation_bits: 2 to 8, or 32 for none. make_weight_quantizer: for every weight
    matrix. fold_query_bias: QKR keeps the query bias, folded into the key side (else it is
    dropped, as in the released code). dead_biases: keep the second biases of k and z, on which
    the output does not depend (released layout). rule: of all activation quantizers; None is LSQ.
    """

    tokens: int
    activation_bits: int
    make_weight_quantizer: MakeWeightQuantizer
    fold_query_bias: bool = True
    dead_biases: bool = False
    rule: ActivationRule | None = None

    def token_quantizer(self, channels: int, biases: bool = True) -> nn.Module:
        """Signed quantizer for (B, N, channels), one scale per token."""
        if self.activation_bits == 32:
            return nn.Identity()
        shape = (channels,) if biases else None
        return TokenLSQ(self.tokens, self.activation_bits, bias_shape=shape, rule=self.rule)

    def key_quantizer(self, channels: int, groups: int = 1) -> nn.Module:
        """As `token_quantizer`, for the key side, whose second bias cannot act on the softmax."""
        if self.activation_bits == 32:
            return nn.Identity()
        return TokenLSQ(
            self.tokens,
            self.activation_bits,
            bias_shape=(channels,),
            groups=groups,
            bias_after=self.dead_biases,
            rule=self.rule,
        )

    def value_quantizer(self, channels: int) -> nn.Module:
        """Signed quantizer for (B, N, channels), one scale per channel."""
        if self.activation_bits == 32:
            return nn.Identity()
        return LSQActivation(
            channels, -1, self.activation_bits, bias_shape=(channels,), rule=self.rule
        )

    def map_quantizer(self) -> nn.Module:
        """Unsigned quantizer for (B, H, N, N) probabilities, one scale per query position."""
        if self.activation_bits == 32:
            return nn.Identity()
        return LSQActivation(self.tokens, -2, self.activation_bits, signed=False, rule=self.rule)


class _Attention(nn.Module):
    """What both forms share: value aggregation and the output projection."""

    def __init__(self, source: Any, plan: AttentionPlan) -> None:
        super().__init__()
        self.num_heads: int = source.num_heads
        self.head_dim: int = source.qkv.out_features // (3 * source.num_heads)
        self.scale: float = source.scale
        self.fused: bool = source.fused_attn
        dim = self.num_heads * self.head_dim
        self.quant_v = plan.value_quantizer(dim)
        self.quant_map = plan.map_quantizer()
        self.proj = QuantLinear(source.proj, plan.token_quantizer(dim), plan.make_weight_quantizer)
        self.attn_drop: nn.Dropout = source.attn_drop
        self.proj_drop: nn.Module = source.proj_drop

    def _heads(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, H, N, d)."""
        batch, tokens, _ = x.shape
        return x.view(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2)

    def _attend(
        self, logits: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """Softmax, quantized map, weighted values: (B, N, C), heads joined."""
        logits = self._masked(logits, attn_mask, is_causal)
        probabilities = self.attn_drop(self.quant_map(logits.softmax(dim=-1)))
        heads: Tensor = probabilities @ v
        return heads.transpose(1, 2).flatten(2)

    def _project(self, joined: Tensor) -> Tensor:
        return self.proj_drop(self.proj(joined))  # type: ignore[no-any-return]

    def _fusable(self, *quantizers: nn.Module) -> bool:
        """Whether one function can do all of the attention: see `LSQActivation.fusable`."""
        dropped = self.training and self.attn_drop.p > 0
        return not dropped and all(isinstance(q, LSQActivation) and q.fusable for q in quantizers)

    def _attend_fused(
        self,
        left: Tensor,
        right: Tensor,
        v: Tensor,
        quantizers: tuple[nn.Module | None, nn.Module],
        added: tuple[Tensor, ...],
    ) -> Tensor:
        """What `_attend` returns, from operands before their quantizers (left and right)."""
        of_left, of_right = quantizers
        of_value, of_map = self.quant_v, self.quant_map
        assert isinstance(of_right, LSQActivation)
        assert isinstance(of_value, LSQActivation)
        assert isinstance(of_map, LSQActivation)
        tokens = v.shape[1]
        grids = AttentionGrids(
            heads=self.num_heads,
            scale=self.scale,
            left=of_left.grid(left.shape) if isinstance(of_left, LSQActivation) else None,
            right=of_right.grid(right.shape),
            value=of_value.grid(v.shape),
            map=of_map.grid(torch.Size((v.shape[0], self.num_heads, tokens, tokens))),
        )
        p = AttentionParameters(
            of_left.learned if isinstance(of_left, LSQActivation) else None,
            of_right.learned,
            of_value.learned,
            of_map.learned,
        )
        return quantized_attention(left, right, v, added, p, grids)

    def _added(
        self, tokens: int, like: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, ...]:
        """What `_masked` adds to the logits; `like`: for dtype (at least FP32) and device."""
        if is_causal:
            attn_mask = like.new_ones((tokens, tokens), dtype=torch.bool).tril()
        if attn_mask is None:
            return ()
        if attn_mask.dtype == torch.bool:
            zeros = like.new_zeros(attn_mask.shape, dtype=torch.float32)
            return (zeros.masked_fill(~attn_mask, float("-inf")),)
        return (attn_mask,)

    def _masked(self, logits: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        if is_causal:
            attn_mask = logits.new_ones(logits.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is None:
            return logits
        if attn_mask.dtype == torch.bool:
            return logits.masked_fill(~attn_mask, float("-inf"))
        return logits + attn_mask


class QuantAttention(_Attention):
    """Attention with quantized qkv, operands, probability map and projection (spec 3.3).

    With 32 bits everywhere it runs timm's own operations and equals it bit for bit.
    """

    def __init__(self, source: Any, plan: AttentionPlan) -> None:
        super().__init__(source, plan)
        dim = self.num_heads * self.head_dim
        self.qkv = QuantLinear(source.qkv, plan.token_quantizer(dim), plan.make_weight_quantizer)
        self.quant_q = plan.token_quantizer(dim)
        self.quant_k = plan.key_quantizer(dim)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, C) to (B, N, C); `attn_mask` is added to the logits (bool: False masks)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self._fusable(self.quant_q, self.quant_k, self.quant_v, self.quant_map):
            added = self._added(x.shape[1], x, attn_mask, is_causal)
            return self._project(self._attend_fused(q, k, v, (self.quant_q, self.quant_k), added))
        q = self._heads(self.quant_q(q))
        k = self._heads(self.quant_k(k))
        v = self._heads(self.quant_v(v))
        if self.fused and isinstance(self.quant_map, nn.Identity):
            dropout = self.attn_drop.p if self.training else 0.0
            heads = F.scaled_dot_product_attention(
                q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal
            )
            return self._project(heads.transpose(1, 2).flatten(2))
        logits = (q * self.scale) @ k.transpose(-2, -1)
        return self._project(self._attend(logits, v, attn_mask, is_causal))


class QKRAttention(_Attention, HeldWeight):
    """Attention whose query-key product is one quantized weight per head (spec 4.1).

        x' = LSQ(x + b1) + b2                          once, for queries, keys and values
        z[n, h] = Q(W_q[h]^T W_k[h]) x'[n]             key side, then quantized per (token, head)
        logits[h, q, k] = d^-1/2 (x'[q] . z[k, h] + (W_k[h]^T b_q[h]) . x'[k])

    The last term is the query bias, folded exactly; it stays in full precision like every bias.
    The key bias is dropped: softmax does not see it.
    """

    def __init__(self, source: Any, plan: AttentionPlan) -> None:
        super().__init__(source, plan)
        dim = self.num_heads * self.head_dim
        weights = source.qkv.weight.detach().chunk(3)
        self.q_weight = nn.Parameter(weights[0].clone())
        self.k_weight = nn.Parameter(weights[1].clone())
        self.q_bias = None
        values = nn.Linear(dim, dim, bias=source.qkv.bias is not None)
        values.weight = nn.Parameter(weights[2].clone())
        if source.qkv.bias is not None:
            biases = source.qkv.bias.detach().chunk(3)
            values.bias = nn.Parameter(biases[2].clone())
            if plan.fold_query_bias:
                self.q_bias = nn.Parameter(biases[0].clone())
        self.input_quantizer = plan.token_quantizer(dim)
        self.v = QuantLinear(values, nn.Identity(), plan.make_weight_quantizer)
        self.quant_z = plan.key_quantizer(dim * self.num_heads, groups=self.num_heads)
        with torch.no_grad():
            self.qk_quantizer = plan.make_weight_quantizer(self.product())

    def product(self) -> Tensor:
        """The latent product W_qk, (H * C, C), in the weights' own precision under autocast."""
        with torch.autocast(self.q_weight.device.type, enabled=False):
            return qkr_product(self.q_weight, self.k_weight, self.num_heads)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, C) to (B, N, C); `attn_mask` is added to the logits (bool: False masks)."""
        batch, tokens, channels = x.shape
        x = self.input_quantizer(x)
        v = self.v(x)
        z = F.linear(x, self.quantized_weight())
        of_keys = None
        if self.q_bias is not None:
            rows = folded_query_bias(self.q_bias * self.scale, self.k_weight, self.num_heads)
            of_keys = F.linear(x, rows).transpose(1, 2).unsqueeze(2)
        if self._fusable(self.quant_z, self.quant_v, self.quant_map):
            added = self._added(tokens, x, attn_mask, is_causal)
            added = added if of_keys is None else (of_keys, *added)
            return self._project(self._attend_fused(x, z, v, (None, self.quant_z), added))
        v = self._heads(self.quant_v(v))
        z = self.quant_z(z).view(batch, tokens, self.num_heads, channels).permute(0, 2, 3, 1)
        logits = (x * self.scale).unsqueeze(1) @ z
        if of_keys is not None:
            logits = logits + of_keys
        return self._project(self._attend(logits, v, attn_mask, is_causal))

    def _latent(self) -> tuple[WeightQuantizer, Tensor]:
        return self.qk_quantizer, self.product()


class _Windows:
    """Swin's part: relative position bias and shift mask on the logits, both in FP32 (spec 3.4)."""

    num_heads: int

    def _take_over(self: Any, source: Any) -> None:
        self.fused = False
        self.relative_position_bias_table = source.relative_position_bias_table
        self.register_buffer(
            "relative_position_index", source.relative_position_index, persistent=False
        )

    def _bias(self: Any) -> Tensor:
        """(H, N, N)."""
        tokens = math.isqrt(self.relative_position_index.numel())
        rows = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        bias: Tensor = rows.view(tokens, tokens, self.num_heads).permute(2, 0, 1)
        return bias

    def _added(
        self, tokens: int, like: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, ...]:
        bias = self._bias()
        return (bias,) if attn_mask is None else (bias, attn_mask.unsqueeze(1))

    def _masked(self: Any, logits: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        logits = logits + self._bias()
        if attn_mask is None:
            return logits
        # One mask per window of an image: (images * windows, H, N, N) + (windows, 1, N, N).
        by_image = logits.view(-1, attn_mask.shape[0], *logits.shape[1:])
        return (by_image + attn_mask.unsqueeze(1)).view_as(logits)


class QuantWindowAttention(_Windows, QuantAttention):
    """`QuantAttention` on the windows of timm's Swin: (images * windows, N, C)."""

    def __init__(self, source: Any, plan: AttentionPlan) -> None:
        super().__init__(source, plan)
        self._take_over(source)

    def forward(  # type: ignore[override]
        self, x: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """(images * windows, N, C) to the same; `mask`: (windows, N, N), added to the logits."""
        return super().forward(x, mask)


class QKRWindowAttention(_Windows, QKRAttention):
    """`QKRAttention` on the windows of timm's Swin: (images * windows, N, C)."""

    def __init__(self, source: Any, plan: AttentionPlan) -> None:
        super().__init__(source, plan)
        self._take_over(source)

    def forward(  # type: ignore[override]
        self, x: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """(images * windows, N, C) to the same; `mask`: (windows, N, N), added to the logits."""
        return super().forward(x, mask)
