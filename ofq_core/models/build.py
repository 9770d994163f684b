"""Build full-precision vision transformers through timm."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ofq_core.errors import ModelError
from ofq_core.explain import did_you_mean
from ofq_core.models.torchvision_compat import import_torchvision
from ofq_core.settings import ModelSettings

_OPTIONAL = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio")


def build_model(settings: ModelSettings, seed: int) -> nn.Module:
    """A freshly initialised model, the same for the same seed, in FP32 on the CPU.

    Distilled models are set to return (class logits, distillation logits) in training mode.

    Raises:
        ModelError: timm does not know the name, the model is no vision transformer, or it does
            not take these sizes.
    """
    import_torchvision()
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if not timm.is_model(settings.name):
        hint = did_you_mean(settings.name, timm.list_models())
        raise ModelError(f"model.name = {settings.name!r}: timm has no such model{hint}")
    sizes: dict[str, Any] = {
        key: value for key in _OPTIONAL if (value := getattr(settings, key)) is not None
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: Any = timm.create_model(
                settings.name, pretrained=False, num_classes=settings.num_classes, **sizes
            )
        except (TypeError, AssertionError, ValueError) as error:
            raise ModelError(
                f"model.name = {settings.name!r} cannot be built with {sizes}: {error}. Expected a "
                "vision transformer with attention blocks that takes these sizes, such as "
                "deit_tiny_distilled_patch16_224"
            ) from error
    if not isinstance(model, VisionTransformer):
        raise ModelError(
            f"model.name = {settings.name!r} is a {type(model).__name__}: expected a vision "
            "transformer with attention blocks, such as deit_tiny_distilled_patch16_224"
        )
    image, patch = model.patch_embed.img_size, model.patch_embed.patch_size
    if any(i % p for i, p in zip(image, patch, strict=True)):
        raise ModelError(
            f"model.img_size = {image[0]} must be a multiple of the patch size of "
            f"{settings.name}, {patch[0]}: set model.patch_size"
        )
    if is_distilled(model):
        model.set_distilled_training(True)
    return model  # type: ignore[no-any-return]


def is_distilled(model: nn.Module) -> bool:
    """Whether the model has a distillation token and head."""
    return hasattr(model, "head_dist")
