"""Prepare scikit-learn's digits: 1,797 real 8x8 grey images of ten classes, shipped with it."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ofq_core.data.splits import ARRAYS, MANIFEST, SPLITS
from ofq_core.errors import DataError
from ofq_core.files import write_atomic, write_json
from ofq_core.settings import DigitsSettings

# What decides the splits.
DECISIVE = ("test_share", "val_share", "split_seed", "subset")


def prepare_digits(settings: DigitsSettings, folder: Path) -> dict[str, Any]:
    """Write arrays.npz and manifest.json, the same bytes for the same settings.

    The split is stratified by class and fixed by `split_seed`: test first, then validation, the
    rest trains. Images become FP32 in [0, 1], shape (n, 1, 8, 8).

    Returns:
        The manifest: source, sizes, class counts, statistics of the training split, hashes.

    Raises:
        DataError: the shares or the subset leave a split without one image of each class.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    index = np.arange(len(labels))
    seed = settings.split_seed
    if settings.subset is not None and settings.subset > len(labels):
        raise DataError(
            f"data.subset = {settings.subset}: there are only {len(labels)} digits (null: all)"
        )
    try:
        if settings.subset is not None and settings.subset < len(labels):
            index, _ = train_test_split(
                index, train_size=settings.subset, random_state=seed, stratify=labels
            )
        n_test = round(settings.test_share * len(index))
        n_val = round(settings.val_share * len(index))
        rest, test = train_test_split(
            index, test_size=n_test, random_state=seed, stratify=labels[index]
        )
        train, val = train_test_split(
            rest, test_size=n_val, random_state=seed, stratify=labels[rest]
        )
    except ValueError as error:
        raise DataError(
            f"data.test_share = {settings.test_share:g}, data.val_share = {settings.val_share:g}, "
            f"data.subset = {settings.subset}: cannot split {len(index)} digits so that every "
            f"split has every class ({error})"
        ) from error
    parts = {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}
    arrays: dict[str, NDArray[Any]] = {}
    for name in SPLITS:
        arrays[f"{name}_images"] = images[parts[name]]
        arrays[f"{name}_labels"] = labels[parts[name]]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    manifest: dict[str, Any] = {
        "source": "sklearn.datasets.load_digits",
        "source_sha256": _digest(digits.images, digits.target),
        "settings": settings.model_dump(include=set(DECISIVE)),
        "classes": int(labels.max()) + 1,
        "image_shape": list(images.shape[1:]),
        "mean": float(arrays["train_images"].mean(dtype=np.float64)),
        "std": float(arrays["train_images"].std(dtype=np.float64)),
        "arrays_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "splits": {
            name: {
                "images": len(parts[name]),
                "per_class": np.bincount(labels[parts[name]]).tolist(),
                "sha256": _digest(arrays[f"{name}_images"], arrays[f"{name}_labels"]),
                "source_indices": parts[name].tolist(),
            }
            for name in SPLITS
        },
    }
    write_atomic(folder / ARRAYS, buffer.getvalue())
    write_json(folder / MANIFEST, manifest)
    return manifest


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
