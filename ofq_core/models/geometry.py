"""Sizes of a timm vision transformer or Swin transformer that several places need."""

from __future__ import annotations

from typing import Any

from torch import nn


def is_swin(model: nn.Module) -> bool:
    """Whether the model has stages of window attention instead of one row of blocks."""
    return hasattr(model, "layers") and not hasattr(model, "blocks")


def token_count(model: nn.Module) -> int:
    """Tokens in the blocks of a vision transformer: patches, class, distillation, registers."""
    vit: Any = model
    positions = int(vit.pos_embed.shape[1])
    return positions + (vit.num_prefix_tokens if getattr(vit, "no_embed_class", False) else 0)


def image_shape(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) of the images that the model takes."""
    vit: Any = model
    height, width = vit.patch_embed.img_size
    return int(vit.patch_embed.proj.weight.shape[1]), int(height), int(width)
