"""Build full-precision vision transformers and Swin transformers through timm."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from ofq_core.errors import ModelError, shortened
from ofq_core.explain import did_you_mean
from ofq_core.models.torchvision_compat import import_torchvision
from ofq_core.settings import ModelSettings

_BOTH = ("img_size", "patch_size", "in_chans", "embed_dim", "mlp_ratio")
_VIT = ("depth", "num_heads")
# What timm calls the sizes of Swin that have one entry per stage.
_SWIN = {"depths": "depths", "heads_per_stage": "num_heads", "window_size": "window_size"}
_EXAMPLES = "such as deit_tiny_distilled_patch16_224 or swin_tiny_patch4_window7_224"


def build_model(settings: ModelSettings, seed: int) -> nn.Module:
    """A freshly initialised model, the same for the same seed, in FP32 on the CPU.

    Distilled models are set to return (class logits, distillation logits) in training mode.
    Stochastic depth is off, as in the released recipes (spec 7.1).

    Raises:
        ModelError: timm does not know the name, the model is neither a vision transformer nor a
            Swin transformer, it does not take these sizes, or they are too large for this machine.
    """
    timm = import_timm()
    if not timm.is_model(settings.name):
        hint = did_you_mean(settings.name, timm.list_models())
        raise ModelError(f"model.name = {shortened(settings.name)}: timm has no such model{hint}")
    try:
        timm.models.get_pretrained_cfg(settings.name)
    except RuntimeError as error:  # a tag after the name that timm does not know
        raise ModelError(
            f"model.name = {shortened(settings.name)}: timm has no such model ({error})"
        ) from error
    with torch.random.fork_rng(devices=[]):
        if torch.get_default_device().type != "meta":
            _check_memory(timm, settings)
        torch.manual_seed(seed)
        return create(timm, settings, pretrained=False)


def _check_memory(timm: Any, settings: ModelSettings) -> None:
    """Refuse a model that is larger than the memory, before room is made for it."""
    try:
        with torch.device("meta"):
            model = create(timm, settings, pretrained=False)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{_impossible(settings)} ({reason})") from error
    needed = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ModelError(
            f"model.name = {shortened(settings.name)} with {_sizes(settings)} and num_classes = "
            f"{settings.num_classes} takes {needed / 2**30:,.0f} GiB, and this machine has "
            f"{memory / 2**30:,.0f} GiB of memory: expected smaller sizes"
        )


def _impossible(settings: ModelSettings) -> str:
    return (
        f"model.name = {shortened(settings.name)} cannot be built with "
        f"{_sizes(settings)}: no tensor can be so large"
    )


def import_timm() -> Any:
    """The module timm, with torchvision made to load."""
    import_torchvision()
    import timm

    return timm


def create(timm: Any, settings: ModelSettings, pretrained: bool) -> nn.Module:
    """A model from torch's global generator, or with timm's pretrained weights.

    Raises:
        ModelError: see `build_model`. What a download raises is passed on.
    """
    sizes = _sizes(settings)
    try:
        model: Any = timm.create_model(
            settings.name,
            pretrained=pretrained,
            num_classes=settings.num_classes,
            drop_path_rate=0.0,
            **sizes,
        )
    except (TypeError, AssertionError, ValueError) as error:
        if "failed to unpack" in str(error):
            raise ModelError(_impossible(settings)) from error
        raise ModelError(
            f"model.name = {shortened(settings.name)} cannot be built with {sizes}: {error}. "
            f"Expected a vision transformer or Swin transformer that takes these sizes, {_EXAMPLES}"
        ) from error
    _check_kind(model, settings.name)
    _check_patches(model, settings.name)
    if is_distilled(model):
        model.set_distilled_training(True)
    return model  # type: ignore[no-any-return]


def _sizes(settings: ModelSettings) -> dict[str, Any]:
    """The sizes that are set, under timm's names."""
    vit = {key: getattr(settings, key) for key in _VIT}
    swin = {theirs: getattr(settings, ours) for ours, theirs in _SWIN.items()}
    both = [k for k in _VIT if vit[k] is not None], [k for k in _SWIN if getattr(settings, k)]
    if both[0] and both[1]:
        raise ModelError(
            f"model.{both[0][0]} is for vision transformers and model.{both[1][0]} for Swin: "
            f"set one of them to null for {settings.name}"
        )
    chosen = {key: getattr(settings, key) for key in _BOTH} | (swin if both[1] else vit)
    return {key: value for key, value in chosen.items() if value is not None}


def _check_kind(model: nn.Module, name: str) -> None:
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer | SwinTransformer):
        raise ModelError(
            f"model.name = {name!r} is a {type(model).__name__}: expected a vision transformer "
            f"with attention blocks or a Swin transformer, {_EXAMPLES}"
        )


def _check_patches(model: Any, name: str) -> None:
    image, patch = model.patch_embed.img_size, model.patch_embed.patch_size
    if any(i % p for i, p in zip(image, patch, strict=True)):
        raise ModelError(
            f"model.img_size = {image[0]} must be a multiple of the patch size of {name}, "
            f"{patch[0]}: set model.patch_size"
        )


def is_distilled(model: nn.Module) -> bool:
    """Whether the model has a distillation token and head."""
    return hasattr(model, "head_dist")
