"""What a model costs: multiply-accumulates and packed bytes, and what QKR adds to both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from ofq_core.models.geometry import is_swin, token_count
from ofq_core.nn import QKRAttention, QuantConv2d, QuantLinear, WeightQuantizer

FLOAT_BYTES = 4


@dataclass(frozen=True)
class BlockCost:
    """One transformer block, per image: multiply-accumulates, and entries of weight matrices."""

    macs: int
    weights: int


def block_cost(
    tokens: int,
    dim: int,
    heads: int,
    hidden: int,
    qkr: bool,
    windows: int = 1,
    positions: int | None = None,
) -> BlockCost:
    """Cost of one block in the form that is deployed: with QKR, W_qk is stored ready-made.

    Args:
        tokens: N that attend to each other, with class and distillation tokens. dim: C. hidden:
            width of the MLP. heads: H; QKR stores H C^2 weights for queries and keys instead of
            2 C^2, and its logits sum over C channels instead of C / H.
        windows: attention runs in so many windows of N tokens (Swin, padding included).
        positions: tokens that the MLP sees; N * windows where it is not given.
    """
    projection = dim * dim
    mlp = 2 * dim * hidden
    attention_weights = (2 + heads) * projection if qkr else 4 * projection
    logits = tokens * tokens * dim * (heads if qkr else 1)
    values = tokens * tokens * dim
    attention = windows * (tokens * attention_weights + logits + values)
    seen = tokens * windows if positions is None else positions
    return BlockCost(macs=attention + seen * mlp, weights=attention_weights + mlp)


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


@dataclass(frozen=True)
class _Place:
    """Where a block stands: tokens of a window, number of windows, positions of the map."""

    block: Any
    tokens: int
    windows: int
    positions: int


def model_cost(model: nn.Module) -> ModelCost:
    """Cost of a timm vision transformer or Swin transformer, converted or not."""
    part: Any = model
    macs = part.patch_embed.num_patches * part.patch_embed.proj.weight.numel()
    macs += sum(weight.numel() for weight in _head_weights(part))
    macs += sum(positions * weight.numel() for positions, weight in _reductions(part))
    extra_macs = extra_weights = 0
    for place in _places(part):
        attention, dim = place.block.attn, place.block.mlp.fc1.in_features
        qkr = isinstance(attention, QKRAttention)
        sizes = (place.tokens, dim, attention.num_heads, place.block.mlp.fc1.out_features)
        cost = block_cost(*sizes, qkr, place.windows, place.positions)
        macs += cost.macs
        if qkr:
            plain = block_cost(*sizes, False, place.windows, place.positions)
            # The folded query bias is one more product per token and head.
            seen = place.tokens * place.windows
            bias_macs = seen * dim * attention.num_heads if attention.q_bias is not None else 0
            macs += bias_macs
            extra_macs += cost.macs - plain.macs + bias_macs
            extra_weights += cost.weights - plain.weights
    return ModelCost(macs, packed_bytes(model), extra_macs, extra_weights)


def _head_weights(model: Any) -> Iterator[Tensor]:
    for head in (model.head, getattr(model, "head_dist", None)):
        inner: Any = getattr(head, "fc", head)  # Swin's head pools before its linear
        if hasattr(inner, "weight"):
            yield inner.weight


def _reductions(model: Any) -> Iterator[tuple[int, Tensor]]:
    """Swin's reductions with the number of positions that they see."""
    for stage in getattr(model, "layers", ()):
        if not isinstance(stage.downsample, nn.Identity):
            height, width = stage.output_resolution
            yield height * width, stage.downsample.reduction.weight


def _places(model: Any) -> Iterator[_Place]:
    if not is_swin(model):
        tokens = token_count(model)
        for block in model.blocks:
            yield _Place(block, tokens, 1, tokens)
        return
    for stage in model.layers:
        height, width = stage.output_resolution
        for block in stage.blocks:
            rows, columns = block.window_size
            windows = -(-height // rows) * -(-width // columns)
            yield _Place(block, rows * columns, windows, height * width)


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
