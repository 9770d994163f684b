"""Images as files: <root>/<split>/<class>/<file>."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from ofq_core.data.environment import DATA_DIR
from ofq_core.data.scan import Entry, ScannedOrigin, Unit, header_readable
from ofq_core.errors import DataError
from ofq_core.models.torchvision_compat import import_torchvision

import_torchvision()
from timm.data.readers.img_extensions import get_img_extensions  # noqa: E402


class FolderOrigin(ScannedOrigin):
    """The layout of torchvision's ImageFolder.

    Which files are images and the numbers of the classes are those of timm's folder reader, whose
    list is the same (a test compares them). Listing and reading are not left to timm: its reader
    walks all of the disk in one thread at every start, and its data set puts the next image in the
    place of one that it cannot read and lets nobody know.
    """

    def units(self, split: str) -> list[str]:
        """See `ScannedOrigin.units`: the class folders."""
        layout = f"expected {self.root}/{split}/<class>/<image>"
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: no such folder; {layout} (environment variable {DATA_DIR} names the "
                f"folder above {self.root.name}, now {os.environ.get(DATA_DIR) or 'unset'})"
            )
        folder = self.root / split
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder; {layout} (data.train_split, data.test_split)"
            )
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        stray = [entry.name for entry in found if not entry.is_dir() and _is_image(entry.name)]
        if stray:
            raise DataError(f"{folder / stray[0]}: an image outside of a class folder; {layout}")
        classes = [entry.name for entry in found if entry.is_dir()]
        if not classes:
            raise DataError(f"{folder}: no class folders; {layout}")
        return [f"{split}/{name}" for name in classes]

    def scan(self, unit: str, old: dict[str, Entry], fresh: bool) -> list[Entry]:
        """See `ScannedOrigin.scan`."""
        folder = self.root / unit
        listed = []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir():
                    _refuse_nested(Path(entry.path))
                elif _is_image(entry.name):
                    listed.append(self._entry(f"{unit}/{entry.name}", entry, old, fresh))
        return listed

    def check(self, split: str, found: dict[str, Unit]) -> None:
        """See `ScannedOrigin.check`: no class without images."""
        empty = [unit for unit, content in found.items() if not content.entries]
        if empty:
            what = "no images in any class folder" if len(empty) == len(found) else "no images"
            raise DataError(
                f"{self.root / empty[0]}: {what}; timm reads {', '.join(get_img_extensions())}"
            )

    def image(self, name: str, place: int, size: int) -> Image.Image:
        """See `ImageOrigin.image`."""
        return Image.open(self.root / name)

    def _entry(
        self, name: str, entry: os.DirEntry[str], old: dict[str, Entry], fresh: bool
    ) -> Entry:
        status = entry.stat()
        size, stamp = status.st_size, status.st_mtime_ns
        known = old.get(name)
        readable = None
        if known is not None and (known.size, known.stamp) == (size, stamp):
            readable = known.readable
        if fresh and readable is None:
            readable = header_readable(Path(entry.path))
        return Entry(name, size, stamp, name.split("/")[-2], -1, readable)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in get_img_extensions(as_set=True)


def _refuse_nested(folder: Path) -> None:
    for path, _, files in os.walk(folder):
        for name in files:
            if _is_image(name):
                raise DataError(
                    f"{Path(path) / name}: an image too deep; expected <split>/<class>/<image>, "
                    "without folders inside a class"
                )
