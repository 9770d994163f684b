"""What a model costs: multiply-accumulates, bit operations, packed bytes, and what QKR adds.

Bit operations of a product of two operands are its multiply-accumulates times the bits of the one
times the bits of the other: weight bits x activation bits in a linear layer (first and last layer
at their own bits), activation bits x activation bits for the two products of attention, q k^T (with
QKR x' z) and map x v. What stays in full precision counts as 32 bits, so an unquantized layer has
1024 bit operations per multiply-accumulate. Norms, softmax, GELU and the quantizers themselves are
no products of matrices and count in neither.

The second bias of an operand is in full precision, so low-bit products are of the operand without
it. Against weights it makes a constant, which joins the bias of the layer; against the keys (z) it
does not: there it is one more product per token, and with QKR per head, that bit operations count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ofq_core.models.geometry import is_swin, token_count
from ofq_core.nn import QKRAttention, QuantConv2d, QuantLinear, WeightQuantizer

FLOAT_BYTES = 4
FLOAT_BITS = 32


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
    """macs, bit_operations: per image. model_bytes: packed, with every scale and bias.

    The extras are QKR's.
    """

    macs: int
    bit_operations: int
    model_bytes: int
    qkr_extra_macs: int
    qkr_extra_weights: int

    def as_dict(self) -> dict[str, int]:
        """For metrics.json."""
        return asdict(self)


@dataclass(frozen=True)
class Place:
    """Where a block stands: tokens of a window, number of windows, positions of the map."""

    block: Any
    tokens: int
    windows: int
    positions: int

    def cost(self, qkr: bool) -> BlockCost:
        """Cost of the block with or without QKR, whatever it has."""
        attention, mlp = self.block.attn, self.block.mlp
        sizes = (self.tokens, mlp.fc1.in_features, attention.num_heads, mlp.fc1.out_features)
        return block_cost(*sizes, qkr, self.windows, self.positions)


@dataclass(frozen=True)
class _Product:
    """A product of two operands, per image, and the bits of each."""

    macs: int
    bits: tuple[int, int]


def model_cost(model: nn.Module) -> ModelCost:
    """Cost of a timm vision transformer or Swin transformer, converted or not."""
    part: Any = model
    products, biases = list(_outside_blocks(part)), []
    extra_macs = extra_weights = 0
    for place in places(part):
        inside = list(_in_block(place))
        products += inside
        biases += list(_second_bias(place))
        if isinstance(place.block.attn, QKRAttention):
            plain = place.cost(qkr=False)
            extra_macs += sum(product.macs for product in inside) - plain.macs
            extra_weights += place.cost(qkr=True).weights - plain.weights
    return ModelCost(
        macs=sum(product.macs for product in products),
        bit_operations=sum(one.macs * one.bits[0] * one.bits[1] for one in products + biases),
        model_bytes=packed_bytes(model),
        qkr_extra_macs=extra_macs,
        qkr_extra_weights=extra_weights,
    )


def _outside_blocks(model: Any) -> Iterator[_Product]:
    """Patch embedding, Swin's reductions with the positions that they see, heads."""
    embedding = model.patch_embed
    yield _layer(embedding.proj, embedding.num_patches)
    for stage in getattr(model, "layers", ()):
        if not isinstance(stage.downsample, nn.Identity):
            height, width = stage.output_resolution
            yield _layer(stage.downsample.reduction, height * width)
    for head in (model.head, getattr(model, "head_dist", None)):
        inner: Any = getattr(head, "fc", head)  # Swin's head pools before its linear
        if hasattr(inner, "weight"):
            yield _layer(inner, 1)


def _in_block(place: Place) -> Iterator[_Product]:
    attention, mlp = place.block.attn, place.block.mlp
    dim, heads = mlp.fc1.in_features, attention.num_heads
    seen = place.tokens * place.windows
    pairs = seen * place.tokens * dim
    if isinstance(attention, QKRAttention):
        of_input = _bits(attention.input_quantizer)
        of_product = attention.qk_quantizer.bits
        yield _Product(seen * heads * dim * dim, (of_product, of_input))
        yield _layer(attention.v, seen, of_input)
        yield _Product(pairs * heads, (of_input, _bits(attention.quant_z)))
        if attention.q_bias is not None:
            # The folded query bias is one more product per token and head; no bias is quantized.
            yield _Product(seen * heads * dim, (FLOAT_BITS, of_input))
    else:
        yield _layer(attention.qkv, seen)
        operands = (getattr(attention, name, None) for name in ("quant_q", "quant_k"))
        q_bits, k_bits = (_bits(operand) for operand in operands)
        yield _Product(pairs, (q_bits, k_bits))
    of_map, of_values = (_bits(getattr(attention, n, None)) for n in ("quant_map", "quant_v"))
    yield _Product(pairs, (of_map, of_values))
    yield _layer(attention.proj, seen)
    yield _layer(mlp.fc1, place.positions)
    yield _layer(mlp.fc2, place.positions)


def _second_bias(place: Place) -> Iterator[_Product]:
    """That of the queries (with QKR of x') against the keys (z): no MACs, see above."""
    attention, dim = place.block.attn, place.block.mlp.fc1.in_features
    qkr = isinstance(attention, QKRAttention)
    queries = getattr(attention, "input_quantizer" if qkr else "quant_q", None)
    keys = getattr(attention, "quant_z" if qkr else "quant_k", None)
    if getattr(queries, "bias_after", None) is not None:
        rows = place.tokens * place.windows * (attention.num_heads if qkr else 1)
        yield _Product(rows * dim, (FLOAT_BITS, _bits(keys)))


def _layer(layer: Any, positions: int, input_bits: int | None = None) -> _Product:
    """A layer whose weights all meet every one of `positions` inputs."""
    weights = getattr(getattr(layer, "weight_quantizer", None), "bits", FLOAT_BITS)
    if input_bits is None:
        input_bits = _bits(getattr(layer, "input_quantizer", None))
    return _Product(positions * layer.weight.numel(), (weights, input_bits))


def _bits(quantizer: Any) -> int:
    """Bits of what a quantizer of activations returns; the identity quantizes nothing."""
    return int(getattr(quantizer, "bits", FLOAT_BITS))


def places(model: Any) -> Iterator[Place]:
    """Every block of the model, converted or not."""
    if not is_swin(model):
        tokens = token_count(model)
        for block in model.blocks:
            yield Place(block, tokens, 1, tokens)
        return
    for stage in model.layers:
        height, width = stage.output_resolution
        for block in stage.blocks:
            rows, columns = block.window_size
            windows = -(-height // rows) * -(-width // columns)
            yield Place(block, rows * columns, windows, height * width)


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
