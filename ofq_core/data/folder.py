"""Images as files: <root>/<split>/<class>/<file>."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from PIL import Image

from ofq_core.data.environment import DATA_DIR
from ofq_core.data.origin import header_fault, why
from ofq_core.data.rows import shown
from ofq_core.data.scan import (
    DESKTOP,
    NO_FILE,
    NO_SUFFIX,
    Entry,
    ScannedOrigin,
    Unit,
    entries_by_name,
    is_desktop,
    is_image,
)
from ofq_core.errors import DataError


class FolderOrigin(ScannedOrigin):
    """The layout of torchvision's ImageFolder.

    Images are what ImageFolder takes for them and what else Pillow reads, by suffix. Every other
    file below a split is listed with the reason. The numbers of the classes are those of timm's
    folder reader (a test compares them). Listing and reading are not left to timm: its reader
    walks all of the disk in one thread at every start, and its data set puts the next image in the
    place of one that it cannot read and lets nobody know.
    """

    def units(self, split: str) -> tuple[list[str], dict[str, str]]:
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
        classes: list[str] = []
        others: dict[str, str] = {}
        for entry in found:
            name, status = f"{split}/{entry.name}", _look(entry)
            if not isinstance(status, str) and stat.S_ISDIR(status.st_mode):
                classes.append(name)
            elif is_desktop(entry.name):
                others[name] = DESKTOP
            elif isinstance(status, str):
                # Perhaps of a class folder: how many images are lost, nobody can tell.
                raise DataError(f"{shown(entry.path)}: {status}; {layout}")
            elif is_image(entry.name):
                raise DataError(
                    f"{shown(entry.path)}: an image outside of a class folder; {layout}"
                )
            else:
                _refuse_archive(entry)
                others[name] = NO_SUFFIX
        if not classes:
            raise DataError(f"{folder}: no class folders; {layout}")
        return classes, others

    def scan(self, unit: str, old: Unit | None, fresh: bool) -> tuple[list[Entry], dict[str, str]]:
        """See `ScannedOrigin.scan`."""
        known = entries_by_name(old)
        listed: list[Entry] = []
        others: dict[str, str] = {}
        with os.scandir(self.root / unit) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name, status = f"{unit}/{entry.name}", _look(entry)
            if not isinstance(status, str) and stat.S_ISDIR(status.st_mode):
                others |= self._nested(Path(entry.path), name)
            elif is_desktop(entry.name):
                others[name] = DESKTOP
            elif not is_image(entry.name):
                _refuse_archive(entry)
                others[name] = status if isinstance(status, str) else NO_SUFFIX
            elif isinstance(status, str):
                listed.append(Entry(name, 0, 0, _label(name), -1, status))
            elif stat.S_ISREG(status.st_mode):
                listed.append(self._entry(name, status, known, fresh))
            else:
                # Opening a pipe would wait for ever.
                others[name] = NO_FILE
        return listed, others

    def check(self, split: str, found: dict[str, Unit]) -> None:
        """See `ScannedOrigin.check`: no class without images."""
        empty = [unit for unit, content in found.items() if not content.entries]
        if empty:
            what = "no images in any class folder" if len(empty) == len(found) else "no images"
            beside = next(iter(found[empty[0]].others.items()), None)
            raise DataError(
                f"{shown(self.root / empty[0])}: {what}"
                + (f", but {shown(beside[0])} ({beside[1]})" if beside else "")
                + "; expected files such as .jpg, .png, .webp"
            )

    def image(self, name: str, place: int, size: int) -> Image.Image:
        """See `ImageOrigin.image`."""
        return Image.open(self.root / name)

    def _entry(
        self, name: str, status: os.stat_result, old: dict[str, Entry], fresh: bool
    ) -> Entry:
        size, stamp = status.st_size, status.st_mtime_ns
        known = old.get(name)
        fault = None
        if known is not None and (known.size, known.stamp) == (size, stamp):
            fault = known.fault
        if fresh and fault is None:
            fault = header_fault(lambda: self.image(name, -1, size))
        return Entry(name, size, stamp, _label(name), -1, fault)

    def _nested(self, folder: Path, name: str) -> dict[str, str]:
        """The files below a folder inside a class. Raises DataError when images may be there."""
        others: dict[str, str] = {}
        for path, folders, files in os.walk(folder, onerror=_raise):
            below = name + path.removeprefix(str(folder))
            linked = [part for part in folders if os.path.islink(os.path.join(path, part))]
            deep = linked + [part for part in files if is_image(part)]
            if deep:
                what = "a link to a folder" if linked else "an image"
                raise DataError(
                    f"{shown(Path(path) / deep[0])}: {what} too deep; expected "
                    "<split>/<class>/<image>, without folders inside a class"
                )
            others |= {
                f"{below}/{part}": DESKTOP if is_desktop(part) else NO_SUFFIX for part in files
            }
        return others


def _label(name: str) -> str:
    return name.split("/")[-2]


def _look(entry: os.DirEntry[str]) -> os.stat_result | str:
    """What an entry, or the end of a link, is; or why that cannot be found out."""
    try:
        return entry.stat()
    except FileNotFoundError:
        return "a link to nothing"
    except OSError as error:
        return why(error)


def _refuse_archive(entry: os.DirEntry[str]) -> None:
    endings = tuple(end for _, ends, _ in shutil.get_unpack_formats() for end in ends)
    if entry.name.lower().endswith(endings):
        raise DataError(
            f"{shown(entry.path)}: an archive, perhaps of images that would be missed; unpack it "
            "as <split>/<class>/<image> or remove it"
        )


def _raise(error: OSError) -> None:
    raise error
