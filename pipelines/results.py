"""The result files of a run; see docs/design.md, "Result files are the protocol"."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ofq_core.errors import DataError
from ofq_core.explain import Model, validated
from ofq_core.files import write_atomic, write_json
from ofq_core.settings import RunSettings
from ofq_core.yaml_files import read_yaml, to_yaml
from pipelines.unchanged import check_unchanged

HISTORY_COLUMNS = (
    "epoch",
    "phase",
    "lr",
    "train_loss",
    "train_hard_loss",
    "train_soft_loss",
    "val_loss",
    "val_top1",
    "seconds",
    "images_per_second",
    "oscillation_share",
    "flip_rate",
    "free_share",
    "unreadable_images",
    "in_band_0.005",
    "scale_drift",
    "flips_weight",
    "flips_scale",
    "flips_both",
    "gradient_flips",
    "code_entropy",
    "dead_share",
    "clipped_share",
    "path_ratio",
)


def write_history(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line per epoch; losses are means over its steps.

    Empty: `free_share` outside CGA, `val_*` without a validation split, sampled figures (from
    `flips_weight` on; see `ofq_core.training.samples`) without a sample. `unreadable_images`: how
    many different ones so far.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, buffer.getvalue().encode())


def write_settings(path: Path, settings: Model, keys: set[str] | None = None) -> None:
    """The resolved settings of a run, or some keys of others."""
    text = to_yaml(settings.model_dump(mode="json", include=keys))
    write_atomic(path, text.encode())


def read_settings(folder: Path) -> RunSettings:
    """The settings of a finished training.

    Raises:
        DataError: the folder holds none. SettingsError: they are damaged.
    """
    path = folder / "settings.yaml"
    if not path.is_file():
        raise DataError(f"{folder}: no settings.yaml there; train first (`dvc repro qat`)")
    return validated(RunSettings, read_yaml(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: missing, damaged, or with a number that is NaN or infinite.
    """
    try:
        value = json.loads(path.read_bytes(), parse_constant=_refuse)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} cannot be read: expected a JSON object")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}")


def publish_folder(source: Path, target: Path) -> None:
    """Move a finished folder into place, from another file system too.

    What was there before goes when the new one is there. What fails, or is killed, loses neither.

    Raises:
        ChangedError: what the stage read has changed.
    """
    check_unchanged()
    draft, former = (target.with_name(f".{target.name}.{word}") for word in ("new", "former"))
    for left_over in (draft, former):
        _remove(left_over)
    _bring(source, draft)
    if target.exists() or target.is_symlink():
        target.replace(former)
    draft.replace(target)
    for path in (former, source):
        _remove(path)


def publish_files(source: Path, target: Path, outdated: Sequence[str] = ()) -> None:
    """Move finished files into a folder that also holds others, from another file system too.

    outdated: files there that belong to the former ones. They go when all the new ones have found
    room.

    Raises:
        ChangedError: what the stage read has changed.
    """
    check_unchanged()
    drafts = {path.name: target / f".{path.name}.new" for path in sorted(source.iterdir())}
    for name, draft in drafts.items():
        _bring(source / name, draft)
    for name in outdated:
        (target / name).unlink(missing_ok=True)
    for name, draft in drafts.items():
        draft.replace(target / name)
    _remove(source)


def _bring(source: Path, draft: Path) -> None:
    """Move to `draft`; where a rename cannot do that, copy."""
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.replace(draft)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    try:
        if source.is_dir():
            shutil.copytree(source, draft, copy_function=_copy_file)
        else:
            _copy_file(source, draft)
    except (OSError, shutil.Error):
        _remove(draft)
        raise


def _copy_file(source: str | Path, target: str | Path) -> None:
    with open(source, "rb") as old, open(target, "wb") as new:
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


__all__ = [
    "HISTORY_COLUMNS",
    "publish_files",
    "publish_folder",
    "read_json",
    "read_settings",
    "write_history",
    "write_json",
    "write_settings",
]
