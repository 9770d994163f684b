"""Where images come from: a list of them, and any one of them on demand."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ofq_core.data.rows import Rows, shown
from ofq_core.errors import DataError, OFQError
from ofq_core.settings import ImageSettings

# Pillow's mode of pixels that are floats: they have no range that could be made 0 to 255.
FLOATS = "F"
# The most letters of a decoder's own words in a message.
WORDS = 100


class Unreadable(Exception):  # noqa: N818 - it is counted, and only too many are an error
    """One image cannot be read. The text says why, on one line, without the image's name."""


@contextmanager
def decoding() -> Iterator[None]:
    """Read one image in the block: whatever its decoder raises becomes `Unreadable`.

    Decoders raise anything for a damaged file. What memory or the user stopped is not the file's
    fault.
    """
    try:
        yield
    except (MemoryError, OFQError, Unreadable):
        raise
    except Exception as error:
        raise Unreadable(why(error)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings of decoders, of large images or odd metadata; they must not become errors.

    For all threads: only one at a time may be in such a block.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def why(error: Exception) -> str:
    """The reason that an error gives, on one line, without the path of the file."""
    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return shown(" ".join(str(error).split()))[:WORDS] or type(error).__name__


def header_fault(opened: Callable[[], Image.Image]) -> str:
    """Why an image cannot be read, as far as its header tells; empty: it can. See `quiet`."""
    try:
        with decoding(), opened() as image:
            check_pixels(image)
    except Unreadable as error:
        return str(error)
    return ""


def check_pixels(image: Image.Image) -> None:
    """Raise Unreadable for a kind of pixels that cannot be brought to 8 bits without a guess."""
    if image.mode == FLOATS:
        raise Unreadable("pixels are floats, whose range is not known")


@dataclass(frozen=True)
class Catalogue:
    """All images that a source has.

    classes: class names in the order of the class indices. train, test: sorted by path.
    unreadable: the images whose header could not be read, where headers were read, and why.
    content_sha256: hash of the pixels, of sources that hold them in memory; else empty.
    others: by split, files beside the images that are not read as images, and why.
    """

    classes: list[str]
    train: Rows
    test: Rows
    unreadable: dict[str, str]
    content_sha256: str = ""
    others: dict[str, dict[str, str]] = field(default_factory=dict)


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
            Exception: it cannot be read; see `decoding`.
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
            found = f"one class only ({shown(next(iter(classes)))})" if classes else "no class"
            raise DataError(f"{where}: split {split!r} has {found}, expected at least two")
    only = [
        f"{len(more)} only in {split!r} ({', '.join(map(shown, sorted(more)[:5]))}"
        f"{', ...' * (len(more) > 5)})"
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
