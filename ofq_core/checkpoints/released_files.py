"""Files in the released layout: read them without executing anything in them, and write them.

Three kinds are read: a released checkpoint (a dict with `state_dict`, `epoch`, `arch`, `version`,
`args`, `optimizer`, `metric`), a bare state dict, and an .npz file with arrays `state/<key>` and
`meta` (JSON). Facts of the layout: spec 11.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ofq_core.checkpoints.io import save
from ofq_core.checkpoints.kinds import kind_of
from ofq_core.checkpoints.weights import read_weights, without_prefixes
from ofq_core.errors import CheckpointError
from ofq_core.npz import read_npz

VERSION = 2
_STATE = "state/"
# What an .npz file brings to try the model with.
_TRIED = {"input", "eval_logits"}
# What a released checkpoint says of itself beside its weights.
_FACTS = ("arch", "epoch", "metric", "version", "args")


@dataclass(frozen=True)
class ReleasedFile:
    """Content of a file in the released layout.

    state: released key (without `module.`) -> tensor, on the CPU. facts: what the file says of
    itself besides tensors: the arguments of the training command, or the meta data. epoch, metric:
    as saved, or None. arrays: further arrays of an .npz file, such as `input` and `eval_logits`.
    taken: the key that the weights were under, or empty. left: keys of what nobody reads, such as
    `optimizer` and `state_dict_ema`.
    """

    path: Path
    state: dict[str, Tensor]
    facts: dict[str, Any]
    arch: str | None = None
    epoch: int | None = None
    metric: float | None = None
    arrays: dict[str, Tensor] = field(default_factory=dict)
    taken: str = ""
    left: tuple[str, ...] = ()


def read_released(path: Path) -> ReleasedFile:
    """Read a file of one of the three kinds.

    Raises:
        CheckpointError: missing, truncated, of another kind, or it wants to run or build more than
            plain data and the arguments' `argparse.Namespace`; what it wanted is named.
    """
    file = _from_npz(path) if kind_of(path) == "npz" else _from_torch(path)
    for key, tensor in file.state.items():
        if not tensor.numel():
            raise CheckpointError(f"{path}: {key} has shape {tuple(tensor.shape)}: no entry in it")
    return file


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


def _from_npz(path: Path) -> ReleasedFile:
    try:
        found = read_npz(path)
    except ValueError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read: truncated or damaged ({error})"
        ) from error
    try:
        meta = json.loads(str(found.pop("meta"))) if "meta" in found else {}
    except (ValueError, RecursionError) as error:
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
    left = [name for name in found if name not in tensors or name in rest.keys() - _TRIED]
    state, dropped = without_prefixes(path, state)
    left += dropped
    return ReleasedFile(path, state, meta, meta.get("arch"), arrays=rest, left=tuple(left))


def _from_torch(path: Path) -> ReleasedFile:
    weights = read_weights(path)
    beside = weights.beside
    arguments = beside.get("args")
    facts = dict(vars(arguments)) if isinstance(arguments, argparse.Namespace) else arguments
    return ReleasedFile(
        path,
        weights.state,
        facts if isinstance(facts, dict) else {},
        arch=_of_type(beside.get("arch"), str),
        epoch=_of_type(beside.get("epoch"), int),
        metric=_of_type(beside.get("metric"), int | float),
        taken=weights.taken,
        left=tuple(key for key in weights.left if key not in _FACTS),
    )


def _of_type(value: Any, kind: Any) -> Any:
    return value if isinstance(value, kind) else None


def _some(mapping: dict[str, Any]) -> str:
    keys = [str(key) for key in mapping]
    return (", ".join(keys[:4]) or "nothing") + (" ..." if len(keys) > 4 else "")
