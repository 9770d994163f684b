"""Prepared data in memory: images, labels and a fixed split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ofq_core.errors import DataError, shortened
from ofq_core.files import parse_json, sha256_file
from ofq_core.npz import read_npz

ARRAYS, MANIFEST = "arrays.npz", "manifest.json"
SPLITS = ("train", "val", "test")
NEEDED = ("arrays_sha256", "mean", "std", "classes")


@dataclass(frozen=True)
class Split:
    """Images (n, channels, height, width), FP32 in [0, 1], and labels (n,), int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PreparedData:
    """The three splits, the statistics of the training split, and the manifest's hash."""

    train: Split
    val: Split
    test: Split
    mean: float
    std: float
    classes: int
    manifest_sha256: str

    def normalise(self, images: Tensor) -> Tensor:
        """Zero mean and unit variance by the statistics of the training split."""
        return (images - self.mean) / self.std


def read_manifest(folder: Path, needed: tuple[str, ...] = NEEDED) -> dict[str, Any]:
    """The manifest of a prepared folder; `needed` keys must be in it.

    Raises:
        DataError: the folder or its manifest is missing or damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"data directory {folder}: no {MANIFEST} there; run `dvc repro prepare`")
    try:
        manifest = parse_json(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); run `dvc repro -f prepare`") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{path} is damaged (no mapping); run `dvc repro -f prepare`")
    missing = [key for key in needed if key not in manifest]
    if missing:
        raise DataError(f"{path} is damaged (no {missing[0]}); run `dvc repro -f prepare`")
    return manifest


def check_prepared(manifest: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Check that data were split by these settings.

    Raises:
        DataError: naming the first setting that differs.
    """
    settings = manifest["settings"]
    for key, value in wanted.items():
        found = settings.get(key) if isinstance(settings, dict) else None
        if found != value:
            raise DataError(
                f"data.{key} = {value!r}, but {folder / MANIFEST} was prepared with {found!r}; run "
                "`dvc repro prepare`"
            )


def load_prepared(folder: Path) -> PreparedData:
    """Read what the prepare stage wrote and check it against its manifest.

    Raises:
        DataError: missing, damaged, or the arrays are not the ones in the manifest.
    """
    manifest = read_manifest(folder)
    path = folder / ARRAYS
    if not path.is_file():
        raise DataError(f"{path} is missing; run `dvc repro -f prepare`")
    digest = sha256_file(path)
    if digest != manifest["arrays_sha256"]:
        raise DataError(
            f"{path} has sha256 {digest[:12]}, its manifest says "
            f"{str(manifest['arrays_sha256'])[:12]}: it was changed; run `dvc repro -f prepare`"
        )
    try:
        arrays = read_npz(path)
        splits = {name: _split(arrays, name, manifest["classes"]) for name in SPLITS}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); run `dvc repro -f prepare`") from error
    _check_facts(folder / MANIFEST, manifest, splits["train"])
    return PreparedData(
        **splits,
        mean=manifest["mean"],
        std=manifest["std"],
        classes=manifest["classes"],
        manifest_sha256=sha256_file(folder / MANIFEST),
    )


def _check_facts(path: Path, manifest: dict[str, Any], train: Split) -> None:
    """Raises DataError where the manifest does not say what follows from the training images."""
    images = train.images.double()
    facts = {
        "mean": images.mean().item(),
        "std": images.std(correction=0).item(),
        "classes": int(train.labels.max()) + 1,
    }
    for key, value in facts.items():
        said = manifest[key]
        if type(said) not in (int, float) or not math.isclose(said, value, rel_tol=1e-6):
            raise DataError(
                f"{path} is damaged ({key} = {shortened(said)}, and the training images have "
                f"{value:g}); run `dvc repro -f prepare`"
            )


def _split(arrays: dict[str, NDArray[Any]], name: str, classes: int) -> Split:
    """Raises ValueError or KeyError when they are not images and their labels."""
    images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
    if images.dtype != np.float32 or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(f"{name}: {images.dtype} {images.shape} and {labels.shape} do not fit")
    if labels.dtype != np.int64 or not ((labels >= 0) & (labels < classes)).all():
        raise ValueError(f"{name}_labels: expected classes from 0 to {classes - 1}")
    return Split(torch.from_numpy(images), torch.from_numpy(labels))
