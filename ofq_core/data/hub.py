"""Data sets of the Hugging Face hub, or in its formats, through its package `datasets`."""

from __future__ import annotations

import importlib
import io
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from ofq_core.data.origin import Catalogue, ImageOrigin, header_fault, numbered_classes, quiet
from ofq_core.data.rows import Rows
from ofq_core.data.scan import THREADS
from ofq_core.errors import DataError
from ofq_core.settings import ImageSettings

PACKAGE = "datasets"
# Where the package keeps what it fetched, under the folder of the data.
CACHE = "huggingface"
# What the package calls its readers of the formats that a folder may have.
FORMATS = ("arrow", "parquet")


class HubOrigin(ImageOrigin):
    """Source hfds/<name>: a folder <name> (Parquet, Arrow) under the root, else the hub's <name>.

    The columns are known by their types: the one of images and the one of class labels, or `image`
    and `label` where there are several. Only the prepare stage may use the network, and only with
    data.download. Names are <split>/<number>, sizes are those of the encoded images.
    """

    def __init__(self, settings: ImageSettings, root: Path) -> None:
        super().__init__(settings, root)
        _package(settings.source)
        self._local = root / settings.source.split("/", 1)[1]
        # By split: the rows, with images as they are encoded, and the name of that column.
        self._sets: dict[str, tuple[Any, str]] = {}

    @property
    def _package(self) -> Any:
        # No attribute: a module cannot be sent to a reader.
        return _package(self.settings.source)

    def catalogue(self, fresh: bool) -> Catalogue:
        """See `ImageOrigin.catalogue`."""
        rows, names = [], {}
        unreadable: dict[str, str] = {}
        for split in (self.settings.train_split, self.settings.test_split):
            data = self._load(split, fresh)
            where = f"{self.settings.source}, split {split!r}"
            image, label = (self._column(data, kind, where) for kind in ("Image", "ClassLabel"))
            names[split] = list(data.features[label].names)
            self._check_names(names[split], label)
            data = data.cast_column(image, self._package.Image(decode=False))
            self._sets[split] = data, image
            labels = data.select_columns([label]).with_format("arrow")[:][label].to_pylist()
            if None in labels:
                raise DataError(f"{where}: row {labels.index(None)} has no {label}")
            rows.append(
                Rows.of(
                    [
                        (f"{split}/{i:08d}", size, label, i)
                        for i, (size, label) in enumerate(
                            zip(_sizes(data, image), labels, strict=True)
                        )
                    ]
                )
            )
            if fresh:
                unreadable |= self._unreadable(rows[-1])
        classes = names[self.settings.train_split]
        if classes != names[self.settings.test_split]:
            raise DataError(
                f"{self.settings.source}: the class names of {self.settings.train_split!r} and "
                f"{self.settings.test_split!r} differ, expected the same in the same order"
            )
        numbered_classes([part.labels for part in rows], classes, self.settings.source)
        return Catalogue(classes, rows[0], rows[1], unreadable)

    def image(self, name: str, place: int, size: int) -> Image.Image:
        """See `ImageOrigin.image`."""
        data, column = self._sets[name.rpartition("/")[0]]
        encoded = data[place][column]
        if encoded is None:
            raise OSError(f"{name}: no image")
        content = encoded["bytes"]
        return Image.open(io.BytesIO(content) if content else encoded["path"])

    def check_apart(self) -> None:
        """See `ImageOrigin.check_apart`: slices of a split may not share a row."""
        splits = self.settings.train_split, self.settings.test_split
        train, test = (self._ranges(split) for split in splits)
        shared = [_overlap(a, b) for a in train for b in test if a[0] == b[0]]
        if any(rows > 0 for rows in shared):
            raise DataError(
                f"data.train_split = {splits[0]!r} and data.test_split = {splits[1]!r} share "
                f"{max(shared)} rows: expected test images that are not trained on"
            )

    def _ranges(self, split: str) -> list[tuple[str, int, int]]:
        """The rows of a split as (split without slices, first row, row after the last)."""
        sizes = {name: info.num_examples for name, info in self._sets[split][0].info.splits.items()}
        spec = "+".join(sizes) if split == "all" else split
        parts = self._package.ReadInstruction.from_spec(spec).to_absolute(sizes)
        return [(part.splitname, part.from_, part.to) for part in parts]

    def _column(self, data: Any, kind: str, where: str) -> str:
        """The column of a kind of values."""
        wanted = getattr(self._package, kind)
        found = [name for name, feature in data.features.items() if isinstance(feature, wanted)]
        usual = {"Image": "image", "ClassLabel": "label"}[kind]
        if usual in found or len(found) == 1:
            return usual if usual in found else found[0]
        told = ", ".join(f"{n} ({_kind(feature)})" for n, feature in data.features.items())
        raise DataError(
            f"{where}: its columns are {told}; expected one column of type {kind}, or one of "
            f"several that is called {usual}"
        )

    def _check_names(self, names: list[str], label: str) -> None:
        """Compare class names with each file's own: the package takes those of the first file."""
        parquet = importlib.import_module("pyarrow.parquet")
        for path in sorted(self._local.rglob("*.parquet")):
            try:
                metadata = parquet.read_schema(path).metadata or {}
                features = json.loads(metadata[b"huggingface"])["info"]["features"]
                found = list(features[label]["names"])
            except (OSError, ValueError, KeyError, TypeError):
                # Another program wrote it, or it is no file that was read.
                continue
            if found != names:
                wrong = next((a, b) for a, b in zip_longest(found, names) if a != b)
                raise DataError(
                    f"{path}: its class names are not those of the first file: {wrong[0]!r} "
                    f"instead of {wrong[1]!r}; expected the same in the same order"
                )

    def _unreadable(self, rows: Rows) -> dict[str, str]:
        def fault(index: int) -> str:
            return header_fault(lambda: self.image(rows.name(index), int(rows.places[index]), 0))

        with quiet(), ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(fault, range(len(rows))))
        return {rows.name(index): text for index, text in enumerate(found) if text}

    def _load(self, split: str, fresh: bool) -> Any:
        name, local = self.settings.source.split("/", 1)[1], self._local
        where = str(local.resolve()) if local.is_dir() else name
        download = self.settings.download and fresh
        with _network(download), _silent():
            try:
                data = self._package.load_dataset(
                    where, split=split, cache_dir=str(self.root / CACHE)
                )
            except Exception as error:  # whatever the hub, its files and pyarrow raise
                advice = "" if download else ". Set data.download=true on a machine with a network"
                reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
                raise DataError(
                    f"{self.settings.source}, split {split!r}: cannot be read from {self.root} "
                    f"({reason}){advice}; check data.source, data.train_split and data.test_split"
                ) from error
        if local.is_dir() and data.info.builder_name not in FORMATS:
            # It passes over files that this reader does not know, and says nothing.
            raise DataError(
                f"{local}: the package {PACKAGE} takes it for a folder of kind "
                f"{data.info.builder_name!r}; expected Parquet or Arrow files, as "
                "Dataset.to_parquet writes them and save_to_disk does not; images as files are for "
                "data.source=folder"
            )
        return data


def _package(source: str) -> Any:
    """The package `datasets`, and not a folder of images that is called so."""
    try:
        package = importlib.import_module(PACKAGE)
        found = getattr(package, "__file__", None) or next(iter(package.__path__))
    except ImportError as error:
        raise DataError(
            f"data.source = {source!r} needs the package {PACKAGE}: pip install {PACKAGE} ({error})"
        ) from error
    if not hasattr(package, "load_dataset"):
        raise DataError(
            f"data.source = {source!r} needs the package {PACKAGE}: pip install {PACKAGE} ({found} "
            "is something else of that name)"
        )
    return package


def _kind(feature: Any) -> str:
    kind = type(feature).__name__
    return str(feature.dtype) if kind == "Value" else kind


def _overlap(a: tuple[str, int, int], b: tuple[str, int, int]) -> int:
    return min(a[2], b[2]) - max(a[1], b[1])


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the package from saying on the way what the error will say."""
    logger = logging.getLogger(PACKAGE)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


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


def _sizes(data: Any, column: str) -> list[int]:
    """Bytes of every encoded image, without touching them; 0 for images kept as files."""
    compute = importlib.import_module("pyarrow.compute")
    content = compute.struct_field(data.with_format("arrow")[:][column], "bytes")
    sizes: list[int] = compute.binary_length(content).fill_null(0).to_pylist()
    return sizes
