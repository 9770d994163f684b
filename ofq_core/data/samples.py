"""Single images as tensors, with what could not be read on the way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ofq_core.data.origin import UNREADABLE, ImageOrigin
from ofq_core.data.random_state import kept, seed_all
from ofq_core.data.rows import Rows
from ofq_core.data.transforms import Transform
from ofq_core.seeds import derive_seed

# Pillow's name for the pixels of an image of so many channels.
MODES = {1: "L", 3: "RGB"}


class View(NamedTuple):
    """A training image at a position of an epoch's order; its augmentation depends on all four."""

    seed: int
    epoch: int
    position: int
    image: int


class Sample(NamedTuple):
    """One image, or None where there is none. failed: indices that could not be read."""

    image: Tensor | None
    label: int
    failed: tuple[int, ...]


class Collated(NamedTuple):
    """Images (n, channels, size, size), labels (n,) int64, and indices that could not be read."""

    images: Tensor | None
    labels: Tensor
    failed: list[int]


def collate(samples: list[Sample]) -> Collated:
    """Stack what is there; images None where nothing is."""
    there = [sample for sample in samples if sample.image is not None]
    return Collated(
        torch.stack([s.image for s in there if s.image is not None]) if there else None,
        torch.tensor([sample.label for sample in there], dtype=torch.int64),
        [index for sample in samples for index in sample.failed],
    )


class Images:
    """Decode images of some rows, with the number of channels that is asked for."""

    def __init__(self, origin: ImageOrigin, rows: Rows, channels: int) -> None:
        self.origin, self.rows, self.mode = origin, rows, MODES[channels]

    def read(self, index: int) -> Image.Image | None:
        """The image at an index, or None if it cannot be read."""
        rows = self.rows
        place, size = int(rows.places[index]), int(rows.sizes[index])
        try:
            with self.origin.image(rows.name(index), place, size) as image:
                return image.convert(self.mode)
        except UNREADABLE:
            return None


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
        failed: list[int] = []
        while len(failed) < self.tries:
            index = (view.image + len(failed)) % count
            image = self.images.read(index)
            if image is None:
                failed.append(index)
                continue
            seed_all(derive_seed(view.seed, "augment", view.epoch, view.position))
            return Sample(self.transform(image), int(self.images.rows.labels[index]), tuple(failed))
        return Sample(None, -1, tuple(failed))


class EvalSamples(Dataset[Sample]):
    """The one view that is evaluated. An unreadable image is left out."""

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, index: int) -> Sample:
        image = self.images.read(index)
        if image is None:
            return Sample(None, -1, (index,))
        return Sample(self.transform(image), int(self.images.rows.labels[index]), ())
