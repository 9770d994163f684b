"""List the images of a folder tree or of shards, looking again only at what changed."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import unicodedata
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import PIL
from PIL import Image

from ofq_core.data.environment import cache_root
from ofq_core.data.origin import Catalogue, ImageOrigin, common_classes, quiet, why
from ofq_core.data.rows import Rows, shown
from ofq_core.errors import DataError
from ofq_core.files import write_atomic
from ofq_core.models.torchvision_compat import import_torchvision

import_torchvision()
from torchvision.datasets.folder import IMG_EXTENSIONS  # noqa: E402

# Reading headers waits for the disk, or for a file server.
THREADS = 16
# Formats that Pillow knows and that hold no pixels, but a drawing, a film or anything at all.
NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# Files that systems leave anywhere, beside those whose name starts with a dot.
DESKTOP_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")
# Why a file is not read as an image.
DESKTOP = "a hidden file or a desktop's own"
NO_SUFFIX = "no suffix of an image"
NO_FILE = "neither a file nor a folder"


class Entry(NamedTuple):
    """One image. stamp: mtime in ns. place: see `Rows`.

    fault: why it cannot be read; empty: it can, by its header; None: nobody looked yet.
    """

    name: str
    size: int
    stamp: int
    label: str
    place: int
    fault: str | None


class Unit(NamedTuple):
    """What is listed at once, a class folder or a shard, with its mtime in ns and its size.

    others: files that are not read as images, and why.
    """

    stamp: int
    size: int
    entries: list[Entry]
    others: dict[str, str]


def entries_by_name(unit: Unit | None) -> dict[str, Entry]:
    """What the cache knows of the images of a unit."""
    return {} if unit is None else {entry.name: entry for entry in unit.entries}


@cache
def image_suffixes() -> tuple[str, ...]:
    """Suffixes of images, in lower case: those of torchvision's ImageFolder and Pillow's own."""
    # First what Pillow itself tries first.
    Image.preinit()
    kinds = Image.registered_extensions()
    ours = {end for end, kind in kinds.items() if kind in Image.OPEN and kind not in NO_PIXELS}
    return tuple(sorted(ours.union(IMG_EXTENSIONS)))


def is_image(name: str) -> bool:
    """Whether a file is taken for an image, by the end of its name."""
    return name.lower().endswith(image_suffixes()) and not is_desktop(name)


def is_desktop(name: str) -> bool:
    """Whether a system or a desktop left this file, and not who collected the images."""
    base = name.rpartition("/")[2].lower()
    hidden = base.startswith(".") and not base.endswith(image_suffixes())
    # macOS puts ._x.jpg beside x.jpg.
    return hidden or base.startswith("._") or base in DESKTOP_FILES


def natural_key(name: str) -> list[str | int]:
    """As timm orders class names: 2 before 10. timm's own key stops at names such as \u2460."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


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
    def units(self, split: str) -> tuple[list[str], dict[str, str]]:
        """Paths of a split's units relative to the root, sorted; files beside them, and why.

        Raises:
            DataError: there is no such split.
        """

    @abstractmethod
    def scan(self, unit: str, old: Unit | None, fresh: bool) -> tuple[list[Entry], dict[str, str]]:
        """The images of a unit, sorted by name, and its other files, and why they are none.

        Args:
            old: what the cache knows of it.

        Raises:
            DataError, OSError: it cannot be listed.
        """

    def check(self, split: str, found: dict[str, Unit]) -> None:
        """Raise DataError when the units of a split cannot be trained on."""

    def catalogue(self, fresh: bool) -> Catalogue:
        """See `ImageOrigin.catalogue`."""
        splits = self._splits
        names, others = {}, {}
        try:
            for split in splits:
                names[split], others[split] = self.units(split)
        except OSError as error:
            raise _unlisted(self.root, error) from error
        cache = ScanCache(self.root)
        units = list(dict.fromkeys(unit for split in splits for unit in names[split]))
        with quiet(), ThreadPoolExecutor(THREADS) as pool:
            scanned = pool.map(lambda unit: self._unit(unit, cache.units.get(unit), fresh), units)
            found = dict(zip(units, scanned, strict=True))
        cache.save(found)
        entries = {}
        for split in splits:
            self.check(split, {unit: found[unit] for unit in names[split]})
            entries[split] = [e for unit in names[split] for e in found[unit].entries]
            for unit in names[split]:
                others[split] |= found[unit].others
        spelt = [_spellings({e.label for e in entries[s]}, s, self.root) for s in splits]
        # The training images decide how a class is spelt.
        other = {
            label: spelt[0][folded]
            for folded, label in spelt[1].items()
            if spelt[0].get(folded, label) != label
        }
        if other:
            entries[splits[1]] = [
                e._replace(label=other.get(e.label, e.label)) for e in entries[splits[1]]
            ]
        train, test = ({entry.label for entry in entries[split]} for split in splits)
        common_classes(train, test, self.settings, shown(self.root))
        classes = sorted(train, key=lambda name: (natural_key(name), name))
        index = {name: number for number, name in enumerate(classes)}
        rows = [
            Rows.of(sorted((e.name, e.size, index[e.label], e.place) for e in entries[split]))
            for split in splits
        ]
        faults = sorted((e.name, e.fault) for split in splits for e in entries[split] if e.fault)
        return Catalogue(
            classes, rows[0], rows[1], {name: text for name, text in faults if text}, others=others
        )

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
        status = {unit: os.stat(self.root / unit) for unit in self.units(split)[0]}
        return {(found.st_dev, found.st_ino): unit for unit, found in status.items()}

    def _unit(self, unit: str, old: Unit | None, fresh: bool) -> Unit:
        try:
            status = os.stat(self.root / unit)
            stamp, size = status.st_mtime_ns, status.st_size
            if old is not None and not fresh and (old.stamp, old.size) == (stamp, size):
                return old
            return Unit(stamp, size, *self.scan(unit, old, fresh))
        except OSError as error:
            raise _unlisted(self.root / unit, error) from error


def _unlisted(place: Path, error: OSError) -> DataError:
    return DataError(f"{shown(error.filename or place)}: cannot be listed ({why(error)})")


def _spellings(labels: set[str], split: str, root: Path) -> dict[str, str]:
    """Names of classes by what they look like: Unicode spells an accent in two ways.

    Raises:
        DataError: two class folders of a split look the same.
    """
    spelt: dict[str, str] = {}
    for label in sorted(labels):
        other = spelt.setdefault(unicodedata.normalize("NFC", label), label)
        if other != label:
            raise DataError(
                f"{shown(root)}: split {split!r} has the classes {other!a} and "
                f"{label!a}, one name in two spellings of Unicode; expected one folder"
            )
    return spelt


class ScanCache:
    """The units of one folder of images, as they were when they were last listed."""

    # Which files are images, and which of them can be read, is for Pillow to say.
    FORMAT = f"2, Pillow {PIL.__version__}"

    def __init__(self, root: Path) -> None:
        key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
        self.path = cache_root() / f"images-{key}.json.gz"
        self.units: dict[str, Unit] = {}
        try:
            content = json.loads(gzip.decompress(self.path.read_bytes()))
            if content["format"] == self.FORMAT:
                self.units = {
                    name: Unit(stamp, size, [Entry(*entry) for entry in entries], dict(others))
                    for name, (stamp, size, entries, others) in content["units"].items()
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
