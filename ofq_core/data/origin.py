"""Where images come from: a list of them, and any one of them on demand."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ofq_core.data.rows import Rows
from ofq_core.errors import DataError
from ofq_core.settings import ImageSettings

# What Pillow raises for a file that is missing, cut off or no image.
UNREADABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    struct.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Catalogue:
    """All images that a source has.

    classes: class names in the order of the class indices. train, test: sorted by path.
    unreadable: names of the images whose header could not be read, where headers were read.
    content_sha256: hash of the pixels, of sources that hold them in memory; else empty.
    """

    classes: list[str]
    train: Rows
    test: Rows
    unreadable: list[str]
    content_sha256: str = ""


class ImageOrigin(ABC):
    """A kind of data set, at one folder.

    Args:
        settings: which data, and what the source calls its splits.
        root: the folder of the images.
    """

    def __init__(self, settings: ImageSettings, root: Path) -> None:
        self.settings, self.root = settings, root

    @abstractmethod
    def catalogue(self, fresh: bool) -> Catalogue:
        """List the images.

        Args:
            fresh: the prepare stage asks: download what may be downloaded, look at every file and
                read the header of every new one. Else: list what is there as fast as possible.

        Raises:
            DataError: there are no such data, or they cannot be trained on.
        """

    @abstractmethod
    def check_apart(self) -> None:
        """Check, after `catalogue`, that no image is in both splits, by where images lie.

        Raises:
            DataError: naming both splits.
        """

    @abstractmethod
    def image(self, name: str, place: int, size: int) -> Image.Image:
        """One image of the catalogue by its row; decoding may wait until its pixels are used.

        Raises:
            OSError (or another of `UNREADABLE`): it cannot be read.
        """


def common_classes(
    train: Iterable[str], test: Iterable[str], settings: ImageSettings, where: str
) -> None:
    """Check that both splits have the same classes, two at least.

    Raises:
        DataError: naming the split, the classes and the place.
    """
    sets = {settings.train_split: set(train), settings.test_split: set(test)}
    for split, classes in sets.items():
        if len(classes) < 2:
            found = f"one class only ({next(iter(classes))})" if classes else "no class"
            raise DataError(f"{where}: split {split!r} has {found}, expected at least two")
    only = [
        f"{len(more)} only in {split!r} ({', '.join(sorted(more)[:5])}{', ...' * (len(more) > 5)})"
        for split, more in (
            (settings.train_split, sets[settings.train_split] - sets[settings.test_split]),
            (settings.test_split, sets[settings.test_split] - sets[settings.train_split]),
        )
        if more
    ]
    if only:
        raise DataError(
            f"{where}: the classes of the splits differ: {'; '.join(only)}; expected the same "
            "classes in both"
        )


def numbered_classes(labels: Sequence[NDArray[np.int64]], classes: list[str], where: str) -> None:
    """Check class indices of both splits against the class names.

    Raises:
        DataError: an index without a name, or a class without an image.
    """
    for split, found in zip(("train_split", "test_split"), labels, strict=True):
        if len(found) == 0:
            raise DataError(f"{where}: data.{split} has no images")
        if found.min() < 0 or found.max() >= len(classes):
            raise DataError(
                f"{where}: data.{split} has class indices {found.min()} to {found.max()}, expected "
                f"0 to {len(classes) - 1}"
            )
        empty = np.flatnonzero(np.bincount(found, minlength=len(classes)) == 0)
        if len(empty):
            raise DataError(
                f"{where}: data.{split} has no images of class {classes[empty[0]]!r}"
                + (f" and {len(empty) - 1} more" if len(empty) > 1 else "")
            )
