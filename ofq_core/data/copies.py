"""Test images that are copies of training images, whatever they are called."""

from __future__ import annotations

import numpy as np

from ofq_core.data.origin import Catalogue, ImageOrigin
from ofq_core.data.rows import Rows
from ofq_core.data.samples import Images
from ofq_core.errors import DataError

# Test images that are looked at, and how many training images each is compared with at most.
SAMPLE, PARTNERS = 64, 64


def check_not_copied(origin: ImageOrigin, catalogue: Catalogue) -> None:
    """Look for some test images among the training images of the same class and size in bytes.

    Some equal images are in many published data sets; this is about a split that was copied, linked
    or sliced from the other.

    Raises:
        DataError: more than half of the sample are training images.
    """
    if catalogue.content_sha256:
        # A set with fixed splits of its own.
        return
    train, test = catalogue.train, catalogue.test
    images = [Images(origin, rows, origin.settings.channels) for rows in (train, test)]
    sample = np.unique(np.linspace(0, len(test) - 1, SAMPLE, dtype=np.int64)).tolist()
    found: list[str] = []
    for looked_at, index in enumerate(sample):
        if len(found) + len(sample) - looked_at <= len(sample) / 2:
            return
        partner = _partner(images, train, test, index)
        if partner is not None:
            found.append(f"{test.name(index)} is {train.name(partner)}")
    if len(found) > len(sample) / 2:
        settings = origin.settings
        raise DataError(
            f"data.test_split = {settings.test_split!r}: {len(found)} of {len(sample)} test images "
            f"that were looked at are training images too (data.train_split = "
            f"{settings.train_split!r}), such as {found[0]}: expected test images that are not "
            "trained on"
        )


def _partner(images: list[Images], train: Rows, test: Rows, index: int) -> int | None:
    """A training image with the pixels of a test image."""
    like = (train.labels == test.labels[index]) & (train.sizes == test.sizes[index])
    candidates = np.flatnonzero(like).tolist()
    if not candidates:
        return None
    image = images[1].read(index)
    name = test.name(index).rpartition("/")[2]
    # What is called the same comes first, in case all images have one size.
    candidates.sort(key=lambda i: train.name(i).rpartition("/")[2] != name)
    for candidate in candidates[:PARTNERS]:
        other = images[0].read(candidate)
        if image is not None and image == other:
            return candidate
    return None
