"""What a model costs: multiply-accumulates and packed bytes, and what QKR adds to both."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ofq_core.models.geometry import token_count
from ofq_core.nn import QKRAttention, QuantConv2d, QuantLinear, WeightQuantizer

FLOAT_BYTES = 4


@dataclass(frozen=True)
class BlockCost:
    """One transformer block, per image: multiply-accumulates, and entries of weight matrices."""

    macs: int
    weights: int


def block_cost(tokens: int, dim: int, heads: int, hidden: int, qkr: bool) -> BlockCost:
    """Cost of one block in the form that is deployed: with QKR, W_qk is stored ready-made.

    Args:
        tokens: N with class and distillation tokens. dim: C. hidden: width of the MLP.
        heads: H; QKR stores H C^2 weights for queries and keys instead of 2 C^2, and its logits
            sum over C channels instead of C / H.
    """
    projection = dim * dim
    mlp = 2 * dim * hidden
    attention_weights = (2 + heads) * projection if qkr else 4 * projection
    logits = tokens * tokens * dim * (heads if qkr else 1)
    values = tokens * tokens * dim
    weights = attention_weights + mlp
    return BlockCost(macs=tokens * weights + logits + values, weights=weights)


@dataclass(frozen=True)
class ModelCost:
    """macs: per image. model_bytes: packed, with every scale and bias. The extras are QKR's."""

    macs: int
    model_bytes: int
    qkr_extra_macs: int
    qkr_extra_weights: int

    def as_dict(self) -> dict[str, int]:
        """For metrics.json."""
        return asdict(self)


def model_cost(model: nn.Module) -> ModelCost:
    """Cost of a timm vision transformer, converted or not."""
    vit: Any = model
    tokens, dim = token_count(vit), vit.embed_dim
    macs = vit.patch_embed.num_patches * vit.patch_embed.proj.weight.numel()
    for name in ("head", "head_dist"):
        head = getattr(vit, name, None)
        macs += head.weight.numel() if head is not None else 0
    extra_macs = extra_weights = 0
    for block in vit.blocks:
        qkr = isinstance(block.attn, QKRAttention)
        geometry = (tokens, dim, block.attn.num_heads, block.mlp.fc1.out_features)
        cost = block_cost(*geometry, qkr=qkr)
        macs += cost.macs
        if qkr:
            plain = block_cost(*geometry, qkr=False)
            # The folded query bias is one more product per token and head.
            bias_macs = tokens * dim * block.attn.num_heads if block.attn.q_bias is not None else 0
            macs += bias_macs
            extra_macs += cost.macs - plain.macs + bias_macs
            extra_weights += cost.weights - plain.weights
    return ModelCost(macs, packed_bytes(model), extra_macs, extra_weights)


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the model with low-bit weights packed and everything else in FP32.

    With QKR the codes of W_qk are stored (one row scale each), not W_q and W_k, and a folded query
    bias takes one vector per head.
    """
    total = 0
    packed: set[int] = set()
    for module in model.modules():
        if isinstance(module, QuantLinear | QuantConv2d) and module.weight_quantizer.bits != 32:
            total += _codes_bytes(module.weight_quantizer, *_rows_cols(module.weight))
            packed.add(id(module.weight))
        if isinstance(module, QKRAttention) and module.qk_quantizer.bits != 32:
            dim = module.q_weight.shape[1]
            total += _codes_bytes(module.qk_quantizer, module.num_heads * dim, dim)
            packed |= {id(module.q_weight), id(module.k_weight)}
            if module.q_bias is not None:
                total += module.num_heads * dim * FLOAT_BYTES
                packed.add(id(module.q_bias))
    rest = sum(p.numel() for p in model.parameters() if id(p) not in packed)
    return total + rest * FLOAT_BYTES


def _rows_cols(weight: Any) -> tuple[int, int]:
    return weight.shape[0], weight.numel() // weight.shape[0]


def _codes_bytes(quantizer: WeightQuantizer, rows: int, cols: int) -> int:
    """Packed codes, and the row scales where they are no parameters (which are counted anyway)."""
    has_scale_parameter = any(True for _ in quantizer.parameters())
    scales = 0 if has_scale_parameter else rows * FLOAT_BYTES
    return -(-rows * cols * quantizer.bits // 8) + scales
