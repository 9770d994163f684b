"""Fill a converted model with a file in the released layout, and write one back: both strict."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ofq_core.checkpoints.released_keys import CLIP, Clip, Layout, our_names, released_layout
from ofq_core.errors import CheckpointError, some
from ofq_core.finite import not_finite_tensor

_ADVICE = {
    ("pos_embed",): (
        "(1, tokens, width): scales belong to a number of tokens, so set model.img_size and "
        "model.patch_size to those of the file"
    ),
    ("features.0.0.weight", "patch_embed.proj.weight"): (
        "(width, channels, patch, patch): set model.embed_dim, model.in_chans and model.patch_size"
    ),
    ("head.weight", "head_dist.weight"): (
        "(classes, width): set model.num_classes and model.embed_dim"
    ),
    ("input_quant_fn.s", "quan_a_softmax_fn.s", "quan_a_qkx_fn.s"): (
        "(one scale per token, per image column in Swin, or per token and head): set "
        "model.img_size, model.patch_size, model.window_size and the heads to those of the file"
    ),
}


def export_released(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a converted model under the released keys, on the CPU, cloned.

    Biases that cannot act and that the model therefore does not have (the second ones of k and of
    the query-key product, a zero query bias) are written as the zeros that they are worth, and so
    is a bias that a linear does not have.

    Raises:
        CheckpointError: the layout has no place for a tensor of the model; the message says which
            setting decides whether the model has it.
    """
    layout = released_layout(model)
    own = model.state_dict()
    state: dict[str, Tensor] = {}
    for entry in layout.entries:
        parts = [
            own[part].detach().cpu() if isinstance(part, str) else torch.zeros(part[1])
            for part in entry.ours
        ]
        state[entry.key] = torch.cat(parts) if len(parts) > 1 else parts[0].clone()
    state |= {constant.key: constant.value.clone() for constant in layout.constants}
    state |= {clip.key: clip.value.detach().cpu().clone() for clip in layout.clips}
    return state


def fill_released(model: nn.Module, state: dict[str, Tensor], source: str) -> Layout:
    """Fill a converted model strictly: every tensor of the file has a place or is a known constant.

    Scales are taken as they are, never created again by a forward (spec 9.2). Where a file holds
    another clipping constant than 2 its quantizer follows it. On an error the model is as it was.

    Args:
        model: converted with the fidelity switches of `released`.
        state: released key -> tensor, without `module.`.
        source: how messages call the file.

    Raises:
        CheckpointError: keys are missing or unknown, shapes do not fit, a constant has another
            value, a scale is not finite.
    """
    layout = released_layout(model)
    _check_keys(layout, state, source)
    _check_shapes(layout, state, source)
    _check_types(layout, state, model.state_dict(), source)
    _check_values(layout, state, source)
    for clip in layout.clips:
        _set_clip(model, clip, state[clip.key])
    filled = model.state_dict()
    with torch.no_grad():
        for entry in layout.entries:
            value = state[entry.key]
            for name in our_names(entry):
                rows = len(filled[name])
                filled[name].copy_(value[:rows])
                value = value[rows:]
    return layout


def _check_keys(layout: Layout, state: dict[str, Tensor], source: str) -> None:
    expected = set(layout.keys)
    wrong = [f"{key} is missing" for key in layout.keys if key not in state]
    wrong += [f"{key} is not known{_hint(key)}" for key in state if key not in expected]
    if wrong:
        raise CheckpointError(f"{source}: {some(wrong)}")


def _hint(key: str) -> str:
    if key.endswith("lsqw_fn.s"):
        return " (LSQ weights; only StatsQ weights can be read)"
    if "attn.qkv" in key or "quan_a_q" in key:
        return " (attention without QKR)"
    return ""


def _check_shapes(layout: Layout, state: dict[str, Tensor], source: str) -> None:
    shapes = {entry.key: entry.shape for entry in layout.entries}
    shapes |= {constant.key: tuple(constant.value.shape) for constant in layout.constants}
    shapes |= {clip.key: tuple(clip.value.shape) for clip in layout.clips}
    wrong = [key for key, shape in shapes.items() if tuple(state[key].shape) != shape]
    if wrong:
        # Those with an advice first: one size that differs makes most other shapes differ as well.
        wrong.sort(key=lambda key: _advice(key)[0])
        told = [
            f"{key} has shape {tuple(state[key].shape)}, the model {shapes[key]}{_advice(key)[1]}"
            for key in wrong
        ]
        raise CheckpointError(f"{source}: {some(told)}")


def _check_types(
    layout: Layout, state: dict[str, Tensor], own: dict[str, Tensor], source: str
) -> None:
    wrong = [
        f"{entry.key} is {state[entry.key].dtype}, the model {own[name].dtype}: convert it first"
        for entry in layout.entries
        for name in list(our_names(entry))[:1]
        if state[entry.key].dtype != own[name].dtype
    ]
    if wrong:
        raise CheckpointError(f"{source}: {some(wrong)}")


def _advice(key: str) -> tuple[int, str]:
    """What to set when the shape of a tensor differs, and how much it tells (0: most)."""
    for rank, (ends, advice) in enumerate(_ADVICE.items()):
        if key.endswith(ends):
            return rank, f" {advice}"
    return len(_ADVICE), ""


def _check_values(layout: Layout, state: dict[str, Tensor], source: str) -> None:
    for constant in layout.constants:
        value = state[constant.key]
        if not torch.equal(value.to(constant.value.dtype), constant.value):
            raise CheckpointError(
                f"{source}: {constant.key} = {_first(value)}, expected {_first(constant.value)}: "
                f"{constant.says}"
            )
    for clip in layout.clips:
        number = float(state[clip.key])
        if not 0 < number < float("inf"):
            raise CheckpointError(
                f"{source}: {clip.key} = {number:g}, expected {CLIP:g} (StatsQ clips W / s to half "
                "of it), or at least a finite number above 0"
            )
    wrong = not_finite_tensor((entry.key, state[entry.key]) for entry in layout.entries)
    if wrong is not None:
        raise CheckpointError(f"{source}: {wrong}")


def _set_clip(model: nn.Module, clip: Clip, value: Tensor) -> None:
    quantizer: Any = model.get_submodule(clip.quantizer)
    if quantizer.clip is not None or float(value) != CLIP:
        quantizer.set_clip(value.to(clip.value) / 2)


def _first(value: Tensor) -> str:
    """A constant in a message: its value, or the first few."""
    values = value.flatten().tolist()
    return f"{values[0]:g}" if len(values) == 1 else f"{values[:4]} ..."
