"""Weights out of a file of any usual shape, with what was taken of it and what was left."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ofq_core.checkpoints.claims import check_pickle, check_zip
from ofq_core.checkpoints.kinds import kind_of, unreadable
from ofq_core.errors import CheckpointError

# Under what keys files hold weights. Averages are taken only where there is nothing else.
_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module")
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema")
# What wrappers put before every key.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# A key that only they have -> whose names these are, and the way out.
_FOREIGN = (
    (
        r"(^|\.)embeddings\.patch_embeddings\.|(^|\.)encoder\.layer\.\d+\.attention\.",
        "Hugging Face transformers: take timm's file of the model (teacher.pretrained = 'timm' "
        "downloads it)",
    ),
    (
        r"^features\.\d+\.\d+\.(attn|norm1)\.|^features\.0\.0\.weight$",
        "torchvision: set teacher.pretrained = 'torchvision'",
    ),
    (r"^encoder\.layers\.encoder_layer_\d+\.", "torchvision: take timm's file of the model"),
)
# How often torch's AveragedModel was updated.
_COUNTED = "n_averaged"
_SHOWN = 6
# Of keys within each other; a dict that holds itself has no end.
_DEEPEST = 4


@dataclass(frozen=True)
class Weights:
    """What a file holds.

    state: name -> tensor, on the CPU, without the prefixes of wrappers. taken: the key of the file
    that the weights were under, or empty. left: the keys of all that was not taken. beside: the
    dict that the weights were in.
    """

    path: Path
    state: dict[str, Tensor]
    taken: str
    left: tuple[str, ...]
    beside: dict[str, Any]

    def says(self) -> str:
        """What was taken and what not, in a few words; empty where there was no choice."""
        left = ", ".join(self.left[:_SHOWN]) + (" ..." if len(self.left) > _SHOWN else "")
        parts = [f"weights of its key {self.taken!r}"] if self.taken else []
        parts += [f"left out: {left}"] if left else []
        return ", ".join(parts)


def read_content(path: Path) -> tuple[Any, bool]:
    """What is in a file that torch or safetensors wrote, on the CPU. Nothing in it is executed.

    Returns:
        The content, and whether this suite wrote it, just so.

    Raises:
        CheckpointError: missing, damaged, of another kind, or it holds more than plain data.
    """
    kind, own = kind_of(path), False
    if kind == "npz":
        raise CheckpointError(
            f"{path} is a NumPy archive: expected what torch or safetensors write"
        )
    if kind == "zip":
        own = check_zip(path)
    elif kind == "pickle":
        check_pickle(path)
    try:
        if kind == "safetensors":
            from safetensors.torch import load_file

            return load_file(path), False
        # As a file: of a path torch looks at the suffix.
        with path.open("rb") as file, warnings.catch_warnings():
            # torch warns of what it refuses a moment later.
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(file, map_location="cpu", weights_only=True), own
    except Exception as error:
        raise unreadable(path, error) from error


def read_weights(path: Path) -> Weights:
    """The tensors of a file, wherever in it they are.

    Raises:
        CheckpointError: see `read_content`; no weights in it, or several, none of them to be
            preferred.
    """
    content, _ = read_content(path)
    beside: dict[str, Any] = {}
    taken: list[str] = []
    left: list[str] = []
    found = content
    while not _is_state(found):
        if len(taken) == _DEEPEST:
            raise CheckpointError(
                f"{path}: no weights in this file within {_DEEPEST} dicts ({'.'.join(taken)}): "
                "save the dict of tensors alone, torch.save(WEIGHTS, NEW)"
            )
        key = _only_key(path, found, ".".join(taken))
        left += [".".join([*taken, str(other)]) for other in found if other != key]
        beside = beside or found
        taken.append(key)
        found = found[key]
    state, dropped = without_prefixes(path, found)
    return Weights(path, state, ".".join(taken), (*left, *dropped), beside)


def foreign_names(state: Mapping[str, Tensor]) -> str:
    """A hint where the names are those of another library, else empty."""
    for pattern, whose in _FOREIGN:
        if any(re.search(pattern, key) for key in state):
            return f" (these are the names of {whose})"
    return ""


def without_prefixes(
    path: Path, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Take off what wrappers put before every key, however often.

    Returns:
        The tensors, and the keys of what is no weight: torch's averages count their steps.

    Raises:
        CheckpointError: a prefix before some keys only.
    """
    names = {key: key.replace("_orig_mod.", "") for key in state}
    others = [name for key, name in names.items() if key != _COUNTED]
    dropped = []
    if len(names) > len(others) > 0 and all(name.startswith("module.") for name in others):
        dropped = [_COUNTED]
        del names[_COUNTED]
    while prefix := next(
        (p for p in _PREFIXES if all(n.startswith(p) for n in names.values())), ""
    ):
        names = {key: name.removeprefix(prefix) for key, name in names.items()}
    if len(set(names.values())) < len(names):
        raise CheckpointError(f"{path}: names that differ in '_orig_mod.' alone")
    for prefix in _PREFIXES:
        some = next((key for key, name in names.items() if name.startswith(prefix)), None)
        if some is not None:
            other = next(key for key, name in names.items() if not name.startswith(prefix))
            raise CheckpointError(
                f"{path}: {some} has the prefix {prefix!r} and {other} has not: expected it before "
                "every key or before none"
            )
    return {name: state[key] for key, name in names.items()}, dropped


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _holds_tensors(value: Any) -> bool:
    """Whether a dict is, or wraps, a dict of tensors."""
    return isinstance(value, dict) and (
        _is_state(value) or any(_is_state(value.get(key)) for key in (*_KEYS, *_AVERAGES))
    )


def _only_key(path: Path, value: Any, where: str) -> str:
    """The one key under which a dict holds weights; plain ones before averages."""
    place = f" under {where!r}" if where else ""
    if isinstance(value, dict):
        for keys in (_KEYS, _AVERAGES):
            found = [key for key in keys if _holds_tensors(value.get(key))]
            if len(found) > 1:
                raise CheckpointError(
                    f"{path}: weights under {' and '.join(map(repr, found))}{place}: save the ones "
                    "that are meant alone, torch.save(content[KEY], NEW)"
                )
            if found:
                return found[0]
        # To say what is wrong with it.
        inner = next((key for key in _KEYS if isinstance(value.get(key), dict)), None)
        if inner is not None and value[inner]:
            return inner
    raise CheckpointError(
        f"{path}: no weights in this file{place} (expected a dict of tensors, alone or under "
        f"{', '.join(_KEYS)}; found {_found(value)})"
    )


def _found(value: Any) -> str:
    """What there is instead of weights."""
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    # Those first that are no tensors.
    items = sorted(value.items(), key=lambda item: isinstance(item[1], Tensor))
    shown = [f"{key!r} of type {type(item).__name__}" for key, item in items[:_SHOWN]]
    return (", ".join(shown) or "nothing") + (" ..." if len(items) > _SHOWN else "")
