"""Kinds of values that several settings share."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

# A name becomes that of folders and files, here and on other people's machines.
MAX_NAME = 100
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def whole_number(value: Any) -> Any:
    """Refuse what pydantic's Literal would take for a number: 2.0 and True for 2 and 1."""
    if type(value) is not int:
        raise ValueError("expected a whole number")
    return value


def _true_false_or_text(value: Any) -> Any:
    """Refuse what pydantic's Literal would take for true and false: 1 and 0."""
    if not isinstance(value, bool | str):
        raise ValueError("expected true, false or a text")
    return value


def _name(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value) is None:
        raise ValueError(
            "expected letters, digits, '_', '.' and '-', the first one a letter or a digit"
        )
    if len(value) > MAX_NAME:
        raise ValueError(f"expected at most {MAX_NAME} characters, found {len(value)}")
    if value.endswith("."):
        raise ValueError("expected a name without a dot at its end, which Windows takes away")
    if _DEVICES.fullmatch(value):
        raise ValueError("expected another name: on Windows this one is a device")
    return value


Bits = Annotated[Literal[2, 3, 4, 5, 6, 7, 8, 32], BeforeValidator(whole_number)]
EdgeBits = Annotated[Literal[8, 32], BeforeValidator(whole_number)]
LowBits = Literal[2, 3, 4, 5, 6, 7, 8]
Channels = Annotated[Literal[1, 3], BeforeValidator(whole_number)]
Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Count = Annotated[int, Field(ge=1, le=10**9, strict=True)]
# For what takes memory or time for each of it.
SmallCount = Annotated[int, Field(ge=1, le=100_000, strict=True)]
# Blocks of a model: building them takes seconds for each thousand.
Depth = Annotated[int, Field(ge=1, le=1000, strict=True)]
CountOrZero = Annotated[int, Field(ge=0, le=100_000, strict=True)]
Text = Annotated[str, StringConstraints(strict=True, min_length=1)]
Name = Annotated[Text, AfterValidator(_name)]
Flag = Annotated[bool, Field(strict=True)]
FlagOrAuto = Annotated[Literal[True, False, "auto"], BeforeValidator(_true_false_or_text)]
# Numbers: a whole one is one too; true is none, nor is a text.
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
OpenShare = Annotated[float, Field(gt=0, lt=1, strict=True)]
Probability = Annotated[float, Field(ge=0, le=1, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True)]
NotNegative = Annotated[float, Field(ge=0, strict=True)]
