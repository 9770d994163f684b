"""Turn a full-precision timm vision transformer into a quantized one, and say what became of
every tensor."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ofq_core.errors import ModelError
from ofq_core.models.geometry import token_count
from ofq_core.nn import (
    AttentionPlan,
    FullPrecisionWeight,
    LSQActivation,
    LSQWeight,
    MakeWeightQuantizer,
    QKRAttention,
    QuantAttention,
    QuantConv2d,
    QuantLinear,
    StatsQWeight,
)
from ofq_core.settings import QuantSettings

_WEIGHT_QUANTIZERS = {"statsq": StatsQWeight, "lsq": LSQWeight}


@dataclass(frozen=True)
class QuantPlan:
    """Quantization as objects instead of names; see `QuantSettings` for the meaning."""

    make_weight_quantizer: MakeWeightQuantizer
    make_edge_weight_quantizer: MakeWeightQuantizer
    activation_bits: int
    edge_bits: int
    attention: type[QuantAttention] | type[QKRAttention]
    fold_query_bias: bool
    dead_biases: bool = False

    @classmethod
    def from_settings(cls, settings: QuantSettings) -> QuantPlan:
        """Read names and numbers once, here."""
        weight: MakeWeightQuantizer = FullPrecisionWeight
        if settings.wbits != 32:
            weight = partial(_WEIGHT_QUANTIZERS[settings.weight], bits=settings.wbits)
        edge: MakeWeightQuantizer = FullPrecisionWeight
        if settings.edge_bits != 32:
            edge = partial(LSQWeight, bits=settings.edge_bits)
        return cls(
            make_weight_quantizer=weight,
            make_edge_weight_quantizer=edge,
            activation_bits=settings.abits,
            edge_bits=settings.edge_bits,
            attention=QKRAttention if settings.qkr else QuantAttention,
            fold_query_bias=settings.qk_bias == "fold",
        )


@dataclass(frozen=True)
class ConversionReport:
    """What became of every tensor of the source model.

    kept: source name -> names in the quantized model that hold its values. dropped: source
    name (or part of it) -> why. new: names that the source does not have.
    """

    kept: dict[str, tuple[str, ...]]
    dropped: dict[str, str]
    new: tuple[str, ...]

    def summary(self) -> str:
        """One line for the log."""
        kinds = Counter((".".join(n.split(".")[-2:]), why) for n, why in self.dropped.items())
        dropped = "".join(f"; {n} x {kind} dropped ({why})" for (kind, why), n in kinds.items())
        return f"{len(self.kept)} tensors kept, {len(self.new)} new{dropped}"


def convert(model: nn.Module, plan: QuantPlan) -> ConversionReport:
    """Replace the layers of a timm vision transformer in place by quantized ones.

    Quantized: patch embedding and heads with `edge_bits`, the linears and attention operands of
    every block with the plan's bits. Norms, GELU, softmax, residuals, tokens and position
    embedding stay FP32 (spec 3.2). Activation scales are NaN until `calibrate` or a load.

    Raises:
        ModelError: the model has no attention, or attention of a kind that is not supported.
    """
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    blocks: Any = getattr(model, "blocks", None)
    if blocks is None or not all(hasattr(block, "attn") for block in blocks):
        raise ModelError(
            f"{type(model).__name__} has no attention blocks: quantization (and quant.qkr) needs "
            "a timm vision transformer"
        )
    vit: Any = model
    _check_surroundings(vit)
    tokens = token_count(vit)
    attention_plan = AttentionPlan(
        tokens=tokens,
        activation_bits=plan.activation_bits,
        make_weight_quantizer=plan.make_weight_quantizer,
        fold_query_bias=plan.fold_query_bias,
        dead_biases=plan.dead_biases,
    )
    vit.patch_embed.proj = _quant_patch_embedding(vit, plan)
    for index, block in enumerate(blocks):
        _check_attention(block.attn, f"blocks.{index}.attn")
        block.attn = plan.attention(block.attn, attention_plan)
        _convert_mlp(block.mlp, attention_plan, f"blocks.{index}.mlp")
    for name in ("head", "head_dist"):
        head = getattr(vit, name, None)
        if isinstance(head, nn.Linear):
            setattr(vit, name, _quant_head(head, plan))
    return _report(before, model)


def _quant_patch_embedding(vit: Any, plan: QuantPlan) -> QuantConv2d:
    source = vit.patch_embed.proj
    quantizer: nn.Module = nn.Identity()
    if plan.edge_bits != 32:
        height, width = vit.patch_embed.img_size
        quantizer = LSQActivation(source.in_channels, 1, plan.edge_bits, bias_shape=(height, width))
    return QuantConv2d(source, quantizer, plan.make_edge_weight_quantizer)


def _quant_head(source: nn.Linear, plan: QuantPlan) -> QuantLinear:
    quantizer: nn.Module = nn.Identity()
    if plan.edge_bits != 32:
        quantizer = LSQActivation(1, None, plan.edge_bits, bias_shape=(source.in_features,))
    return QuantLinear(source, quantizer, plan.make_edge_weight_quantizer)


def _convert_mlp(mlp: Any, plan: AttentionPlan, name: str) -> None:
    if not isinstance(getattr(mlp, "fc1", None), nn.Linear) or not isinstance(
        getattr(mlp, "fc2", None), nn.Linear
    ):
        raise ModelError(f"{name} is a {type(mlp).__name__}: expected timm's Mlp with fc1 and fc2")
    mlp.fc1 = QuantLinear(
        mlp.fc1, plan.token_quantizer(mlp.fc1.in_features), plan.make_weight_quantizer
    )
    quantizer: nn.Module = nn.Identity()
    if plan.activation_bits != 32:
        # After GELU nearly everything is positive; the bias before it can shift the small tail up.
        quantizer = LSQActivation(
            plan.tokens, -2, plan.activation_bits, signed=False, bias_shape=(mlp.fc2.in_features,)
        )
    mlp.fc2 = QuantLinear(mlp.fc2, quantizer, plan.make_weight_quantizer)


def _check_surroundings(vit: Any) -> None:
    """Refuse models with matrix products outside the blocks that would stay in full precision."""
    if hasattr(vit.patch_embed, "backbone") or not isinstance(vit.patch_embed.proj, nn.Conv2d):
        raise ModelError(f"patch_embed is a {type(vit.patch_embed).__name__}: expected PatchEmbed")
    if getattr(vit, "attn_pool", None) is not None:
        raise ModelError("attn_pool is set: attention pooling before the head is not supported")


def _check_attention(attention: Any, name: str) -> None:
    """Refuse attention whose extra parts a quantized layer would silently leave out."""
    if type(attention).__name__ != "Attention" or not isinstance(attention.qkv, nn.Linear):
        raise ModelError(f"{name} is a {type(attention).__name__}: expected timm's Attention")
    for part in ("q_norm", "k_norm", "norm"):
        if not isinstance(getattr(attention, part, nn.Identity()), nn.Identity):
            raise ModelError(f"{name}.{part} is set: attention with extra norms is not supported")
    if getattr(attention, "gate", None) is not None:
        raise ModelError(f"{name}.gate is set: gated attention is not supported")
    if attention.attn_dim != attention.qkv.in_features:
        raise ModelError(f"{name}: attention width {attention.attn_dim} differs from the model's")


def _report(before: dict[str, Tensor], model: nn.Module) -> ConversionReport:
    """Compare values, not intentions: a tensor is kept when its values are found again."""
    after = model.state_dict()
    kept: dict[str, tuple[str, ...]] = {}
    dropped: dict[str, str] = {}
    accounted: set[str] = set()
    for name, value in before.items():
        if name in after and torch.equal(after[name], value):
            kept[name] = (name,)
            accounted.add(name)
            continue
        parts = _qkv_parts(name, value)
        found = [new for new, part in parts if new in after and torch.equal(after[new], part)]
        accounted.update(found)
        if found:
            kept[name] = tuple(found)
        for new, _ in parts:
            if new not in found:
                dropped[_source_part(new)] = _REASONS.get(new.rsplit(".", 1)[1], "not found again")
        if not parts:
            dropped[name] = "not found again"
    return ConversionReport(kept, dropped, tuple(n for n in after if n not in accounted))


_REASONS = {
    "k_bias": "softmax does not depend on it",
    "q_bias": "quant.qk_bias = drop",
}


def _qkv_parts(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """Where QKR puts the thirds of a qkv tensor."""
    if not name.endswith((".qkv.weight", ".qkv.bias")):
        return []
    stem, kind = name.rsplit(".qkv.", 1)
    q, k, v = value.chunk(3)
    return [(f"{stem}.q_{kind}", q), (f"{stem}.k_{kind}", k), (f"{stem}.v.{kind}", v)]


def _source_part(name: str) -> str:
    """'blocks.0.attn.k_bias' -> 'blocks.0.attn.qkv.bias[k]'."""
    stem, leaf = name.rsplit(".", 1)
    part, _, kind = leaf.partition("_")
    if not kind:  # '...attn.v' + '.bias'
        return f"{stem.removesuffix('.v')}.qkv.{leaf}[v]"
    return f"{stem}.qkv.{kind}[{part}]"
