"""timm's transforms for training (spec 7.1) and evaluation (spec 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor

from ofq_core.models.torchvision_compat import import_torchvision
from ofq_core.settings import ImageSettings

import_torchvision()
from timm.data import auto_augment, create_transform  # noqa: E402
from timm.data.transforms import str_to_interp_mode  # noqa: E402
from torchvision import transforms  # noqa: E402

Transform = Callable[[Image.Image], Tensor]


def train_transform(settings: ImageSettings) -> Transform:
    """The random view of a training image: (channels, size, size), FP32, normalised.

    Random resized crop, flip, auto_augment or else colour jitter, normalisation, random erasing,
    all by timm's `create_transform`. Without crop_scale the first step, which timm's factory cannot
    leave out, gives way to resizing the whole image and cropping it, padded with black, at random.
    """
    crop, colour, final = create_transform(
        input_size=settings.size,
        is_training=True,
        scale=settings.crop_scale,
        ratio=settings.crop_ratio,
        hflip=settings.hflip,
        color_jitter=settings.color_jitter or None,
        auto_augment=settings.auto_augment,
        interpolation=settings.interpolation,
        mean=settings.mean,
        std=settings.std,
        re_prob=settings.erase_prob,
        re_mode=settings.erase_mode,
        re_count=settings.erase_count,
        separate=True,
    )
    steps = [*crop.transforms, *colour.transforms, *final.transforms]
    if settings.crop_scale is None:
        steps[:1] = _whole_image(settings)
    for step in steps:
        _mend_posterize(step)
    return transforms.Compose(steps)  # type: ignore[no-any-return]


def eval_transform(settings: ImageSettings) -> Transform:
    """The one view of an image that is evaluated: (channels, size, size), FP32, normalised.

    Shorter side to floor(size / crop_pct), centre crop, normalisation.
    """
    return create_transform(  # type: ignore[no-any-return]
        input_size=settings.size,
        is_training=False,
        interpolation=settings.eval_interpolation,
        mean=settings.mean,
        std=settings.std,
        crop_pct=settings.crop_pct,
    )


def _whole_image(settings: ImageSettings) -> list[Any]:
    # As timm does where it cannot draw it either.
    kind = "bilinear" if settings.interpolation == "random" else settings.interpolation
    size = (settings.size, settings.size)
    resize = transforms.Resize(size, interpolation=str_to_interp_mode(kind))
    if settings.pad == 0:
        return [resize]
    return [resize, transforms.RandomCrop(size, padding=settings.pad)]


def _mend_posterize(step: Any) -> None:
    """Let timm's posterize keep 0 bits, which gives black.

    timm draws 0 at the largest magnitude (2 % of the draws of m9-mstd0.5-inc1). Pillow 12.0 makes
    such an image black; 13.0 raises an error, which would end training.
    """
    policy = [op for pair in getattr(step, "policy", ()) for op in pair]
    for op in [*getattr(step, "ops", ()), *policy]:
        if op.aug_fn is auto_augment.posterize:
            op.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **arguments: Any) -> Image.Image:
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep, **arguments)  # type: ignore[no-any-return]
