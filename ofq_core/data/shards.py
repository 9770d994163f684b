"""Images in tar shards, as webdataset writes them."""

from __future__ import annotations

import io
import os
import tarfile

from PIL import Image

from ofq_core.data.environment import DATA_DIR
from ofq_core.data.origin import UNREADABLE
from ofq_core.data.scan import Entry, ScannedOrigin, Unit
from ofq_core.errors import DataError

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp")
CLASS_KEY = "cls"
# How many class indices a message gives.
SHOWN = 12


class ShardOrigin(ScannedOrigin):
    """Shards <root>/<name>-<split>-<number>.tar (or <name>-<split>.tar) of source wds/<name>.

    A sample is the files of a shard that share the name up to the first dot: an image (jpg, jpeg,
    png or webp) and `cls`, the class index as text. That is how timm's reader takes them (a test
    compares them), but the reader itself is not used: it streams shards, so the order of images
    would depend on the number of workers and an epoch could not be entered in the middle. Here the
    prepare stage notes where in its shard each image lies, and any image is read by itself.
    """

    def units(self, split: str) -> list[str]:
        """See `ScannedOrigin.units`: the shards."""
        prefix = f"{self.settings.source.split('/', 1)[1]}-{split}"
        pattern = f"{self.root}/{prefix}-*.tar"
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: no such folder; expected {pattern} (environment variable {DATA_DIR} "
                f"names the folder above, now {os.environ.get(DATA_DIR) or 'unset'})"
            )
        found = sorted(p.name for p in self.root.glob("*.tar") if _belongs(p.name, prefix))
        if not found:
            raise DataError(f"{pattern}: no such shards (data.source, data.*_split)")
        return found

    def scan(self, unit: str, old: dict[str, Entry], fresh: bool) -> list[Entry]:
        """See `ScannedOrigin.scan`; a shard that changed is read anew."""
        path = self.root / unit
        stamp = path.stat().st_mtime_ns
        if old and all(e.stamp == stamp and e.readable is not None for e in old.values()):
            return list(old.values())
        images: dict[str, tarfile.TarInfo] = {}
        labels: dict[str, str] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    key, _, kind = _split_key(member.name)
                    if not member.isfile():
                        continue
                    if kind.lower() in IMAGE_KEYS:
                        images[key] = member
                    elif kind == CLASS_KEY:
                        content = tar.extractfile(member)
                        assert content is not None
                        labels[key] = str(int(content.read()))
        except (tarfile.TarError, OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as a shard ({error})") from error
        entries = []
        for key, member in sorted(images.items()):
            if key not in labels:
                raise DataError(f"{path}: {member.name} has no {key}.{CLASS_KEY} beside it")
            name, place = f"{unit}/{member.name}", member.offset_data
            known = old.get(name)
            same = known is not None and (known.size, known.stamp, known.place) == (
                member.size,
                stamp,
                place,
            )
            readable = known.readable if known is not None and same else None
            if fresh and readable is None:
                readable = self._readable(name, place, member.size)
            entries.append(Entry(name, member.size, stamp, labels[key], place, readable))
        return entries

    def check(self, split: str, found: dict[str, Unit]) -> None:
        """See `ScannedOrigin.check`: class indices from 0 on, without a gap."""
        classes = sorted({int(entry.label) for unit in found.values() for entry in unit.entries})
        if classes != list(range(len(classes))):
            shown = ", ".join(str(index) for index in classes[:SHOWN])
            raise DataError(
                f"{self.root}: the images of split {split!r} have the classes {shown}"
                f"{', ...' * (len(classes) > SHOWN)}, expected every index from 0 on"
            )

    def image(self, name: str, place: int, size: int) -> Image.Image:
        """See `ImageOrigin.image`."""
        shard = name[: name.index(".tar/") + len(".tar")]
        with (self.root / shard).open("rb") as file:
            file.seek(place)
            return Image.open(io.BytesIO(file.read(size)))

    def _readable(self, name: str, place: int, size: int) -> bool:
        try:
            self.image(name, place, size)
        except UNREADABLE:
            return False
        return True


def _belongs(name: str, prefix: str) -> bool:
    rest = name.removesuffix(".tar").removeprefix(prefix)
    return name.startswith(prefix) and (rest == "" or rest.removeprefix("-").isdecimal())


def _split_key(name: str) -> tuple[str, str, str]:
    """webdataset's rule: the key ends at the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    key, dot, kind = base.partition(".")
    return f"{folder}{slash}{key}", dot, kind
