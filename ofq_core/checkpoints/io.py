"""Write and read checkpoints and weights. Reading never executes what is in the file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ofq_core.checkpoints.claims import sealed
from ofq_core.checkpoints.weights import Weights, foreign_names, read_content, read_weights
from ofq_core.errors import CheckpointError, some
from ofq_core.files import parse_json, sha256_file, write_atomic
from ofq_core.finite import not_finite_tensor

FORMAT = "ofq-checkpoint-2"
CONTENT = ("settings_sha256", "progress", "model", "optimizer", "tracker", "averaged")
# The files of a run: its weights by either name, settings, and what env.json says of both.
WEIGHTS = ("student.pt", "teacher.pt")
SETTINGS, ENVIRONMENT = "settings.yaml", "env.json"
_RECORD = (("weights_sha256", None), ("settings_yaml_sha256", SETTINGS))


def save(path: Path, value: Any, previous: Path | None = None) -> None:
    """Serialize to memory, then write atomically: the file before stays until the new is whole.

    The file carries the hash of its content.

    Args:
        previous: where the file before then goes; None: it goes away.

    Raises:
        CheckpointError: the disk is full or the folder not writable.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    try:
        write_atomic(path, sealed(buffer), previous)
    except OSError as error:
        kept = " The file that was there before is untouched." if path.exists() else ""
        raise CheckpointError(f"cannot write {path}: {error.strerror}.{kept}") from error


def load(path: Path) -> Any:
    """Read what `save` wrote, on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than plain data.
    """
    return read_content(path)[0]


def load_checkpoint(path: Path, settings_sha256: str) -> dict[str, Any]:
    """Read the checkpoint of an interrupted run: what was written, to the last bit, or nothing.

    Raises:
        CheckpointError: damaged, of another kind, or of a run with other settings.
    """
    afresh = "delete it to start afresh"
    try:
        value, own = read_content(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {afresh}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a training checkpoint of this suite (no {FORMAT} mark); {afresh}"
        )
    missing = [key for key in CONTENT if key not in value]
    if missing:
        raise CheckpointError(f"{path}: damaged checkpoint (no {missing[0]}); {afresh}")
    if value["settings_sha256"] != settings_sha256:
        raise CheckpointError(
            f"{path} belongs to a run with other settings (sha256 "
            f"{str(value['settings_sha256'])[:12]}, expected {settings_sha256[:12]}); {afresh}"
        )
    if not own:
        # Whatever was changed in it, no run has been in that state.
        raise CheckpointError(f"{path}: damaged checkpoint (another program wrote it); {afresh}")
    return value


def load_weights(model: nn.Module, path: Path, what: str) -> Weights:
    """Fill `model` strictly with the weights in a file; see docs/checkpoints.md for its shapes.

    Args:
        what: how the message calls the file, such as "teacher".

    Returns:
        What was in the file; `says()` tells what was taken of it.

    Raises:
        CheckpointError: see `open_weights` and `fill_weights`.
    """
    weights = open_weights(path)
    fill_weights(model, weights, what)
    return weights


def open_weights(path: Path) -> Weights:
    """Read weights, and check that they are of the run whose folder they are in.

    Raises:
        CheckpointError: they are not, or see `read_weights`.
    """
    weights = read_weights(path)
    if path.name in WEIGHTS:
        _check_record(path)
    return weights


def fill_weights(model: nn.Module, weights: Weights, what: str) -> None:
    """Fill `model` strictly.

    Raises:
        CheckpointError: names, shapes, types or values that do not fit, with the first few named.
    """
    state, path = weights.state, weights.path
    wrong = _differences(state, model.state_dict())
    if wrong:
        hint = foreign_names(state)
        raise CheckpointError(f"{path}: this {what} does not fit the model: {some(wrong)}{hint}")
    found = not_finite_tensor(state.items())
    if found is not None:
        raise CheckpointError(f"{path}: this {what} cannot be used: {found}")
    model.load_state_dict(state)


def record(weights: Path) -> dict[str, str]:
    """What a run's env.json says, so that weights and settings of two runs are not taken together.

    Args:
        weights: beside the settings.
    """
    return {key: sha256_file(weights.with_name(name or weights.name)) for key, name in _RECORD}


def _check_record(weights: Path) -> None:
    try:
        said = parse_json(weights.with_name(ENVIRONMENT).read_text())
    except (OSError, ValueError):
        # Of an earlier version, or no folder of a run.
        return
    for key, name in _RECORD:
        path = weights.with_name(name or weights.name)
        expected = said.get(key) if isinstance(said, dict) else None
        if expected is None or not path.is_file():
            continue
        found = sha256_file(path)
        if found != expected:
            raise CheckpointError(
                f"{path} is not the file of this run: its sha256 is {found[:12]}, and "
                f"{ENVIRONMENT} beside it says {str(expected)[:12]}"
            )


def _differences(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Where names, shapes and types of tensors are not those of the model."""
    wrong = [f"{key} is missing" for key in own if key not in state]
    wrong += [f"{key} is not part of the model" for key in state if key not in own]
    both = [key for key in own if key in state]
    wrong += [
        f"{key} has shape {tuple(state[key].shape)}, the model {tuple(own[key].shape)}"
        for key in both
        if state[key].shape != own[key].shape
    ]
    wrong += [
        f"{key} is {_type(state[key])}, the model {_type(own[key])}: convert it first"
        for key in both
        if state[key].dtype != own[key].dtype
    ]
    return wrong


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
