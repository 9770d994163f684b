"""Light augmentation for small grey images: shift, zoom and rotate, with zeros outside."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ofq_core.settings import DigitsSettings


def augment(images: Tensor, settings: DigitsSettings, generator: torch.Generator) -> Tensor:
    """A random affine view of every image, and optional noise.

    Digits keep their orientation: no flips, and only small rotations.

    Args:
        images: (n, channels, height, width), FP32 in [0, 1].
        generator: source of all randomness; the same state gives the same views.
    """
    count, _, height, width = images.shape
    draws = torch.rand(count, 4, generator=generator) * 2.0 - 1.0
    angle = draws[:, 0] * math.radians(settings.rotate_degrees)
    zoom = 1.0 + draws[:, 1] * settings.scale_range
    # grid_sample's coordinates span the image from -1 to 1.
    shift_x = draws[:, 2] * (2.0 * settings.shift_pixels / width)
    shift_y = draws[:, 3] * (2.0 * settings.shift_pixels / height)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    theta = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1).view(count, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, align_corners=False)
    if settings.noise:
        views = views + torch.randn(views.shape, generator=generator) * settings.noise
    return views
