"""Prepare and open the data that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ofq_core.data.arrays import ArrayData
from ofq_core.data.digits import DECISIVE, prepare_digits
from ofq_core.data.source import Data
from ofq_core.data.splits import check_prepared, load_prepared, read_manifest
from ofq_core.errors import DataError
from ofq_core.settings import DataSettings, DigitsSettings

# What reads images is imported where it is needed: with it comes timm, which takes seconds.

# What is done to images that are evaluated.
SEEN = ("mean", "std", "crop_pct", "eval_interpolation")


def prepare_data(settings: DataSettings, folder: Path) -> dict[str, Any]:
    """Write the manifest of the data, and for digits the arrays, into `folder`.

    Returns:
        The manifest; `source`, `classes` and `splits.<name>.images` are in all of them.

    Raises:
        DataError: see `prepare_digits` and `prepare_images`.
    """
    if isinstance(settings, DigitsSettings):
        return prepare_digits(settings, folder)
    from ofq_core.data.manifest import prepare_images

    return prepare_images(settings, folder)


def check_alike(source: str, own: DataSettings | None, used: DataSettings | None) -> None:
    """Check that a model's own run had images like those that it is given now.

    Args:
        source: what the message calls the model. own: of its run. None: not known.

    Raises:
        DataError: images are prepared in another way, or digits split, so that test images of the
            one are training images of the other.
    """
    if type(own) is not type(used):
        return
    for key in DECISIVE if isinstance(used, DigitsSettings) else SEEN if used else ():
        ours, theirs = getattr(used, key), getattr(own, key)
        if ours != theirs:
            raise DataError(
                f"{source} is of a run with data.{key} = {theirs}, and here it is {ours}: the two "
                "do not compare"
            )


def open_data(settings: DataSettings, folder: Path) -> Data:
    """The data that `prepare_data` described in `folder`.

    Raises:
        DataError: they are missing, damaged, or not those of the manifest; see `load_prepared` and
            `load_images`.
    """
    if isinstance(settings, DigitsSettings):
        manifest = read_manifest(folder, needed=("settings",))
        check_prepared(manifest, settings.model_dump(include=set(DECISIVE)), folder)
        return ArrayData(load_prepared(folder), settings)
    from ofq_core.data.images import ImageData
    from ofq_core.data.manifest import load_images

    return ImageData(load_images(settings, folder), settings)
