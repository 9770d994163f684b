"""Swin on maps that windows do not fit, where timm and torchvision differ.

timm shifts a map before it pads it, torchvision pads first, and so does the released code. Where a
map is both padded and shifted they cut other windows. Where a map is smaller than the window timm
makes the window smaller, and the others pad the map.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ofq_core.models.geometry import is_swin


def pad_before_shift(model: nn.Module) -> None:
    """Let every block of a Swin pad its map before it shifts it; others stay as they are."""
    for _, block in _shifted_and_padded(model):
        # An attribute of the object goes before the method of its class.
        block._attn = MethodType(_padded_first, block)


def unlike_released(model: nn.Module) -> str | None:
    """What a Swin does in another way than the released code with the same weights, or None."""
    for name, block in _shifted_and_padded(model):
        if "_attn" not in vars(block):
            return (
                f"{name} shifts maps of {_by(block.input_resolution)} before it pads them to "
                f"windows of {_by(block.window_size)}, as timm does; the released code pads first"
            )
    windows = {block.window_size: name for name, block in _blocks(model)}
    if len(windows) > 1:
        small = min(windows)
        return (
            f"{windows[small]} has windows of {_by(small)}, smaller than those of others, as timm "
            "makes them where a map is small; the released code pads the map"
        )
    return None


def _by(sizes: tuple[int, int]) -> str:
    return " x ".join(map(str, sizes))


def _blocks(model: Any) -> Iterator[tuple[str, Any]]:
    for stage, layer in enumerate(model.layers if is_swin(model) else ()):
        for number, block in enumerate(layer.blocks):
            yield f"layers.{stage}.blocks.{number}", block


def _shifted_and_padded(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, block in _blocks(model):
        sizes = zip(block.input_resolution, block.window_size, strict=True)
        if any(block.shift_size) and any(size % window for size, window in sizes):
            yield name, block


def _padded_first(block: Any, x: Tensor) -> Tensor:
    """(batch, height, width, channels) to the same; timm's method finds nothing left to pad."""
    height, width = x.shape[1:3]
    rows, columns = (
        -size % window for size, window in zip((height, width), block.window_size, strict=True)
    )
    padded = F.pad(x, (0, 0, 0, columns, 0, rows))
    attended: Tensor = type(block)._attn(block, padded)
    return attended[:, :height, :width].contiguous()
