"""The result files of a run; see docs/design.md, "Result files are the protocol"."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ofq_core.errors import DataError
from ofq_core.explain import Model, validated
from ofq_core.files import parse_json, write_atomic, write_json
from ofq_core.settings import RunSettings
from ofq_core.yaml_files import read_yaml, to_yaml
from pipelines.unchanged import check_unchanged
from slurm.contents import bring_path, place_path, remove_path

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
        value = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} cannot be read: expected a JSON object")
    return value


def publish_folder(source: Path, target: Path) -> None:
    """Move a finished folder into place; what was there before goes only then.

    Raises:
        ChangedError: what the stage read has changed.
    """
    check_unchanged()
    place_path(source, target)


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
        bring_path(source / name, draft)
    for name in outdated:
        (target / name).unlink(missing_ok=True)
    for name, draft in drafts.items():
        draft.replace(target / name)
    remove_path(source)


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
