"""Prepare images: what there is, split and hashed. No pixel is copied."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ofq_core.data.copies import check_not_copied
from ofq_core.data.environment import data_root
from ofq_core.data.folder import FolderOrigin
from ofq_core.data.hub import HubOrigin
from ofq_core.data.origin import Catalogue, ImageOrigin
from ofq_core.data.rows import Rows, read_rows, rows_sha256, write_rows
from ofq_core.data.shards import ShardOrigin
from ofq_core.data.splits import MANIFEST, read_manifest
from ofq_core.data.stratify import stratified
from ofq_core.data.torch_sets import IN_MEMORY, ImagenetteOrigin, TorchOrigin
from ofq_core.errors import DataError
from ofq_core.files import sha256_file, write_atomic, write_json
from ofq_core.seeds import generator
from ofq_core.settings import ImageSettings

FILES = "files.csv.gz"
SPLITS = ("train", "val", "test")
# Training images that data.subset leaves out.
UNUSED = "unused"
# What decides the splits; the rest of the settings may change without preparing again.
DECISIVE = ("source", "train_split", "test_split", "val_share", "split_seed", "subset")
NEEDED = ("class_names", "content_sha256", "files_sha256", "list_sha256", "settings")
# How many names a message gives.
SHOWN = 5

ORIGINS: dict[str, Callable[[ImageSettings, Path], ImageOrigin]] = {
    "folder": FolderOrigin,
    "torch/imagenette": ImagenetteOrigin,
    **{f"torch/{name}": TorchOrigin for name in IN_MEMORY},
    "wds": ShardOrigin,
    "hfds": HubOrigin,
}


@dataclass(frozen=True)
class PreparedImages:
    """The splits of a manifest, and the source that the images are read from."""

    origin: ImageOrigin
    splits: dict[str, Rows]
    classes: list[str]
    manifest_sha256: str


def image_origin(settings: ImageSettings) -> ImageOrigin:
    """The source that data.source names, at $OFQ_DATA_DIR/<data.name>.

    Raises:
        DataError: there is no such source, or it needs a package that is missing.
    """
    kind = settings.source.split("/", 1)[0]
    make = ORIGINS.get(settings.source) or ORIGINS.get(kind)
    if make is None:
        known = ", ".join(key for key in ORIGINS if "/" in key)
        raise DataError(
            f"data.source = {settings.source!r}: known are {known}; other images are read with "
            "folder, wds/<name> or hfds/<name>"
        )
    return make(settings, data_root(settings.name))


def prepare_images(settings: ImageSettings, folder: Path) -> dict[str, Any]:
    """Write manifest.json and files.csv.gz, the same bytes for the same images and settings.

    `subset` training images are chosen first, then `val_share` of them is held out, both by class.

    Returns:
        The manifest: source, class names, sizes and class counts of the splits, hashes of the list
        (path, size and class of every image) and of files.csv.gz, and the unreadable images.

    Raises:
        DataError: the images are missing, cannot be trained on or split, too many of them cannot
            be read, or the test images are training images.
    """
    origin = image_origin(settings)
    catalogue = origin.catalogue(fresh=True)
    _check_unreadable(settings, catalogue)
    origin.check_apart()
    check_not_copied(origin, catalogue)
    splits = _split(settings, catalogue)
    files = write_rows(splits, catalogue.classes)
    classes = len(catalogue.classes)
    manifest: dict[str, Any] = {
        "source": settings.source,
        "settings": settings.model_dump(include=set(DECISIVE), mode="json"),
        "classes": classes,
        "class_names": catalogue.classes,
        "content_sha256": catalogue.content_sha256,
        "list_sha256": _list_sha256(catalogue),
        "files_sha256": hashlib.sha256(files).hexdigest(),
        "splits": {
            name: {"images": len(rows), "per_class": rows.per_class(classes)}
            for name, rows in splits.items()
        },
        "unreadable": catalogue.unreadable,
    }
    write_atomic(folder / FILES, files)
    write_json(folder / MANIFEST, manifest)
    return manifest


def load_images(settings: ImageSettings, folder: Path) -> PreparedImages:
    """Read a manifest and check that the images on this machine still are those it lists.

    Raises:
        DataError: the manifest is missing, damaged or of other settings, or the images differ.
    """
    manifest = read_manifest(folder, NEEDED)
    wanted = settings.model_dump(include=set(DECISIVE), mode="json")
    for key, value in wanted.items():
        if manifest["settings"].get(key) != value:
            raise DataError(
                f"data.{key} = {value!r}, but {folder / MANIFEST} was prepared with "
                f"{manifest['settings'].get(key)!r}; run `dvc repro prepare`"
            )
    path = folder / FILES
    if not path.is_file():
        raise DataError(f"{path} is missing; run `dvc repro -f prepare`")
    if sha256_file(path) != manifest["files_sha256"]:
        raise DataError(
            f"{path} was changed: its hash is not the manifest's; run `dvc repro -f prepare`"
        )
    origin = image_origin(settings)
    catalogue = origin.catalogue(fresh=False)
    same = (
        manifest["list_sha256"] == _list_sha256(catalogue)
        and manifest["content_sha256"] == catalogue.content_sha256
    )
    splits = read_rows(path, manifest["class_names"])
    if not same:
        raise DataError(
            f"{origin.root}: the images are not those that {folder / MANIFEST} lists: "
            f"{_difference(splits, catalogue)}; bring them back, or run `dvc repro -f prepare`"
        )
    splits = {name: splits.get(name, Rows.of([])) for name in SPLITS}
    return PreparedImages(origin, splits, manifest["class_names"], sha256_file(folder / MANIFEST))


def _list_sha256(catalogue: Catalogue) -> str:
    text = "/".join(rows_sha256(r, catalogue.classes) for r in (catalogue.train, catalogue.test))
    return hashlib.sha256(text.encode()).hexdigest()


def _check_unreadable(settings: ImageSettings, catalogue: Catalogue) -> None:
    bad = set(catalogue.unreadable)
    for key, rows in (("train_split", catalogue.train), ("test_split", catalogue.test)):
        names = [name for name in map(rows.name, range(len(rows))) if name in bad] if bad else []
        check_share(settings, getattr(settings, key), names, len(rows))


def check_share(settings: ImageSettings, split: str, names: list[str], images: int) -> None:
    """Stop where more of a split than data.max_unreadable cannot be read.

    Args:
        names: the unreadable images. images: number of images of the split.

    Raises:
        DataError: naming some of the files.
    """
    if len(names) <= settings.max_unreadable * images:
        return
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    raise DataError(
        f"{len(names)} of {images} images of split {split!r} cannot be read, data.max_unreadable = "
        f"{settings.max_unreadable:g} allows {int(settings.max_unreadable * images)}: "
        f"{', '.join(sorted(names)[:SHOWN])}{more}. Mend or remove them, or raise the share"
    )


def _split(settings: ImageSettings, catalogue: Catalogue) -> dict[str, Rows]:
    whole, classes = catalogue.train, len(catalogue.classes)
    used = np.ones(len(whole), dtype=np.bool_)
    if settings.subset is not None:
        if settings.subset > len(whole):
            raise DataError(
                f"data.subset = {settings.subset}: there are only {len(whole)} training images "
                "(null: all)"
            )
        used = stratified(
            whole.labels, settings.subset, generator(settings.split_seed, "split", "subset")
        )
    rest = whole.take(used)
    held_out = stratified(
        rest.labels,
        round(settings.val_share * len(rest)),
        generator(settings.split_seed, "split", "val"),
    )
    splits = {"train": rest.take(~held_out), "val": rest.take(held_out), "test": catalogue.test}
    left = splits["train"].per_class(classes)
    if 0 in left:
        raise DataError(
            f"data.val_share = {settings.val_share:g}, data.subset = {settings.subset}: no "
            f"training image of class {catalogue.classes[left.index(0)]!r} is left; lower "
            "val_share or raise subset"
        )
    if not used.all():
        splits[UNUSED] = whole.take(~used)
    return splits


def _difference(splits: dict[str, Rows], catalogue: Catalogue) -> str:
    listed = {
        rows.name(i): int(rows.sizes[i]) for rows in splits.values() for i in range(len(rows))
    }
    found = {
        rows.name(i): int(rows.sizes[i])
        for rows in (catalogue.train, catalogue.test)
        for i in range(len(rows))
    }
    changes = {
        "missing": sorted(listed.keys() - found.keys()),
        "new": sorted(found.keys() - listed.keys()),
        "of another size": sorted(n for n in listed.keys() & found.keys() if listed[n] != found[n]),
    }
    told = [
        f"{len(names)} {what} ({', '.join(names[:SHOWN])})"
        for what, names in changes.items()
        if names
    ]
    return ", ".join(told) or "the content or the classes differ"
