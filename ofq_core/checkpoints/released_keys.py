"""The released layout: which of our tensors each released key holds (spec 11).

One table serves both directions. It is drawn up from a converted model, so a key exists exactly
when the layer that it belongs to does; what the layout cannot say is an error here.

Linears X          X.weight, X.bias; X.input_quant_fn.s, X.move_b4.bias, X.move_aft.bias are
                   X.input_quantizer.{scale, bias_before, bias_after}; X.statsq_fn.clip_val is 2
head, patches      X.lsqw_fn.s is X.weight_quantizer.scale
QKR attention      quant_x_4_qkv.* is input_quantizer.*; {q,k}.weight is {q,k}_weight;
                   quan_a_qkx_fn.s, move_qkx_{b4,aft}.bias are quant_z.*
plain attention    quan_a_{q,k}_fn.s, move_{q,k}_aft.bias are quant_{q,k}.*; move_qkv_b4.bias is the
                   three bias_before of quant_q, quant_k, quant_v in a row
both               quan_a_v_fn.s, move_v_{b4,aft}.bias are quant_v.*; quan_a_softmax_fn.s is
                   quant_map.scale
Swin               prefixes of torchvision's layout (`ofq_core.models.swin_keys`)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ofq_core.errors import CheckpointError
from ofq_core.methods.lsq import LSQWeight
from ofq_core.methods.statsq import StatsQWeight
from ofq_core.models import is_swin, unlike_released
from ofq_core.models.swin_keys import torchvision_name
from ofq_core.nn import LSQActivation, QuantConv2d, QuantLinear, TokenLSQ

# The released StatsQ clips W / s to [-c/2, c/2 - 1e-6], c saved as `clip_val` and never trained.
CLIP = 2.0
# Layers that stay in full precision: their names are the same on both sides.
_PLAIN = re.compile(
    r"(cls_token|dist_token|pos_embed|norm\.(weight|bias)"
    r"|blocks\.\d+\.norm[12]\.(weight|bias)"
    r"|patch_embed\.norm\.(weight|bias)|layers\.\d+\.downsample\.norm\.(weight|bias)"
    r"|layers\.\d+\.blocks\.\d+\.norm[12]\.(weight|bias)"
    r"|layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table)"
)


@dataclass(frozen=True)
class Entry:
    """A released tensor that is trained.

    ours: names of our tensors that follow one another in it along the first axis. A bias that our
    layer does not have stands as (None, length): it is written as zeros, and never read.
    """

    key: str
    ours: tuple[str | tuple[None, int], ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """A released tensor that follows from the architecture.

    value: what it has to be. says: what it would mean if it were something else.
    """

    key: str
    value: Tensor
    says: str


@dataclass(frozen=True)
class Clip:
    """The clipping constant of one StatsQ. quantizer: name of our module."""

    key: str
    quantizer: str
    value: Tensor


@dataclass(frozen=True)
class Layout:
    """Every key of the released layout for one model."""

    entries: tuple[Entry, ...]
    constants: tuple[Constant, ...]
    clips: tuple[Clip, ...]

    @property
    def keys(self) -> list[str]:
        """All keys, in no particular order."""
        trained = [entry.key for entry in self.entries]
        return trained + [c.key for c in self.constants] + [c.key for c in self.clips]


def released_layout(model: nn.Module) -> Layout:
    """Draw up the released layout of a converted model.

    Raises:
        CheckpointError: a tensor that the layout has no place for, with the setting that decides
            whether the model has it; or a Swin that does not compute what the released code would.
    """
    reason = unlike_released(model)
    if reason is not None:
        raise CheckpointError(
            f"{reason}, so the same weights give other outputs there: the released layout holds "
            "models whose model.window_size fits the maps (load_released reads padded ones, too)"
        )
    walk = _Walk(model)
    for name, module in model.named_modules():
        visit = next((f for kind, f in _VISITS if isinstance(module, kind)), None)
        if visit is not None:
            visit(walk, name, module)
        elif hasattr(module, "relative_position_index"):
            walk.window(name, module)
        if hasattr(module, "quant_map"):
            walk.attention(name, module)
    for name in model.state_dict():
        if name not in walk.seen:
            if not _PLAIN.fullmatch(name):
                raise CheckpointError(
                    f"{name}: the released layout has no such tensor; it holds DeiT and Swin whose "
                    "linears are all quantized, without layer scale, registers or extra norms"
                )
            walk.add(name, name)
    return Layout(tuple(walk.entries), tuple(walk.constants), tuple(walk.clips))


class _Walk:
    """Collects the keys of one model; names are ours until `_key` translates them."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        self.columns = _columns(model) if is_swin(model) else {}
        self.seen: set[str] = set()
        self.entries: list[Entry] = []
        self.constants: list[Constant] = []
        self.clips: list[Clip] = []

    def _key(self, name: str) -> str:
        return torchvision_name(name) if is_swin(self.model) else name

    def add(self, released: str, *ours: str, zeros: int | None = None) -> None:
        """One released tensor; where one of ours does not exist it is `zeros` long."""
        parts: list[str | tuple[None, int]] = []
        for name in ours:
            if name not in self.shapes and zeros is not None:
                parts.append((None, zeros))
                continue
            parts.append(name)
            self.seen.add(name)
        known = [self.shapes[part] for part in parts if isinstance(part, str)]
        rows = sum(self.shapes[p][0] if isinstance(p, str) else p[1] for p in parts)
        rest = known[0][1:] if known else ()
        self.entries.append(Entry(self._key(released), tuple(parts), (rows, *rest)))

    def clip(self, released: str, quantizer: str, module: nn.Module) -> None:
        if not isinstance(module, StatsQWeight):
            kind = "lsq weights" if isinstance(module, LSQWeight) else "wbits = 32"
            raise CheckpointError(
                f"{quantizer}: {kind}; the released layout holds StatsQ weights: "
                "quant.weight = statsq, quant.wbits from 2 to 8"
            )
        value = torch.tensor([CLIP])
        if module.clip is not None:
            value = module.clip * 2
            self.seen.add(f"{quantizer}.clip")
        self.clips.append(Clip(self._key(released), quantizer, value))

    def quantizer(self, name: str, module: nn.Module) -> LSQActivation:
        if not isinstance(module, LSQActivation):
            raise CheckpointError(
                f"{name}.scale does not exist: quant.abits or quant.edge_bits is 32, and the "
                "released layout has a scale for every activation"
            )
        return module

    def biased(self, released: str, name: str, module: nn.Module) -> None:
        """`released` . {input_quant_fn.s, move_b4.bias, move_aft.bias}."""
        self.quantizer(name, module)
        width = self.shapes[f"{name}.bias_before"][0]
        self.add(f"{released}.input_quant_fn.s", f"{name}.scale")
        self.add(f"{released}.move_b4.bias", f"{name}.bias_before")
        self.add(f"{released}.move_aft.bias", f"{name}.bias_after", zeros=width)

    def linear(self, name: str, module: Any) -> None:
        if name.endswith("attn.v"):
            self.add(f"{name}.weight", f"{name}.weight")
            self.add(f"{name}.bias", f"{name}.bias", zeros=module.out_features)
            self.clip(f"{name}_quant.clip_val", f"{name}.weight_quantizer", module.weight_quantizer)
            return
        self._check_columns(f"{name}.input_quantizer", module.input_quantizer)
        self.add(f"{name}.weight", f"{name}.weight")
        self.add(f"{name}.bias", f"{name}.bias", zeros=module.out_features)
        self.biased(name, f"{name}.input_quantizer", module.input_quantizer)
        if name in ("head", "head_dist", "head.fc"):
            self.edge(name, module)
        else:
            quantizer = f"{name}.weight_quantizer"
            self.clip(f"{name}.statsq_fn.clip_val", quantizer, module.weight_quantizer)

    def edge(self, name: str, module: Any) -> None:
        if not isinstance(module.weight_quantizer, LSQWeight):
            raise CheckpointError(
                f"{name}.weight_quantizer.scale does not exist: expected quant.edge_bits = 8"
            )
        self.add(f"{name}.lsqw_fn.s", f"{name}.weight_quantizer.scale")

    def patches(self, name: str, module: Any) -> None:
        self.add(f"{name}.weight", f"{name}.weight")
        self.add(f"{name}.bias", f"{name}.bias", zeros=module.weight.shape[0])
        self.biased(name, f"{name}.input_quantizer", module.input_quantizer)
        self.edge(name, module)
        says = (
            "0 means that no image with a negative value has ever come in, so that codes are "
            "unsigned; images are normalised here and codes signed"
        )
        key = self._key(f"{name}.input_quant_fn.signed")
        self.constants.append(Constant(key, torch.ones(1), says))

    def attention(self, name: str, module: Any) -> None:
        width = module.num_heads * module.head_dim
        self.quantizer(f"{name}.quant_map", module.quant_map)
        self.add(f"{name}.quan_a_softmax_fn.s", f"{name}.quant_map.scale")
        self.add(f"{name}.quan_a_v_fn.s", f"{name}.quant_v.scale")
        self.add(f"{name}.move_v_aft.bias", f"{name}.quant_v.bias_after", zeros=width)
        if not hasattr(module, "qk_quantizer"):
            for part in "qk":
                self.add(f"{name}.quan_a_{part}_fn.s", f"{name}.quant_{part}.scale")
                after = f"{name}.quant_{part}.bias_after"
                self.add(f"{name}.move_{part}_aft.bias", after, zeros=width)
            before = (f"{name}.quant_{part}.bias_before" for part in "qkv")
            self.add(f"{name}.move_qkv_b4.bias", *before)
            return
        self._check_query_bias(name, module)
        self.biased(f"{name}.quant_x_4_qkv", f"{name}.input_quantizer", module.input_quantizer)
        for part in "qk":
            self.add(f"{name}.{part}.weight", f"{name}.{part}_weight")
        self.add(f"{name}.quan_a_qkx_fn.s", f"{name}.quant_z.scale")
        self.add(f"{name}.move_qkx_b4.bias", f"{name}.quant_z.bias_before")
        after = f"{name}.quant_z.bias_after"
        self.add(f"{name}.move_qkx_aft.bias", after, zeros=width * module.num_heads)
        self.add(f"{name}.move_v_b4.bias", f"{name}.quant_v.bias_before")
        self.clip(f"{name}.qk_quant.clip_val", f"{name}.qk_quantizer", module.qk_quantizer)

    def window(self, name: str, module: Any) -> None:
        index = module.relative_position_index.detach().cpu().flatten()
        says = "the file numbers the offsets in a window in another order"
        key = self._key(f"{name}.relative_position_index")
        self.constants.append(Constant(key, index, says))

    def _check_query_bias(self, name: str, module: Any) -> None:
        bias = module.q_bias
        if bias is None:
            return
        if bool(bias.detach().ne(0).any()):
            raise CheckpointError(
                f"{name}.q_bias is not zero, and the released layout has no query bias with QKR: "
                "train with fidelity.qk_bias = drop"
            )
        self.seen.add(f"{name}.q_bias")

    def _check_columns(self, name: str, module: Any) -> None:
        stage = re.match(r"layers\.\d+\.(blocks\.\d+\.mlp|downsample)", name)
        if stage is None or not isinstance(module, TokenLSQ):
            return
        columns = self.columns[name.split(".")[1]]
        if module.scale.numel() != columns:
            raise CheckpointError(
                f"{name}.scale has {module.scale.numel()} scales, one per token, and the released "
                f"layout {columns}, one per image column: train with "
                "fidelity.swin_scale_axis = column"
            )


_Visit = Callable[[_Walk, str, Any], None]
_VISITS: tuple[tuple[type[nn.Module], _Visit], ...] = (
    (QuantLinear, _Walk.linear),
    (QuantConv2d, _Walk.patches),
)


def _columns(swin: Any) -> dict[str, int]:
    """Width of the map in each stage."""
    return {str(i): int(stage.output_resolution[1]) for i, stage in enumerate(swin.layers)}


def our_names(entry: Entry) -> Iterator[str]:
    """Names of our tensors in an entry, without those that do not exist."""
    return (part for part in entry.ours if isinstance(part, str))
