"""Data sets of the Hugging Face hub, or in its formats, through timm's dataset factory."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ofq_core.data.origin import Catalogue, ImageOrigin, header_fault, numbered_classes, quiet
from ofq_core.data.rows import Rows
from ofq_core.data.scan import THREADS
from ofq_core.errors import DataError
from ofq_core.models.torchvision_compat import import_torchvision
from ofq_core.settings import ImageSettings

import_torchvision()
from timm.data import create_dataset  # noqa: E402

PACKAGE = "datasets"
# Where the package keeps what it fetched, under the folder of the data.
CACHE = "huggingface"


class HubOrigin(ImageOrigin):
    """Source hfds/<name>: a folder <name> (Parquet, Arrow) under the root, else the hub's <name>.

    The columns are `image` and `label`, as in timm's reader, and `label` knows its class names.
    Only the prepare stage may use the network, and only with data.download. Names are
    <split>/<number>, sizes are those of the encoded images.
    """

    def __init__(self, settings: ImageSettings, root: Path) -> None:
        super().__init__(settings, root)
        if importlib.util.find_spec(PACKAGE) is None:
            raise DataError(
                f"data.source = {settings.source!r} needs the package {PACKAGE}: "
                f"pip install {PACKAGE}"
            )
        self._readers: dict[str, Any] = {}

    def catalogue(self, fresh: bool) -> Catalogue:
        """See `ImageOrigin.catalogue`."""
        rows, classes = [], {}
        unreadable: dict[str, str] = {}
        for split in (self.settings.train_split, self.settings.test_split):
            reader = self._readers[split] = self._open(split, fresh)
            classes = reader.class_to_idx
            if not classes:
                raise DataError(f"{self.settings.source}: column label has no class names")
            labels = list(reader.iter_targets())
            sizes = _sizes(reader.dataset)
            rows.append(
                Rows.of(
                    [
                        (f"{split}/{i:08d}", size, label, i)
                        for i, (size, label) in enumerate(zip(sizes, labels, strict=True))
                    ]
                )
            )
            if fresh:
                unreadable |= self._unreadable(rows[-1])
        names = sorted(classes, key=lambda name: int(classes[name]))
        numbered_classes([part.labels for part in rows], names, self.settings.source)
        return Catalogue(names, rows[0], rows[1], unreadable)

    def image(self, name: str, place: int, size: int) -> Image.Image:
        """See `ImageOrigin.image`."""
        return Image.open(self._readers[name.rpartition("/")[0]][place][0])

    def _unreadable(self, rows: Rows) -> dict[str, str]:
        def fault(index: int) -> str:
            return header_fault(lambda: self.image(rows.name(index), int(rows.places[index]), 0))

        with quiet(), ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(fault, range(len(rows))))
        return {rows.name(index): text for index, text in enumerate(found) if text}

    def _open(self, split: str, fresh: bool) -> Any:
        name = self.settings.source.split("/", 1)[1]
        local = self.root / name
        where = str(local.resolve()) if local.is_dir() else name
        with _network(self.settings.download and fresh):
            try:
                return create_dataset(
                    f"hfds/{where}", root=str(self.root / CACHE), split=split
                ).reader
            except (OSError, ValueError, RuntimeError) as error:
                raise DataError(
                    f"{self.settings.source}, split {split!r}: not in {self.root} ({error}). Set "
                    "data.download=true on a machine with a network; check data.train_split and "
                    "data.test_split"
                ) from error


@contextmanager
def _network(allowed: bool) -> Iterator[None]:
    """Keep the hub's packages off the network unless it is allowed; they read these two flags."""
    flags: list[Any] = [
        importlib.import_module(name) for name in (f"{PACKAGE}.config", "huggingface_hub.constants")
    ]
    before = [module.HF_HUB_OFFLINE for module in flags]
    for module in flags:
        module.HF_HUB_OFFLINE = module.HF_HUB_OFFLINE or not allowed
    try:
        yield
    finally:
        for module, value in zip(flags, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _sizes(dataset: Any) -> list[int]:
    """Bytes of every encoded image, without touching them; 0 for images kept as files."""
    compute = importlib.import_module("pyarrow.compute")
    content = compute.struct_field(dataset.with_format("arrow")[:]["image"], "bytes")
    sizes: list[int] = compute.binary_length(content).fill_null(0).to_pylist()
    return sizes
