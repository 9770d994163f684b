"""torchvision's small data sets, through timm's dataset factory."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ofq_core.data.environment import DATA_DIR
from ofq_core.data.folder import FolderOrigin
from ofq_core.data.origin import Catalogue, ImageOrigin, numbered_classes, why
from ofq_core.data.rows import Rows
from ofq_core.errors import DataError
from ofq_core.files import write_atomic
from ofq_core.models.torchvision_compat import import_torchvision
from ofq_core.settings import ImageSettings

import_torchvision()
from timm.data import create_dataset  # noqa: E402
from torchvision.datasets import Imagenette  # noqa: E402

# Sets that torchvision holds in memory: timm's factory knows these names.
IN_MEMORY = ("cifar10", "cifar100", "fashion_mnist", "kmnist", "mnist")
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "val", "valid", "validation", "eval", "evaluation")
# Debian's package dataset-fashion-mnist.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IMAGENETTE_SIZE = "320px"


class TorchOrigin(ImageOrigin):
    """Source torch/<name> for the names in `IN_MEMORY`.

    The set is loaded whole by `timm.data.create_dataset`. Names are <split>/<number>, sizes are
    those of the raw pixels.
    """

    def __init__(self, settings: ImageSettings, root: Path) -> None:
        super().__init__(settings, root)
        self.kind = settings.source.split("/", 1)[1]
        for key, known in (("train_split", TRAIN_NAMES), ("test_split", TEST_NAMES)):
            value = getattr(settings, key)
            # timm takes every other name for the test images.
            if value not in known:
                raise DataError(
                    f"data.{key} = {value!r}: {settings.source} knows {', '.join(known)}"
                )
        self._sets: dict[str, Any] = {}

    def catalogue(self, fresh: bool) -> Catalogue:
        """See `ImageOrigin.catalogue`; the content is hashed, so `fresh` only allows a download."""
        self._load(fresh)
        digest = hashlib.sha256()
        rows = []
        for split, data in self._sets.items():
            pixels = np.ascontiguousarray(data.data)
            labels = np.asarray(data.targets, dtype=np.int64)
            if len(pixels) != len(labels):
                raise DataError(
                    f"{self.settings.source}, split {split!r}: {len(pixels)} images and "
                    f"{len(labels)} labels in {self.root}: its files do not belong together"
                )
            digest.update(pixels.tobytes())
            digest.update(labels.tobytes())
            size = pixels[0].nbytes
            rows.append(
                Rows.of([(_name(split, i), size, c, i) for i, c in enumerate(labels.tolist())])
            )
        classes = [str(name) for name in next(iter(self._sets.values())).classes]
        numbered_classes([part.labels for part in rows], classes, self.settings.source)
        return Catalogue(classes, rows[0], rows[1], {}, digest.hexdigest())

    def image(self, name: str, place: int, size: int) -> Image.Image:
        """See `ImageOrigin.image`."""
        image, _ = self._sets[name.rpartition("/")[0]][place]
        return image  # type: ignore[no-any-return]

    def check_apart(self) -> None:
        """See `ImageOrigin.check_apart`: the names are of different files, of whatever content."""
        train, test = (np.asarray(data.data) for data in self._sets.values())
        if np.array_equal(train, test):
            raise DataError(
                f"{self.root}: the files of {self.settings.test_split!r} are copies of those of "
                f"{self.settings.train_split!r}: expected test images that are not trained on"
            )

    def _load(self, fresh: bool) -> None:
        if self.kind == "fashion_mnist":
            _unpack_debian(self.root)
        download = self.settings.download and fresh
        for split in (self.settings.train_split, self.settings.test_split):
            try:
                self._sets[split] = create_dataset(
                    self.settings.source, root=str(self.root), split=split, download=download
                )
            except Exception as error:  # whatever torchvision raises for a damaged file
                raise DataError(_missing(self.settings, self.root, error)) from error


class ImagenetteOrigin(FolderOrigin):
    """Source torch/imagenette: torchvision downloads and unpacks it, then it is a folder."""

    def __init__(self, settings: ImageSettings, root: Path) -> None:
        super().__init__(settings, root)
        for key, known in (("train_split", "train"), ("test_split", "val")):
            if getattr(settings, key) != known:
                raise DataError(
                    f"data.{key} = {getattr(settings, key)!r}: {settings.source} knows {known}"
                )

    def catalogue(self, fresh: bool) -> Catalogue:
        """See `ImageOrigin.catalogue`."""
        top = self.root
        try:
            data = Imagenette(
                str(top), "train", IMAGENETTE_SIZE, download=self.settings.download and fresh
            )
        except (OSError, RuntimeError) as error:
            raise DataError(_missing(self.settings, top, error)) from error
        # The folder that torchvision unpacked.
        self.root = Path(data._image_root).parent
        return super().catalogue(fresh)


def _name(split: str, number: int) -> str:
    return f"{split}/{number:06d}"


def _missing(settings: ImageSettings, root: Path, error: Exception) -> str:
    debian = (
        ", install Debian's package dataset-fashion-mnist"
        if settings.source == "torch/fashion_mnist"
        else ""
    )
    return (
        f"{settings.source} cannot be read from {root} ({why(error)}). Set data.download=true on a "
        f"machine with a network{debian}, or put torchvision's files there (environment variable "
        f"{DATA_DIR} names the folder above {root.name})"
    )


def _unpack_debian(root: Path) -> None:
    """Put the files of Debian's package, where it is installed, in the place torchvision reads."""
    raw = root / "FashionMNIST" / "raw"
    for source in sorted(DEBIAN_FASHION_MNIST.glob("*-ubyte.gz")):
        target = raw / source.stem
        if not target.is_file():
            write_atomic(target, gzip.decompress(source.read_bytes()))
