"""List the images of a folder tree or of shards, looking again only at what changed."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ofq_core.data.environment import cache_root
from ofq_core.data.origin import UNREADABLE, Catalogue, ImageOrigin, common_classes
from ofq_core.data.rows import Rows
from ofq_core.errors import DataError
from ofq_core.files import write_atomic
from ofq_core.models.torchvision_compat import import_torchvision

import_torchvision()
from timm.utils.misc import natural_key  # noqa: E402

# Reading headers waits for the disk, or for a file server.
THREADS = 16


class Entry(NamedTuple):
    """One image. stamp: mtime in ns. place: see `Rows`. readable: None where nobody looked yet."""

    name: str
    size: int
    stamp: int
    label: str
    place: int
    readable: bool | None


class Unit(NamedTuple):
    """What is listed at once, a class folder or a shard, with its mtime in ns and its size."""

    stamp: int
    size: int
    entries: list[Entry]


def header_readable(path: Path) -> bool:
    """Whether Pillow knows the file as an image, by its header."""
    try:
        with Image.open(path):
            return True
    except UNREADABLE:
        return False


class ScannedOrigin(ImageOrigin):
    """A source that is listed unit by unit, by threads.

    A cache outside the repository remembers every unit. A fresh listing looks at every file and
    reads the headers of those whose time or size is not the remembered one. Any other listing
    trusts a unit whose own time and size are the remembered ones: a class folder's time changes
    when a file comes, goes or is renamed, though not when one is overwritten in place.
    """

    @property
    def _splits(self) -> tuple[str, str]:
        return self.settings.train_split, self.settings.test_split

    @abstractmethod
    def units(self, split: str) -> list[str]:
        """Paths of a split's units relative to the root, sorted.

        Raises:
            DataError: there is no such split.
        """

    @abstractmethod
    def scan(self, unit: str, old: dict[str, Entry], fresh: bool) -> list[Entry]:
        """The images of a unit, sorted by name. old: by name what the cache knows of them."""

    def check(self, split: str, found: dict[str, Unit]) -> None:
        """Raise DataError when the units of a split cannot be trained on."""

    def catalogue(self, fresh: bool) -> Catalogue:
        """See `ImageOrigin.catalogue`."""
        splits = self._splits
        names = {split: self.units(split) for split in splits}
        cache = ScanCache(self.root)
        units = list(dict.fromkeys(unit for split in splits for unit in names[split]))
        with ThreadPoolExecutor(THREADS) as pool:
            scanned = pool.map(lambda unit: self._unit(unit, cache.units.get(unit), fresh), units)
            found = dict(zip(units, scanned, strict=True))
        cache.save(found)
        entries = {}
        for split in splits:
            self.check(split, {unit: found[unit] for unit in names[split]})
            entries[split] = [e for unit in names[split] for e in found[unit].entries]
        train, test = ({entry.label for entry in entries[split]} for split in splits)
        common_classes(train, test, self.settings, str(self.root))
        # As timm orders class names: 2 before 10.
        classes = sorted(train, key=lambda name: (natural_key(name), name))
        index = {name: number for number, name in enumerate(classes)}
        rows = [
            Rows.of(sorted((e.name, e.size, index[e.label], e.place) for e in entries[split]))
            for split in splits
        ]
        unreadable = [e.name for split in splits for e in entries[split] if e.readable is False]
        return Catalogue(classes, rows[0], rows[1], sorted(unreadable))

    def check_apart(self) -> None:
        """See `ImageOrigin.check_apart`: whatever the paths are called, links included."""
        train, test = (self._places(s) for s in self._splits)
        shared = [place for place in train if place in test]
        if shared:
            raise DataError(
                f"{self.root}: {train[shared[0]]} of data.train_split = {self._splits[0]!r} and "
                f"{test[shared[0]]} of data.test_split = {self._splits[1]!r} are the same images: "
                "expected test images that are not trained on"
            )

    def _places(self, split: str) -> dict[tuple[int, int], str]:
        status = {unit: os.stat(self.root / unit) for unit in self.units(split)}
        return {(found.st_dev, found.st_ino): unit for unit, found in status.items()}

    def _unit(self, unit: str, old: Unit | None, fresh: bool) -> Unit:
        status = os.stat(self.root / unit)
        stamp, size = status.st_mtime_ns, status.st_size
        if old is not None and not fresh and (old.stamp, old.size) == (stamp, size):
            return old
        known = {} if old is None else {entry.name: entry for entry in old.entries}
        return Unit(stamp, size, self.scan(unit, known, fresh))


class ScanCache:
    """The units of one folder of images, as they were when they were last listed."""

    FORMAT = 1

    def __init__(self, root: Path) -> None:
        key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
        self.path = cache_root() / f"images-{key}.json.gz"
        self.units: dict[str, Unit] = {}
        try:
            content = json.loads(gzip.decompress(self.path.read_bytes()))
            if content["format"] == self.FORMAT:
                self.units = {
                    name: Unit(stamp, size, [Entry(*entry) for entry in entries])
                    for name, (stamp, size, entries) in content["units"].items()
                }
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
            # Missing, damaged or of another version: everything is looked at again.
            self.units = {}

    def save(self, units: dict[str, Unit]) -> None:
        """Remember these units, and forget all others."""
        if units == self.units:
            return
        content = json.dumps({"format": self.FORMAT, "units": units})
        try:
            write_atomic(self.path, gzip.compress(content.encode(), compresslevel=1))
        except OSError:
            # A cache that cannot be written costs time only.
            return
