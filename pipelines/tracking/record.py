"""A result folder as what MLflow shows of it: parameters, metrics, curves, tags, files.

Pure reading: the same folder gives the same record on every machine, except for the times
where a checkout changed the files' modification time.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ofq_core.errors import SettingsError
from ofq_core.files import parse_json
from ofq_core.yaml_files import read_yaml

from .errors import ResultFolderError, first_line

EXPERIMENT_FOLDER = "experiment"
RUN_NAME = re.compile(r"[a-z0-9_]+-w\d+a\d+-s\d+")
# What settings allow as a name: it becomes part of paths.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
EXPECTED_NAME = "expected letters, digits, '.', '_' and '-'"
MAX_FILE_BYTES = 1_000_000
_FILE_TYPES = {".json", ".csv", ".yaml", ".md"}
_FULL_PRECISION_BITS = 32


@dataclass(frozen=True)
class Point:
    """One value of a curve; `seconds` counts from the start of the run."""

    name: str
    epoch: int
    value: float
    seconds: float


@dataclass(frozen=True)
class RunRecord:
    """Everything that MLflow is told about one result folder."""

    folder: Path
    study: str
    method: str
    kind: str
    cell: str
    name: str
    settings_sha256: str
    digest: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: tuple[Point, ...]
    tags: Mapping[str, str]
    files: tuple[Path, ...]
    start_ms: int
    end_ms: int


def read_folder(folder: Path) -> RunRecord:
    """Read a result folder.

    Raises:
        ResultFolderError: a needed file is missing, cut off, or lacks a needed key.
    """
    folder = folder.resolve()
    try:
        return _read(folder)
    except (AttributeError, TypeError, ValueError, OSError, csv.Error) as error:
        # A file of the right syntax and the wrong shape, such as `quant: 3`.
        raise ResultFolderError(folder, f"unexpected content ({first_line(error)})") from error


def _read(folder: Path) -> RunRecord:
    settings = _mapping(folder, "settings.yaml")
    metrics = _mapping(folder, "metrics.json")
    env = _mapping(folder, "env.json") if (folder / "env.json").exists() else {}
    study = _name(folder, settings, "study")
    method = _name(folder, settings, "method")
    settings_sha256 = _text(folder, "metrics.json", metrics, "settings_sha256")

    quant = settings.get("quant") or {}
    bits = [quant.get(key) or _FULL_PRECISION_BITS for key in ("wbits", "abits")]
    cell = f"{method}-w{bits[0]}a{bits[1]}-s{settings.get('seed', 0)}"
    dialled = folder.name == EXPERIMENT_FOLDER
    tags = dict(_tags(env))
    name = folder.name
    if dialled:
        label = tags.get("dvc.experiment")
        name = f"{cell} ({label})" if label else cell

    end_ms = int((folder / "metrics.json").stat().st_mtime * 1000)
    seconds = env.get("wall_seconds") or (metrics.get("cost") or {}).get("train_seconds") or 0.0
    files = tuple(_files(folder))
    return RunRecord(
        folder=folder,
        study=study,
        method=method,
        kind="experiment" if dialled else "seed",
        cell=cell,
        name=name,
        settings_sha256=settings_sha256,
        digest=digest_of(files),
        params=dict(_params(settings)),
        metrics=dict(_numbers(metrics)),
        curves=tuple(_curves(folder)),
        tags=tags,
        files=files,
        start_ms=end_ms - int(float(seconds) * 1000),
        end_ms=end_ms,
    )


def digest_of(files: tuple[Path, ...]) -> str:
    """SHA-256 over the names and contents of `files`."""
    total = hashlib.sha256()
    for path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.name}\0{content}\n".encode())
    return total.hexdigest()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested mapping under dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _mapping(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        text = path.read_text(encoding="utf-8")
        loaded = parse_json(text) if path.suffix == ".json" else read_yaml(path)
    except FileNotFoundError:
        raise ResultFolderError(folder, f"{name} is missing") from None
    except (OSError, ValueError, SettingsError) as error:
        raise ResultFolderError(folder, f"{name} cannot be read ({first_line(error)})") from error
    if not isinstance(loaded, dict):
        raise ResultFolderError(folder, f"{name} does not hold a mapping")
    return loaded


def _text(folder: Path, file: str, mapping: Mapping[str, Any], key: str) -> str:
    value = mapping.get(key)
    if not isinstance(value, str) or not value:
        raise ResultFolderError(folder, f"{file} has no {key!r}")
    return value


def _name(folder: Path, settings: Mapping[str, Any], key: str) -> str:
    value = _text(folder, "settings.yaml", settings, key)
    if not NAME.fullmatch(value):
        raise ResultFolderError(folder, f"settings.yaml: {key} = {value!r}: {EXPECTED_NAME}")
    return value


def _params(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in flatten(settings):
        # A path, a date or the run's own name says nothing about the method, yet would show
        # up as a difference whenever two runs are compared.
        if isinstance(value, date) or key in {"run", "run_name"}:
            continue
        if isinstance(value, str) and value.startswith(("/", "~")):
            continue
        yield key, value if isinstance(value, str) else json.dumps(value, default=str)


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in flatten(metrics):
        if isinstance(value, (int, float)):
            yield key, float(value)


def _curves(folder: Path) -> Iterator[Point]:
    path = folder / "history.csv"
    if not path.exists():
        return
    elapsed = 0.0
    with path.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            epoch = _number(row.pop("epoch", None))
            if epoch is None:
                raise ResultFolderError(folder, "history.csv has a row without an epoch")
            elapsed += _number(row.get("seconds")) or 0.0
            for column, cell in row.items():
                value = _number(cell)
                if value is not None:
                    yield Point(f"history/{column}", int(epoch), value, elapsed)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _tags(env: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    git, dvc = env.get("git") or {}, env.get("dvc") or {}
    values = {
        "git.commit": git.get("commit"),
        "git.dirty": git.get("dirty"),
        "mlflow.source.git.commit": git.get("commit"),
        "dvc.stage": dvc.get("stage"),
        "dvc.experiment": dvc.get("experiment"),
        "manifest_sha256": env.get("manifest_sha256"),
        "teacher_sha256": env.get("teacher_sha256"),
        "device": env.get("device"),
        "slurm.job": env.get("slurm_job"),
    }
    for key, value in values.items():
        if value is not None:
            yield key, value if isinstance(value, str) else json.dumps(value)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        small = path.is_file() and path.stat().st_size <= MAX_FILE_BYTES
        if small and path.suffix in _FILE_TYPES:
            yield path
