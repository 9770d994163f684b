"""Files in the released layout: read them without executing anything in them, and write them.

Three kinds are read: a released checkpoint (a dict with `state_dict`, `epoch`, `arch`, `version`,
`args`, `optimizer`, `metric`), a bare state dict, and an .npz file with arrays `state/<key>` and
`meta` (JSON). Facts of the layout: spec 11.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ofq_core.checkpoints.io import save
from ofq_core.errors import CheckpointError
from ofq_core.npz import read_npz

VERSION = 2
# The arguments of the training command, a bag of plain values. Nothing else is needed.
ALLOWED: tuple[Any, ...] = (argparse.Namespace,)
_STATE = "state/"
_MODULE = "module."


@dataclass(frozen=True)
class ReleasedFile:
    """Content of a file in the released layout.

    state: released key (without `module.`) -> tensor, on the CPU. facts: what the file says of
    itself besides tensors: the arguments of the training command, or the meta data. epoch, metric:
    as saved, or None. arrays: further arrays of an .npz file, such as `input` and `eval_logits`.
    """

    path: Path
    state: dict[str, Tensor]
    facts: dict[str, Any]
    arch: str | None = None
    epoch: int | None = None
    metric: float | None = None
    arrays: dict[str, Tensor] = field(default_factory=dict)


def read_released(path: Path) -> ReleasedFile:
    """Read a file of one of the three kinds.

    Raises:
        CheckpointError: missing, truncated, of another kind, or it wants to run or build more than
            plain data and the arguments' `argparse.Namespace`; what it wanted is named.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(b"PK") and _is_npz(path):
        return _from_npz(path)
    return _from_pickle(path)


def save_released(path: Path, state: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write a checkpoint as the released code does, loadable with `weights_only=True`.

    Args:
        state: what `export_released` returned.
        meta: `arch`, `epoch` and `metric` go where the released code puts them, everything else
            becomes an argument (`wq_bitw` and `aq_bitw` hold the bits there).

    Raises:
        CheckpointError: the file cannot be written, or `meta` holds more than plain values.
    """
    arguments = {k: v for k, v in meta.items() if k not in ("arch", "epoch", "metric")}
    for key, value in meta.items():
        if not _plain(value):
            raise CheckpointError(
                f"meta.{key} = {value!r}: expected a plain value (text, number, list, dict, null)"
            )
    content: dict[str, Any] = {
        "epoch": meta.get("epoch"),
        "arch": meta.get("arch"),
        "state_dict": {key: value.detach().cpu().clone() for key, value in state.items()},
        "version": VERSION,
        "args": argparse.Namespace(**arguments),
    }
    if "metric" in meta:
        content["metric"] = meta["metric"]
    save(path, content)


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(item) for k, item in value.items())
    return value is None or isinstance(value, str | int | float | bool)


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _from_npz(path: Path) -> ReleasedFile:
    try:
        found = read_npz(path)
    except ValueError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read: truncated or damaged ({error})"
        ) from error
    try:
        meta = json.loads(str(found.pop("meta"))) if "meta" in found else {}
    except ValueError as error:
        raise CheckpointError(f"{path}: meta is no JSON ({error})") from error
    tensors = {
        name: torch.from_numpy(np.array(value))
        for name, value in found.items()
        if value.dtype.kind in "fiub" and value.dtype.itemsize <= 8
    }
    state = {k.removeprefix(_STATE): v for k, v in tensors.items() if k.startswith(_STATE)}
    if not state or not isinstance(meta, dict):
        raise CheckpointError(
            f"{path}: no weights in the released layout (expected arrays state/<key> and a meta "
            f"mapping, found {_some(found)})"
        )
    rest = {k: v for k, v in tensors.items() if not k.startswith(_STATE)}
    return ReleasedFile(path, _without_module(path, state), meta, meta.get("arch"), arrays=rest)


def _from_pickle(path: Path) -> ReleasedFile:
    try:
        with warnings.catch_warnings():
            # torch warns of what it refuses a moment later.
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(list(ALLOWED)):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        wanted = _wanted(error)
        if wanted is not None:
            raise CheckpointError(
                f"{path} wants to load {wanted}, which is not plain data: refused, and nothing of "
                "it was executed. A released checkpoint needs argparse.Namespace only"
            ) from error
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise _no_weights(path, f"a {type(content).__name__}")
    state = content.get("state_dict", content)
    if isinstance(state, dict) and state is content and "model" in state:
        raise _no_weights(path, "key 'model': full-precision weights are read as a teacher")
    if not isinstance(state, dict) or not state:
        raise _no_weights(path, _some(content))
    for key, value in state.items():
        if not isinstance(value, Tensor) or not isinstance(key, str):
            raise _no_weights(path, f"{key!r} of type {type(value).__name__}")
    if state is content:
        return ReleasedFile(path, _without_module(path, state), {})
    arguments = content.get("args")
    facts = dict(vars(arguments)) if isinstance(arguments, argparse.Namespace) else arguments
    return ReleasedFile(
        path,
        _without_module(path, state),
        facts if isinstance(facts, dict) else {},
        arch=_of_type(content.get("arch"), str),
        epoch=_of_type(content.get("epoch"), int),
        metric=_of_type(content.get("metric"), int | float),
    )


def _of_type(value: Any, kind: Any) -> Any:
    return value if isinstance(value, kind) else None


def _without_module(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DistributedDataParallel puts `module.` before every key, or before none."""
    prefixed = [key for key in state if key.startswith(_MODULE)]
    if not prefixed:
        return dict(state)
    if len(prefixed) < len(state):
        other = next(key for key in state if not key.startswith(_MODULE))
        raise CheckpointError(
            f"{path}: {prefixed[0]} has the prefix {_MODULE!r} and {other} has not: expected it "
            "before every key or before none"
        )
    return {key.removeprefix(_MODULE): value for key, value in state.items()}


def _wanted(error: Exception) -> str | None:
    """Name of what a pickle asked for, from torch's refusal."""
    found = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", str(error))
    return found[1] if found and isinstance(error, pickle.UnpicklingError) else None


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} ({path.stat().st_size} bytes) cannot be read: truncated, or no checkpoint "
        f"({type(error).__name__})"
    )


def _no_weights(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: no weights in the released layout (expected a dict with state_dict, or a dict of "
        f"tensors; found {found})"
    )


def _some(mapping: dict[str, Any]) -> str:
    keys = [str(key) for key in mapping]
    return (", ".join(keys[:4]) or "nothing") + (" ..." if len(keys) > 4 else "")
