"""Settings models, and what is wrong with a value in one line: key, value, what is allowed."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Tag, ValidationError

from ofq_core.errors import SettingsError, shortened


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
        lines = [_explain(model, e, prefix) for e in _causes(error)]
        message = "\n".join(f"{source}: {line}" for line in lines)
    raise SettingsError(message)


def _causes(error: ValidationError) -> list[dict[str, Any]]:
    """What is wrong, without what only follows from it.

    A list of which no entry is valid is also too short, a misspelt key is also a missing one.
    """
    found: list[dict[str, Any]] = [dict(e) for e in error.errors(include_url=False)]
    wrong = {e["loc"] for e in found}
    followed = {loc[:length] for loc in wrong for length in range(len(loc))}
    misspelt = {
        (*loc[:-1], key)
        for loc in (e["loc"] for e in found if e["type"] == "extra_forbidden")
        for key in (e["loc"][-1] for e in found if e["type"] == "missing")
        if difflib.get_close_matches(str(loc[-1]), [str(key)])
    }
    return [
        e
        for e in found
        if e["loc"] not in followed and not (e["type"] == "missing" and e["loc"] in misspelt)
    ]


def unknown(places: list[type[Model]], key: str) -> str:
    """'unknown key' with a hint and the keys that the models at that place have."""
    known = list(dict.fromkeys(name for place in places for name in place.model_fields))
    hint = "" if key in known else did_you_mean(key, known)
    return f"unknown key{hint} (known keys: {', '.join(known)})"


# Kinds of mistakes with a message of their own.
OWN = {"data_kind", "unread"}

# What is right, by pydantic's name of the mistake; {} are its numbers.
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "keys with values",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_parsing_size": "a smaller number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "model_type": "keys with values",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "a text that is not empty",
    "string_type": "a text (what looks like a number, true or null is one in quotes)",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
    "tuple_type": "a list",
}


def _explain(model: type[Model], error: dict[str, Any], prefix: str) -> str:
    parts = ["" if part is None else str(part) for part in error["loc"]]
    location, places = _untagged(model, parts)
    key = ".".join(([prefix] if prefix else []) + [_readable(part) for part in location])
    key = key or "settings"
    kind, value = error["type"], error["input"]
    context = {k: f"{v:g}" if type(v) is float else v for k, v in error.get("ctx", {}).items()}
    if kind == "extra_forbidden":
        return f"{key}: {unknown(places, location[-1])}"
    if kind == "missing" and isinstance(error["loc"][-1], int):
        return f"{key}: this entry is missing"
    if kind == "missing":
        return f"{key}: this key is missing"
    if kind == "invalid_key":
        return f"{key}: no key is a number"
    if kind == "value_error":
        reason = str(context["error"])
        # A rule about several keys already names them and their values.
        if isinstance(value, dict):
            return f"{key}: {reason}" if location or prefix else reason
        return f"{key} = {shortened(value)}: {reason}{_allowed(places, location)}"
    if kind in _EXPECTED:
        reason = f"expected {_EXPECTED[kind].format(**context)}"
    elif kind in OWN:
        reason = error["msg"]
    else:
        reason = "this value is not allowed"
    return f"{key} = {shortened(value)}: {reason}"


def _readable(part: str) -> str:
    """A part of a key as a message shows it: one with strange characters in quotes."""
    return part if re.fullmatch(r"[\w.@-]{1,80}", part) else shortened(part)


def models_at(model: type[Model], location: list[str]) -> list[type[Model]]:
    """The (nested) models at a location: none where there is no model, several for a choice."""
    place = _Place([(None, model)])
    for part in location:
        place = place.below(part)
    return place.models


@dataclass(frozen=True)
class _Place:
    """Models, each with the tag by which pydantic calls it in a choice; or a mapping to them."""

    choices: list[tuple[str | None, type[Model]]]
    mapping: bool = False

    @property
    def models(self) -> list[type[Model]]:
        return [] if self.mapping else [model for _, model in self.choices]

    def below(self, part: str) -> _Place:
        """The place under a key: a field, or in a mapping any key, such as a method's name."""
        if self.mapping:
            return _Place(self.choices)
        fields = [model.model_fields[part] for model in self.models if part in model.model_fields]
        return _Place(
            [found for field in fields for found in _choices(field.annotation)],
            any(get_origin(field.annotation) is dict for field in fields),
        )

    def chosen(self, tag: str) -> _Place | None:
        """This place with one model left, if there is a choice with this tag."""
        left = [choice for choice in self.choices if choice[0] == tag]
        return _Place(left, self.mapping) if left and len(self.choices) > 1 else None


def _choices(annotation: Any, tag: str | None = None) -> list[tuple[str | None, type[Model]]]:
    """The models that an annotation names, in its order."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return [(tag, annotation)]
    if get_origin(annotation) is Annotated:
        annotation, *rest = get_args(annotation)
        tag = next((item.tag for item in rest if isinstance(item, Tag)), tag)
        return _choices(annotation, tag)
    return [found for argument in get_args(annotation) for found in _choices(argument)]


def _untagged(model: type[Model], location: list[str]) -> tuple[list[str], list[type[Model]]]:
    """A location of pydantic's as the user writes it, and the models that its last key is of.

    pydantic adds the tag of the choice where a key takes one of several models, and '[key]' where
    the key of a mapping is wrong.
    """
    kept: list[str] = []
    here = above = _Place([(None, model)])
    for part in location:
        if part == "[key]":
            continue
        chosen = here.chosen(part)
        if chosen is not None:
            here = chosen
            continue
        kept.append(part)
        above, here = here, here.below(part)
    return kept, above.models


def _allowed(places: list[type[Model]], location: list[str]) -> str:
    """', allowed: ...' where the last key of a location takes a closed set of values."""
    values: list[Any] = []
    pending: list[Any] = [
        place.model_fields[location[-1]].annotation
        for place in places
        if location and location[-1] in place.model_fields
    ]
    while pending:
        annotation = pending.pop()
        for argument in get_args(annotation):
            if isinstance(argument, int | str):
                values.append(argument)
            else:
                pending.append(argument)
    return f", allowed: {', '.join(str(v) for v in values)}" if values else ""
