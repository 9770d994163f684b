"""Single images as tensors, with what could not be read on the way."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ofq_core.data.origin import ImageOrigin, Unreadable, check_pixels, decoding, quiet
from ofq_core.data.random_state import kept, seed_all
from ofq_core.data.rows import Rows
from ofq_core.data.transforms import Transform
from ofq_core.seeds import derive_seed

# Pillow's name for the pixels of an image of so many channels.
MODES = {1: "L", 3: "RGB"}
# Formats of which Pillow brings whole numbers to 16 bits, though the mode is one of 32.
SIXTEEN_BITS = ("PNG", "PPM")
BITS_PER_SAMPLE = 258


class View(NamedTuple):
    """A training image at a position of an epoch's order; its augmentation depends on all four."""

    seed: int
    epoch: int
    position: int
    image: int


class Sample(NamedTuple):
    """One image, or None where there is none. failed: indices that could not be read, and why."""

    image: Tensor | None
    label: int
    failed: dict[int, str]


class Collated(NamedTuple):
    """Images (n, channels, size, size), labels (n,) int64, and what could not be read, and why."""

    images: Tensor | None
    labels: Tensor
    failed: dict[int, str]


def collate(samples: list[Sample]) -> Collated:
    """Stack what is there; images None where nothing is."""
    there = [sample for sample in samples if sample.image is not None]
    return Collated(
        torch.stack([s.image for s in there if s.image is not None]) if there else None,
        torch.tensor([sample.label for sample in there], dtype=torch.int64),
        {index: reason for sample in samples for index, reason in sample.failed.items()},
    )


class Images:
    """Decode images of some rows, with the number of channels that is asked for."""

    def __init__(self, origin: ImageOrigin, rows: Rows, channels: int) -> None:
        self.origin, self.rows, self.mode = origin, rows, MODES[channels]

    def read(self, index: int) -> Image.Image:
        """The image at an index.

        Raises:
            Unreadable: it cannot be read, or not without a loss; see `converted`.
        """
        rows = self.rows
        place, size = int(rows.places[index]), int(rows.sizes[index])
        with quiet(), decoding(), self.origin.image(rows.name(index), place, size) as image:
            return converted(image, self.mode)


def converted(image: Image.Image, mode: str) -> Image.Image:
    """An image with 8 bits a channel. 16-bit grey is scaled, where Pillow would cut it off at 255.

    Whole numbers of 32 bits have no known range, so only those from 0 to 255 are taken.

    Raises:
        Unreadable: other numbers, or floats.
    """
    check_pixels(image)
    if not image.mode.startswith("I"):
        return image.convert(mode)
    # What a TIFF file says of its bits, before its pixels are read.
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]
    image.load()
    pixels = np.asarray(image).astype(np.int64)
    if image.mode.startswith("I;16") or image.format in SIXTEEN_BITS:
        top = 2 ** min(bits, 16) - 1
        pixels = (pixels * 255 + top // 2) // top
    if pixels.min() < 0 or pixels.max() > 255:
        raise Unreadable(
            f"whole numbers from {pixels.min()} to {pixels.max()}, whose full range is not known"
        )
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


class TrainSamples(Dataset[Sample]):
    """Random views. An unreadable image gives way to the next readable one of the manifest's list.

    tries: unreadable images in a row after which none is given, so that a lost disk is no endless
    search.
    """

    def __init__(self, images: Images, transform: Transform, tries: int) -> None:
        self.images, self.transform, self.tries = images, transform, tries

    def __getitems__(self, views: list[View]) -> list[Sample]:
        """A batch; the loader asks for this where it can."""
        with kept():
            return [self._sample(view) for view in views]

    def __getitem__(self, view: View) -> Sample:
        return self.__getitems__([view])[0]

    def _sample(self, view: View) -> Sample:
        count = len(self.images.rows)
        failed: dict[int, str] = {}
        while len(failed) < self.tries:
            index = (view.image + len(failed)) % count
            try:
                image = self.images.read(index)
            except Unreadable as reason:
                failed[index] = str(reason)
                continue
            seed_all(derive_seed(view.seed, "augment", view.epoch, view.position))
            return Sample(self.transform(image), int(self.images.rows.labels[index]), failed)
        return Sample(None, -1, failed)


class EvalSamples(Dataset[Sample]):
    """The one view that is evaluated. An unreadable image is left out."""

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, index: int) -> Sample:
        try:
            image = self.images.read(index)
        except Unreadable as reason:
            return Sample(None, -1, {index: str(reason)})
        return Sample(self.transform(image), int(self.images.rows.labels[index]), {})
