"""Lists of images: what a source holds, and which image is in which split."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ofq_core.errors import DataError

# What the readers of gzip and CSV raise besides.
DAMAGED = (zlib.error, csv.Error)
COLUMNS = ("split", "path", "size", "class", "place")


@dataclass(frozen=True)
class Rows:
    """Images, one a row, as arrays: a list of a million Python objects would be copied by workers.

    names: path relative to the folder of the data, UTF-8, (n,) bytes. sizes: bytes, (n,) int64.
    labels: class indices, (n,) int64. places: where in its container an image is, (n,) int64: a
    byte offset in a shard, a number in a data set, -1 for a file of its own.
    """

    names: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    places: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[tuple[str, int, int, int]]) -> Rows:
        """From (name, size, label, place) of each image."""
        names, sizes, labels, places = zip(*rows, strict=True) if rows else ((), (), (), ())
        return cls(
            np.array([encode(name) for name in names], dtype=np.bytes_),
            np.array(sizes, dtype=np.int64),
            np.array(labels, dtype=np.int64),
            np.array(places, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Path of an image relative to the folder of the data."""
        return decode(self.names[index])

    def take(self, index: NDArray[Any]) -> Rows:
        """The rows at these indices, or where a mask is true."""
        return Rows(self.names[index], self.sizes[index], self.labels[index], self.places[index])

    def per_class(self, classes: int) -> list[int]:
        """Number of images of each class."""
        counts: list[int] = np.bincount(self.labels, minlength=classes).tolist()
        return counts


def encode(name: str) -> bytes:
    """A file name as bytes, whatever the file system holds."""
    return name.encode(errors="surrogateescape")


def decode(name: bytes) -> str:
    """The inverse of `encode`."""
    return name.decode(errors="surrogateescape")


def shown(name: object) -> str:
    """A name as a message may hold it: on one line, and on any terminal that takes Unicode."""
    text = str(name)
    return text if text.isprintable() else ascii(text)[1:-1]


def rows_sha256(rows: Rows, classes: list[str]) -> str:
    """Hash over the relative path, size and class name of every image, in the order of paths."""
    digest = hashlib.sha256()
    known = [encode(name) for name in classes]
    for i in np.argsort(rows.names, kind="stable").tolist():
        digest.update(b"%s\0%d\0%s\n" % (rows.names[i], rows.sizes[i], known[rows.labels[i]]))
    return digest.hexdigest()


def write_rows(splits: dict[str, Rows], classes: list[str]) -> bytes:
    """All images as gzipped CSV, with the columns `COLUMNS`; the same bytes for the same images."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    # A reader ends a row at a bare \r too, and the writer quotes its own line end only.
    quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for split, rows in splits.items():
        columns = (rows.names, rows.sizes.tolist(), rows.labels.tolist(), rows.places.tolist())
        for name, size, label, place in zip(*columns, strict=True):
            row = (split, decode(name), size, classes[label], place)
            (quoting if "\r" in row[1] + row[3] else writer).writerow(row)
    # No time stamp: it would change the bytes.
    return gzip.compress(encode(text.getvalue()), compresslevel=6, mtime=0)


def read_rows(path: Path, classes: list[str]) -> dict[str, Rows]:
    """What `write_rows` wrote, by split.

    Raises:
        DataError: the file is damaged.
    """
    index = {name: number for number, name in enumerate(classes)}
    splits: dict[str, list[tuple[str, int, int, int]]] = {}
    try:
        with gzip.open(path, "rt", newline="", errors="surrogateescape", encoding="utf-8") as file:
            reader = csv.reader(file)
            if tuple(next(reader)) != COLUMNS:
                raise ValueError(f"the columns are not {', '.join(COLUMNS)}")
            for split, name, size, label, place in reader:
                row = (name, int(size), index[label], int(place))
                splits.setdefault(split, []).append(row)
    except (OSError, EOFError, ValueError, KeyError, StopIteration, *DAMAGED) as error:
        raise DataError(f"{path} is damaged ({error}); run `dvc repro -f prepare`") from error
    return {split: Rows.of(rows) for split, rows in splits.items()}
