"""Images in tar shards, as webdataset writes them."""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
from functools import partial
from pathlib import Path

from PIL import Image

from ofq_core.data.environment import DATA_DIR
from ofq_core.data.origin import header_fault
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

CLASS_KEY = "cls"
# How many class indices a message gives.
SHOWN = 12
# What looks like a shard of the split, but is not named as one, such as <split>-0001.tar.gz or
# <split>_0001.tar, or is still on its way. <split>-extra-0001.tar is of another split.
_ODD_SHARD = re.compile(
    r"([-_.]?((part|shard)[-_.]?)?\d[^.]*)?\.(tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|lz4))"
    r"(\.(part|partial|tmp|crdownload|aria2|\d+))?",
    re.IGNORECASE,
)
# More than any tar program puts behind the last file: a disk was lent for what never came.
_PADDING = 2**20


class ShardOrigin(ScannedOrigin):
    """Shards <root>/<name>-<split>-<number>.tar (or <name>-<split>.tar) of source wds/<name>.

    A sample is the files of a shard that share the name up to the last dot: an image (by its
    suffix, see `image_suffixes`) and `cls`, the class index as text. webdataset, and so timm's
    reader, ends a name at its first dot and would take 0.1.jpg and 0.2.jpg for two fields of one
    sample; files with one dot are the same for both. The reader itself is not used: it streams
    shards, so the order of images would depend on the number of workers and an epoch could not be
    entered in the middle. Here the prepare stage notes where in its shard each image lies, and any
    image is read by itself.
    """

    def units(self, split: str) -> tuple[list[str], dict[str, str]]:
        """See `ScannedOrigin.units`: the shards."""
        prefix = f"{self.settings.source.split('/', 1)[1]}-{split}"
        pattern = f"{self.root}/{prefix}-*.tar"
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: no such folder; expected {pattern} (environment variable {DATA_DIR} "
                f"names the folder above, now {os.environ.get(DATA_DIR) or 'unset'})"
            )
        names = sorted(os.listdir(self.root))
        found = [name for name in names if name.endswith(".tar") and _belongs(name, prefix)]
        if not found:
            raise DataError(f"{pattern}: no such shards (data.source, data.*_split)")
        for name in names:
            if name in found:
                continue
            if name.startswith(prefix) and _ODD_SHARD.fullmatch(name.removeprefix(prefix)):
                raise DataError(
                    f"{shown(self.root / name)}: perhaps a shard of split {split!r}, but not named "
                    f"{prefix}-<number>.tar; rename, unpack or remove it"
                )
        return found, {}

    def scan(self, unit: str, old: Unit | None, fresh: bool) -> tuple[list[Entry], dict[str, str]]:
        """See `ScannedOrigin.scan`."""
        path = self.root / unit
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: cannot be read as a shard ({NO_FILE})")
        same = old is not None and (old.stamp, old.size) == (status.st_mtime_ns, status.st_size)
        if old is not None and same and all(entry.fault is not None for entry in old.entries):
            return old.entries, old.others
        known = entries_by_name(old)
        images, labels, fields = self._members(path)
        others = {}
        entries = []
        for key, member in sorted(images.items()):
            name, place, stamp = f"{unit}/{member.name}", member.offset_data, status.st_mtime_ns
            if key not in labels:
                # A second picture of a sample, such as its mask, or an image that lost its class.
                if not any(part in images and part in labels for part in _shorter(key)):
                    raise DataError(
                        f"{path}: {shown(member.name)} has no {shown(key)}.{CLASS_KEY} beside it"
                    )
                others[name] = f"no {shown(key.rpartition('/')[2])}.{CLASS_KEY} beside it"
                continue
            entry = Entry(name, member.size, stamp, labels[key], place, None)
            before = known.get(name)
            fault = None
            if before is not None and before._replace(label=entry.label, fault=None) == entry:
                fault = before.fault
            if fresh and fault is None:
                fault = header_fault(partial(self.image, name, place, member.size))
            entries.append(entry._replace(fault=fault))
        read = labels.keys() & images.keys()
        others |= {
            f"{unit}/{key}.{CLASS_KEY}": "no image beside it" for key in labels.keys() - read
        }
        for name, reason in fields.items():
            # Whatever else a sample has, such as its caption, is none of our business.
            if reason != NO_SUFFIX or read.isdisjoint(_shorter(name)):
                others[f"{unit}/{name}"] = reason
        return entries, others

    def _members(
        self, path: Path
    ) -> tuple[dict[str, tarfile.TarInfo], dict[str, str], dict[str, str]]:
        """Images and class indices of a shard by key, and its other files by name, and why.

        Raises:
            DataError: damaged, a class that is no number, or two images under one key.
        """
        images: dict[str, tarfile.TarInfo] = {}
        labels: dict[str, str] = {}
        others: dict[str, str] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    key, dot, kind = member.name.rpartition(".")
                    if member.isdir():
                        continue
                    if is_desktop(member.name):
                        others[member.name] = DESKTOP
                    elif not member.isreg() or member.issparse():
                        others[member.name] = "a link, or no plain file"
                    elif is_image(member.name):
                        if key in images:
                            raise ValueError(
                                f"{images[key].name} and {member.name}: two images under one key"
                            )
                        images[key] = member
                    elif dot and kind.lower() == CLASS_KEY:
                        if key in labels:
                            raise ValueError(f"{member.name}: twice")
                        labels[key] = _class_index(tar, member)
                    else:
                        others[member.name] = NO_SUFFIX
                _check_end(tar)
                if not tar.getmembers():
                    raise ValueError("there is no file in it; remove or fetch it again")
        except (tarfile.TarError, OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as a shard ({shown(error)})") from error
        return images, labels, others

    def check(self, split: str, found: dict[str, Unit]) -> None:
        """See `ScannedOrigin.check`: class indices from 0 on, without a gap."""
        classes = sorted({int(entry.label) for unit in found.values() for entry in unit.entries})
        if classes != list(range(len(classes))):
            some = ", ".join(str(index) for index in classes[:SHOWN])
            raise DataError(
                f"{self.root}: the images of split {split!r} have the classes {some}"
                f"{', ...' * (len(classes) > SHOWN)}, expected every index from 0 on"
            )

    def image(self, name: str, place: int, size: int) -> Image.Image:
        """See `ImageOrigin.image`."""
        shard = name[: name.index(".tar/") + len(".tar")]
        with (self.root / shard).open("rb") as file:
            file.seek(place)
            return Image.open(io.BytesIO(file.read(size)))


def _belongs(name: str, prefix: str) -> bool:
    rest = name.removesuffix(".tar").removeprefix(prefix)
    return name.startswith(prefix) and (rest == "" or rest.removeprefix("-").isdecimal())


def _shorter(name: str) -> list[str]:
    """What is left of a name when it ends at one of the dots after its last slash."""
    first = name.rfind("/") + 1
    return [name[:i] for i in range(first, len(name)) if name[i] == "."]


def _class_index(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    content = tar.extractfile(member)
    assert content is not None
    text = content.read()
    try:
        return str(int(text))
    except ValueError:
        raise ValueError(f"{member.name}: {text[:SHOWN]!r} is no class index") from None


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise ValueError where a shard's list does not end with its file.

    tarfile takes a damaged header for the end, and so does every reader with two joined shards.
    """
    file = tar.fileobj
    assert file is not None
    file.seek(tar.offset)
    end = file.read(tarfile.RECORDSIZE)
    zeros = 0
    if len(end) < tarfile.BLOCKSIZE:
        raise ValueError("cut off: the mark of a tar file's end is missing")
    while end:
        if end.count(0) != len(end):
            raise ValueError(f"damaged, or two files joined, near byte {tar.offset}")
        zeros += len(end)
        if zeros > _PADDING:
            raise ValueError(f"nothing but zeros behind byte {tar.offset}: fetch it again")
        end = file.read(tarfile.RECORDSIZE)
