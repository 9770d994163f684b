"""Turn a full-precision timm model into a quantized one: walk it and replace its layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ofq_core.errors import ModelError
from ofq_core.methods import activation_rule, weight_quantizer
from ofq_core.methods.lsq import LSQWeight
from ofq_core.models.geometry import is_swin, token_count
from ofq_core.models.released_init import lose_released_tensors
from ofq_core.models.report import ConversionReport, compare
from ofq_core.nn import (
    ActivationRule,
    AttentionPlan,
    FullPrecisionWeight,
    LSQActivation,
    MakeWeightQuantizer,
    QKRAttention,
    QKRWindowAttention,
    QuantAttention,
    QuantConv2d,
    QuantLinear,
    QuantWindowAttention,
    TokenLSQ,
)
from ofq_core.settings import FidelitySettings, QuantSettings

_SOFTMAX = "softmax does not depend on it"
_RELEASED = "fidelity.initialization = released"


@dataclass(frozen=True)
class QuantPlan:
    """Quantization as objects instead of names; see `QuantSettings` and `FidelitySettings`."""

    make_weight_quantizer: MakeWeightQuantizer
    make_edge_weight_quantizer: MakeWeightQuantizer
    activation_bits: int
    edge_bits: int
    qkr: bool
    fold_query_bias: bool = True
    dead_biases: bool = False
    column_scales: bool = False
    released_initialization: bool = False
    rule: ActivationRule | None = None

    @classmethod
    def from_settings(cls, settings: QuantSettings, fidelity: FidelitySettings) -> QuantPlan:
        """Read names and numbers once, here."""
        weight: MakeWeightQuantizer = FullPrecisionWeight
        if settings.wbits != 32:
            weight = weight_quantizer(settings)
        edge: MakeWeightQuantizer = FullPrecisionWeight
        if settings.edge_bits != 32:
            edge = partial(LSQWeight, bits=settings.edge_bits)
        return cls(
            make_weight_quantizer=weight,
            make_edge_weight_quantizer=edge,
            activation_bits=settings.abits,
            edge_bits=settings.edge_bits,
            qkr=settings.qkr,
            fold_query_bias=fidelity.qk_bias == "fold",
            dead_biases=fidelity.dead_biases,
            column_scales=fidelity.swin_scale_axis == "column",
            released_initialization=fidelity.initialization == "released",
            rule=activation_rule(settings) if settings.abits != 32 else None,
        )

    def attention(self, tokens: int) -> AttentionPlan:
        """The part of the plan that concerns attention over so many tokens."""
        return AttentionPlan(
            tokens=tokens,
            activation_bits=self.activation_bits,
            make_weight_quantizer=self.make_weight_quantizer,
            fold_query_bias=self.fold_query_bias,
            dead_biases=self.dead_biases,
            rule=self.rule,
        )


def convert(model: nn.Module, plan: QuantPlan, seed: int = 0) -> ConversionReport:
    """Replace the layers of a timm vision or Swin transformer in place by quantized ones.

    Quantized: patch embedding and heads with `edge_bits`; the linears and attention operands of
    every block, and Swin's reductions, with the plan's bits. Norms, GELU, softmax, residuals,
    tokens, position embedding, relative position bias and shift mask stay FP32 (spec 3.2).
    Activation scales are NaN until `calibrate` or a load.

    Args:
        seed: of the values that take the place of those that the released initialisation loses.

    Raises:
        ModelError: the model has no attention, or parts of a kind that is not supported.
    """
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    check_convertible(model)
    if plan.released_initialization:
        lose_released_tensors(model, plan.qkr, seed)
    part: Any = model
    part.patch_embed.proj = _quant_patch_embedding(part.patch_embed, plan)
    if is_swin(model):
        _convert_stages(part, plan)
    else:
        _convert_blocks(part, plan)
    lost = {
        "k_bias": _RELEASED if plan.released_initialization and not plan.qkr else _SOFTMAX,
        "q_bias": "fidelity.qk_bias = drop",
    }
    if plan.released_initialization:
        ends = ("attn.proj.weight", "attn.proj.bias", "relative_position_bias_table")
        lost |= dict.fromkeys((*ends, "qkv.weight", "qkv.bias"), _RELEASED)
    return compare(before, model, lost)


def _convert_blocks(vit: Any, plan: QuantPlan) -> None:
    tokens = token_count(vit)
    attention = QKRAttention if plan.qkr else QuantAttention
    for block in vit.blocks:
        block.attn = attention(block.attn, plan.attention(tokens))
        _convert_mlp(block.mlp, plan, tokens, None)
    for name in ("head", "head_dist"):
        head = getattr(vit, name, None)
        if isinstance(head, nn.Linear):
            setattr(vit, name, _quant_head(head, plan))


def _convert_stages(swin: Any, plan: QuantPlan) -> None:
    attention = QKRWindowAttention if plan.qkr else QuantWindowAttention
    for stage in swin.layers:
        height, width = stage.output_resolution
        columns = width if plan.column_scales else None
        merging = stage.downsample
        if not isinstance(merging, nn.Identity):
            quantizer = _token_quantizer(
                plan, height * width, merging.reduction.in_features, columns
            )
            merging.reduction = QuantLinear(
                merging.reduction, quantizer, plan.make_weight_quantizer
            )
        for block in stage.blocks:
            block.attn = attention(block.attn, plan.attention(block.window_area))
            _convert_mlp(block.mlp, plan, height * width, columns)
    if isinstance(swin.head.fc, nn.Linear):
        swin.head.fc = _quant_head(swin.head.fc, plan)


def _convert_mlp(mlp: Any, plan: QuantPlan, positions: int, columns: int | None) -> None:
    for name, signed in (("fc1", True), ("fc2", False)):
        # After GELU nearly everything is positive; the bias before it can shift the small tail up.
        source = getattr(mlp, name)
        quantizer = _token_quantizer(plan, positions, source.in_features, columns, signed)
        setattr(mlp, name, QuantLinear(source, quantizer, plan.make_weight_quantizer))
    between = (mlp.drop1, getattr(mlp, "norm", nn.Identity()))
    if isinstance(mlp.act, nn.GELU) and all(_does_nothing(module) for module in between):
        mlp.fc2.activation, mlp.act = mlp.act, nn.Identity()


def _does_nothing(module: nn.Module) -> bool:
    dropout = isinstance(module, nn.Dropout) and module.p == 0.0
    return dropout or isinstance(module, nn.Identity)


def _token_quantizer(
    plan: QuantPlan, positions: int, channels: int, columns: int | None, signed: bool = True
) -> nn.Module:
    if plan.activation_bits == 32:
        return nn.Identity()
    return TokenLSQ(
        positions, plan.activation_bits, signed, (channels,), columns=columns, rule=plan.rule
    )


def _quant_patch_embedding(embedding: Any, plan: QuantPlan) -> QuantConv2d:
    source = embedding.proj
    quantizer: nn.Module = nn.Identity()
    if plan.edge_bits != 32:
        height, width = embedding.img_size
        quantizer = LSQActivation(source.in_channels, 1, plan.edge_bits, bias_shape=(height, width))
    return QuantConv2d(source, quantizer, plan.make_edge_weight_quantizer)


def _quant_head(source: nn.Linear, plan: QuantPlan) -> QuantLinear:
    quantizer: nn.Module = nn.Identity()
    if plan.edge_bits != 32:
        quantizer = LSQActivation(1, None, plan.edge_bits, bias_shape=(source.in_features,))
    return QuantLinear(source, quantizer, plan.make_edge_weight_quantizer)


def check_convertible(model: Any) -> None:
    """Refuse models with parts that a quantized layer would silently leave out.

    Raises:
        ModelError: naming the part.
    """
    blocks = list(_named_blocks(model))
    if not blocks or not all(hasattr(block, "attn") for _, block in blocks):
        raise ModelError(
            f"{type(model).__name__} has no attention blocks: quantization (and quant.qkr) needs "
            "a timm vision transformer or Swin transformer"
        )
    if hasattr(model.patch_embed, "backbone") or not isinstance(model.patch_embed.proj, nn.Conv2d):
        kind = type(model.patch_embed).__name__
        raise ModelError(f"patch_embed is a {kind}: expected PatchEmbed")
    if getattr(model, "attn_pool", None) is not None:
        raise ModelError("attn_pool is set: attention pooling before the head is not supported")
    for name, block in blocks:
        _check_attention(block.attn, f"{name}.attn")
        mlp = block.mlp
        if any(not isinstance(getattr(mlp, fc, None), nn.Linear) for fc in ("fc1", "fc2")):
            raise ModelError(
                f"{name}.mlp is a {type(mlp).__name__}: expected timm's Mlp with fc1 and fc2"
            )


def _named_blocks(model: Any) -> Iterator[tuple[str, Any]]:
    if is_swin(model):
        for stage, layer in enumerate(model.layers):
            for index, block in enumerate(layer.blocks):
                yield f"layers.{stage}.blocks.{index}", block
    else:
        for index, block in enumerate(getattr(model, "blocks", ())):
            yield f"blocks.{index}", block


def _check_attention(attention: Any, name: str) -> None:
    kind = type(attention).__name__
    if kind not in ("Attention", "WindowAttention") or not isinstance(attention.qkv, nn.Linear):
        raise ModelError(f"{name} is a {kind}: expected timm's Attention or WindowAttention")
    for part in ("q_norm", "k_norm", "norm"):
        if not isinstance(getattr(attention, part, nn.Identity()), nn.Identity):
            raise ModelError(f"{name}.{part} is set: attention with extra norms is not supported")
    if getattr(attention, "gate", None) is not None:
        raise ModelError(f"{name}.gate is set: gated attention is not supported")
    width = getattr(attention, "attn_dim", attention.qkv.out_features // 3)
    if width != attention.qkv.in_features:
        raise ModelError(f"{name}: attention width {width} differs from the model's")
