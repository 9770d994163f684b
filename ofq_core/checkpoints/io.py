"""Write and read checkpoints and weights. Reading never executes what is in the file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ofq_core.errors import CheckpointError
from ofq_core.files import write_atomic

FORMAT = "ofq-checkpoint-2"
CONTENT = ("settings_sha256", "progress", "model", "optimizer", "tracker", "averaged")


def save(path: Path, value: Any, previous: Path | None = None) -> None:
    """Serialize to memory, then write atomically: the file before stays until the new is whole.

    Args:
        previous: where the file before then goes; None: it goes away.

    Raises:
        CheckpointError: the disk is full or the folder not writable.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    try:
        write_atomic(path, buffer.getvalue(), previous)
    except OSError as error:
        kept = " The file that was there before is untouched." if path.exists() else ""
        raise CheckpointError(f"cannot write {path}: {error.strerror}.{kept}") from error


def load(path: Path) -> Any:
    """Read what `save` wrote, on the CPU, with `weights_only=True`.

    Raises:
        CheckpointError: the file is missing, truncated, or holds more than plain data.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            # torch warns of what it refuses a moment later.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read: truncated, or not a file of "
            f"this suite ({type(error).__name__})"
        ) from error


def load_checkpoint(path: Path, settings_sha256: str) -> dict[str, Any]:
    """Read the checkpoint of an interrupted run.

    Raises:
        CheckpointError: unreadable, of another kind, or of a run with other settings.
    """
    afresh = "delete it to start afresh"
    try:
        value = load(path)
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
            f"{value['settings_sha256'][:12]}, expected {settings_sha256[:12]}); {afresh}"
        )
    return value


def load_weights(model: nn.Module, path: Path, what: str) -> None:
    """Fill `model` strictly with the weights in a file.

    Args:
        what: how the message calls the file, such as "teacher".

    Raises:
        CheckpointError: unreadable, or keys or shapes that do not fit, with the first few named.
    """
    state = load(path)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: not a {what} of this suite (expected a dict of tensors)")
    own = model.state_dict()
    wrong = [f"{key} is missing" for key in own if key not in state]
    wrong += [f"{key} is not part of the model" for key in state if key not in own]
    wrong += [
        f"{key} has shape {tuple(state[key].shape)}, the model {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise CheckpointError(f"{path}: this {what} does not fit the model: {shown}")
    model.load_state_dict(state)
