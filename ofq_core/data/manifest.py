"""Prepare images: what there is, split and hashed. No pixel is copied."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ofq_core.data.copies import check_not_copied
from ofq_core.data.environment import data_root
from ofq_core.data.folder import FolderOrigin
from ofq_core.data.hub import HubOrigin
from ofq_core.data.origin import Catalogue, ImageOrigin
from ofq_core.data.rows import Rows, read_rows, rows_sha256, shown, write_rows
from ofq_core.data.scan import DESKTOP
from ofq_core.data.shards import ShardOrigin
from ofq_core.data.splits import MANIFEST, check_prepared, read_manifest
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
    """The splits of a manifest, and the source that the images are read from.

    others: where there is no manifest to name them, the files that are no images, and why.
    """

    origin: ImageOrigin
    splits: dict[str, Rows]
    classes: list[str]
    manifest_sha256: str
    others: dict[str, str] = field(default_factory=dict)


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
        (path, size and class of every image) and of files.csv.gz, and the names of the files that
        are unreadable or no images.

    Raises:
        DataError: the images are missing, cannot be trained on or split, too many of them cannot
            be read or are no images, or the test images are training images.
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
        "unreadable": sorted({*catalogue.unreadable, *not_images(catalogue)}),
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
    check_prepared(manifest, settings.model_dump(include=set(DECISIVE), mode="json"), folder)
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


def not_images(catalogue: Catalogue) -> dict[str, str]:
    """The files of both splits that are not read as images, and why."""
    return {name: text for others in catalogue.others.values() for name, text in others.items()}


def _check_unreadable(settings: ImageSettings, catalogue: Catalogue) -> None:
    bad = catalogue.unreadable
    for key, rows in (("train_split", catalogue.train), ("test_split", catalogue.test)):
        split = getattr(settings, key)
        names = map(rows.name, range(len(rows))) if bad else ()
        faults = {name: bad[name] for name in names if name in bad}
        others = catalogue.others.get(split, {})
        faults |= {name: text for name, text in others.items() if text != DESKTOP}
        check_share(settings, split, faults, len(rows))


def check_share(
    settings: ImageSettings, split: str, faults: Mapping[str, str], images: int
) -> None:
    """Stop where more of a split than data.max_unreadable cannot be read.

    Args:
        faults: the unreadable images and files that are none, and why. images: number of images of
            the split.

    Raises:
        DataError: naming some of the files.
    """
    if len(faults) <= settings.max_unreadable * images:
        return
    more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    some = ", ".join(f"{shown(name)} ({faults[name]})" for name in sorted(faults)[:SHOWN])
    raise DataError(
        f"{len(faults)} of {images} images of split {split!r} cannot be read, data.max_unreadable "
        f"= {settings.max_unreadable:g} allows {int(settings.max_unreadable * images)}: {some}"
        f"{more}. Mend or remove them, or raise the share"
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
    missing, new = listed.keys() - found.keys(), found.keys() - listed.keys()
    changes = {
        "missing": sorted(missing),
        "new": sorted(new),
        "of another size": sorted(n for n in listed.keys() & found.keys() if listed[n] != found[n]),
    }
    told = [
        f"{len(names)} {what} ({', '.join(map(shown, names[:SHOWN]))})"
        for what, names in changes.items()
        if names
    ]
    if {_composed(name) for name in missing} & {_composed(name) for name in new}:
        told.append("some of them the same names in another spelling of Unicode")
    return ", ".join(told) or "the content or the classes differ"


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
