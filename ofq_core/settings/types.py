"""Kinds of values that several settings share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

Bits = Literal[2, 3, 4, 5, 6, 7, 8, 32]
LowBits = Literal[2, 3, 4, 5, 6, 7, 8]
Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
CountOrZero = Annotated[int, Field(ge=0, strict=True)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Share = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def whole_number(value: Any) -> Any:
    """Refuse what pydantic's Literal would take for a number: 2.0 and True for 2 and 1."""
    if type(value) is not int:
        raise ValueError("expected a whole number")
    return value
