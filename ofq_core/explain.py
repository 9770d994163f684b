"""Settings models, and what is wrong with a value in one line: key, value, what is allowed."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from ofq_core.errors import SettingsError


class Model(BaseModel):
    """Base of all settings: immutable, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def did_you_mean(word: str, known: Any) -> str:
    """A hint ', did you mean X?' when a known word is close, else an empty string."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f", did you mean {close[0]!r}?" if close else ""


M = TypeVar("M", bound=Model)


def validated(model: type[M], raw: Any, source: str, prefix: str = "") -> M:
    """Parse `raw` into `model`.

    Args:
        source: file or place that is named in the message.
        prefix: dotted key under which `raw` stands there.

    Raises:
        SettingsError: one line per mistake with key, value and what is allowed.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(model, dict(e), raw, prefix) for e in error.errors()]
        message = "\n".join(f"{source}: {line}" for line in lines)
    raise SettingsError(message)


def unknown(model: type[Model], location: list[str]) -> str:
    """'unknown key' with a hint and the known keys of the model at a location."""
    place = model_at(model, location[:-1])
    known = list(place.model_fields) if place is not None else []
    hint = "" if location[-1] in known else did_you_mean(location[-1], known)
    return f"unknown key{hint} (known keys: {', '.join(known)})"


def _explain(model: type[Model], error: dict[str, Any], raw: Any, prefix: str) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(([prefix] if prefix else []) + location) or "settings"
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{key}: {unknown(model, location)}"
    if kind == "missing":
        return f"{key}: this key is missing"
    if kind == "value_error":
        reason = str(context.get("error", error["msg"]))
        # A rule about several keys already names them and their values.
        if isinstance(error["input"], dict):
            return f"{key}: {reason}"
        return f"{key} = {error['input']!r}: {reason}{_allowed(model, location)}"
    if kind == "literal_error":
        expected = context.get("expected", "")
        return f"{key} = {error['input']!r}: expected {expected}"
    reason = error["msg"].replace("Input should be", "expected")
    return f"{key} = {error['input']!r}: {reason[0].lower()}{reason[1:]}"


def model_at(model: type[Model], location: list[str]) -> type[Model] | None:
    """The (nested) model at a location; None where there is none."""
    current = model
    skip = False
    for part in location:
        if skip:  # a key of a mapping, such as the name of a method
            skip = False
            continue
        field = current.model_fields.get(part)
        annotation = field.annotation if field is not None else None
        models = [
            a
            for a in (annotation, *get_args(annotation))
            if isinstance(a, type) and issubclass(a, Model)
        ]
        if not models:
            return None
        current = models[0]
        skip = get_origin(annotation) is dict
    return current


def _allowed(model: type[Model], location: list[str]) -> str:
    """', allowed: ...' where the key at a location takes a closed set of values."""
    fields = model_at(model, location[:-1])
    if fields is None or not location or location[-1] not in fields.model_fields:
        return ""
    values: list[Any] = []
    pending: list[Any] = [fields.model_fields[location[-1]].annotation]
    while pending:
        annotation = pending.pop()
        for argument in get_args(annotation):
            if isinstance(argument, int | str):
                values.append(argument)
            else:
                pending.append(argument)
    return f", allowed: {', '.join(str(v) for v in values)}" if values else ""
