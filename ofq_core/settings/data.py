"""Which data, how it is split, and its augmentation."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from ofq_core.errors import shortened
from ofq_core.explain import Model
from ofq_core.settings.types import (
    Channels,
    Count,
    CountOrZero,
    Flag,
    Name,
    NotNegative,
    OpenShare,
    Positive,
    Probability,
    Seed,
    Share,
    SmallCount,
    Text,
)


class DigitsSettings(Model):
    """scikit-learn's digits, in memory.

    test_share, val_share: shares of all images; the rest trains. shift_pixels: random shift in
    each direction, zero-padded. scale_range, rotate_degrees: random zoom and rotation. noise:
    standard deviation of additive noise, in units of the image's range [0, 1].
    """

    name: Literal["digits"]
    test_share: OpenShare = 0.25
    val_share: OpenShare = 0.1
    split_seed: Seed = 0
    subset: Count | None = None
    shift_pixels: Annotated[float, Field(ge=0, le=4, strict=True)] = 1.0
    scale_range: Share = 0.1
    rotate_degrees: Annotated[float, Field(ge=0, le=45, strict=True)] = 10.0
    noise: Probability = 0.0

    @model_validator(mode="after")
    def _train_left(self) -> DigitsSettings:
        if self.test_share + self.val_share >= 1:
            raise ValueError(
                f"test_share + val_share = {self.test_share + self.val_share:g} leaves no "
                "training images: their sum must be below 1"
            )
        return self


Interpolation = Literal["random", "bilinear", "bicubic"]
Number = Annotated[float, Field(strict=True)]
Triple = Annotated[tuple[Number, ...], Field(min_length=1, max_length=3)]
Range = tuple[Positive, Positive]
Part = Annotated[float, Field(gt=0, le=1, strict=True)]

# What timm reads in a policy. It passes over everything else in silence.
_NUMBER = r"\d+(\.\d+)?"
_POLICY = re.compile(
    rf"rand(-(m|n|p|mstd|mmax|inc){_NUMBER})*|augmix(-(m|w|d|a|b|mstd){_NUMBER})*"
    rf"|(original|originalr|v0|v0r|3a)(-mstd{_NUMBER})?"
)


class ImageSettings(Model):
    """Images as folders, of torchvision, of Hugging Face or in shards (spec 7.1 and 8).

    name: names the folder of the manifest under data/ and, under $OFQ_DATA_DIR, of the images.
    source: what timm's factory calls the kind: folder (ImageFolder), torch/<name> (torchvision),
    wds/<name> or hfds/<name> (shards). train_split, test_split: what the source calls them.
    val_share: share of the training images held out for model selection, stratified by class and
    fixed by split_seed (0: train on all, the last epoch is taken). subset: use so many training
    images (null: all). download: let torchvision or Hugging Face fetch the data.

    size, channels: what the model is given. mean, std: per channel, of images in [0, 1].
    Training: random resized crop with crop_scale and crop_ratio, or (crop_scale null) the whole
    image resized and, with pad pixels round it, cropped at random; flip; auto_augment (timm's
    policy; while it is on, color_jitter is not); erasing with erase_prob. Evaluation: shorter side
    resized to floor(size / crop_pct), centre crop. max_unreadable: share of unreadable images,
    and of files that are no images, above which work stops; below it they are counted and reported.
    """

    name: Name
    source: Text
    train_split: Text = "train"
    test_split: Text = "validation"
    val_share: Share = 0.01
    split_seed: Seed = 0
    subset: Count | None = None
    download: Flag = False
    size: SmallCount = 224
    channels: Channels = 3
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    crop_scale: tuple[Part, Part] | None = (0.08, 1.0)
    crop_ratio: Range = (3.0 / 4.0, 4.0 / 3.0)
    pad: CountOrZero = 0
    interpolation: Interpolation = "random"
    hflip: Probability = 0.5
    color_jitter: NotNegative = 0.0
    auto_augment: str | None = None
    erase_prob: Probability = 0.0
    erase_mode: Literal["const", "rand", "pixel"] = "pixel"
    erase_count: SmallCount = 1
    crop_pct: Part = 0.9
    eval_interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    max_unreadable: Share = 0.001

    @field_validator("name")
    @classmethod
    def _own_folder(cls, value: str) -> str:
        # Not in another case either: there are file systems on which that is the same folder.
        if value.lower() in ("digits", "checked"):
            raise ValueError(f"data/{value.lower()} is taken: expected another name")
        return value

    @field_validator("source")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        if not re.fullmatch(r"folder|(torch|wds|hfds)/.+", value):
            raise ValueError("expected 'folder', 'torch/<name>', 'wds/<name>' or 'hfds/<name>'")
        return value

    @field_validator("auto_augment")
    @classmethod
    def _known_policy(cls, value: str | None) -> str | None:
        if value is not None and not _POLICY.fullmatch(value):
            raise ValueError("expected a policy of timm, such as rand-m9-mstd0.5-inc1, or null")
        return value

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ordered(cls, value: Range | None) -> Range | None:
        if value is not None and value[0] > value[1]:
            raise ValueError("expected the smaller number first")
        return value

    @model_validator(mode="after")
    def _splits_differ(self) -> ImageSettings:
        # Links and other spellings are the prepare stage's to see.
        train, test = (os.path.normpath(split) for split in (self.train_split, self.test_split))
        if train == test:
            raise ValueError(
                f"test_split = {shortened(self.test_split)} is train_split = "
                f"{shortened(self.train_split)}: expected test images that are not trained on"
            )
        return self

    @model_validator(mode="after")
    def _channels_fit(self) -> ImageSettings:
        for key in ("mean", "std"):
            if len(getattr(self, key)) != self.channels:
                raise ValueError(
                    f"{key} = {list(getattr(self, key))} must have channels = {self.channels} "
                    "entries"
                )
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std = {list(self.std)}: every entry must be above 0")
        return self


_NEITHER = PydanticCustomError(
    "data_kind",
    "expected 'digits' without data.source, or another name together with data.source: 'folder', "
    "'torch/<name>', 'wds/<name>' or 'hfds/<name>'; `python -m pipelines.params data=...` takes "
    "one of conf/data/ whole",
)


def _named_or_sourced(value: Any) -> Any:
    """One message for a name without its data, not one for every key that digits or images lack."""
    if isinstance(value, dict) and "name" in value:
        name = value["name"]
        if (name == "digits") == ("source" in value):
            wrong = InitErrorDetails(type=_NEITHER, loc=("name",), input=name)
            raise ValidationError.from_exception_data("data", [wrong])
    return value


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "images" if "source" in value else "digits"
    return "digits" if isinstance(value, DigitsSettings) else "images"


DataSettings = Annotated[
    Annotated[DigitsSettings, Tag("digits")] | Annotated[ImageSettings, Tag("images")],
    Discriminator(_kind),
    BeforeValidator(_named_or_sourced),
]
