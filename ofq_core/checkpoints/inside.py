"""What must be inside a training checkpoint, so that a run that goes on cannot trip later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Where -> what must be there; the rest follows from the tensors and from `Progress`.
_KEYS = {
    ("optimizer",): ("state", "param_groups"),
    ("tracker",): (
        "state",
        "first_scales",
        "samples",
        "trajectory",
        "step",
        "before",
        "flips_before",
        "steps_before",
    ),
    ("tracker", "samples"): ("phase", "epoch", "paths", "signs"),
}


def differences(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
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


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Which tensors hold NaN or infinity."""
    return [f"{key} holds NaN or infinity" for key in state if not state[key].isfinite().all()]


def wrong_inside(content: Mapping[str, Any]) -> str | None:
    """The first thing that is missing in a checkpoint or contradicts the rest of it, or None."""
    from ofq_core.training.progress import Progress

    for where, keys in _KEYS.items():
        part: Any = content
        for name in where:
            part = part[name]
        if not isinstance(part, dict):
            return f"{'.'.join(where)} is no dict"
        missing = [key for key in keys if key not in part]
        if missing:
            return f"no {'.'.join([*where, missing[0]])}"
    model, averaged = content["model"], content["averaged"]
    if not _is_state(model):
        return "model is no dict of tensors"
    wrong = _unlike(Progress().state_dict(), content["progress"], "progress")
    if wrong:
        return wrong
    states = {"model": model}
    if content["progress"]["best_state"]:
        states["progress.best_state"] = content["progress"]["best_state"]
    if averaged is not None:
        if not _is_state(averaged) or "n_averaged" not in averaged:
            return "averaged is no average"
        states["averaged"] = {
            key.removeprefix("module."): averaged[key] for key in averaged if key != "n_averaged"
        }
    for name, state in states.items():
        if not _is_state(state):
            return f"{name} is no dict of tensors"
        found = differences(state, model) + not_finite(state)
        if found:
            return f"{name}: {found[0]}"
    return _wrong_optimizer(content["optimizer"], model)


def _wrong_optimizer(optimizer: Mapping[str, Any], model: Mapping[str, Tensor]) -> str | None:
    """Its tensors have no names: every shape occurs at most as often as in the model."""
    states, groups = optimizer["state"], optimizer["param_groups"]
    if not isinstance(states, dict) or not isinstance(groups, list):
        return "optimizer.state is no dict, or optimizer.param_groups no list"
    if not all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
    ):
        return "no optimizer.param_groups.params"
    known = {number for group in groups for number in group["params"]}
    shapes: Counter[torch.Size] = Counter()
    names: set[str] | None = None
    for number, state in states.items():
        where = f"optimizer.state.{number}"
        if number not in known or not isinstance(state, dict):
            return f"{where} belongs to no parameter"
        if names is None:
            names = set(state)
        if set(state) != names:
            return f"{where} has not the keys of the others"
        own = {value.shape for value in state.values() if isinstance(value, Tensor) and value.ndim}
        if len(own) > 1:
            return f"{where} has two shapes"
        shapes.update(own)
    other = shapes - Counter(value.shape for value in model.values())
    return f"optimizer.state has a shape {tuple(min(other))} too many" if other else None


def _unlike(expected: Any, found: Any, where: str) -> str | None:
    """Whether a value is of the kind of a fresh one; None stands for a number or None."""
    if expected is None:
        return None if found is None or isinstance(found, float) else f"{where} is no number"
    if isinstance(expected, Tensor):
        if isinstance(found, Tensor) and (found.shape, found.dtype) == (
            expected.shape,
            expected.dtype,
        ):
            return None
        return f"{where} is no {_type(expected)} of shape {tuple(expected.shape)}"
    if type(found) is not type(expected):
        return f"{where} is a {type(found).__name__}, not a {type(expected).__name__}"
    if isinstance(expected, dict) and expected:
        missing = [key for key in expected if key not in found]
        unknown = [key for key in found if key not in expected]
        if missing or unknown:
            return f"no {where}.{missing[0]}" if missing else f"{where}.{unknown[0]} is not known"
        pairs = [(key, expected[key], found[key]) for key in expected]
    elif isinstance(expected, list | tuple) and expected:
        if len(found) != len(expected):
            return f"{where} has {len(found)} entries, not {len(expected)}"
        pairs = [(str(i), *pair) for i, pair in enumerate(zip(expected, found, strict=True))]
    else:
        return None
    return next((w for key, a, b in pairs if (w := _unlike(a, b, f"{where}.{key}"))), None)


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, Tensor) for item in value.values())


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
