"""A table as words: for those whose cells are not one accuracy per method and bit width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tables import seeds, text

Tone = Literal["", "soft", "good", "bad"]


class Item(NamedTuple):
    """A cell as it reads. mark: trust in a published value, where it is not the authors' own.

    tone: how much it asks to be looked at, for formats that have colours.
    """

    words: str
    mark: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Grid:
    """Headings and lines of one part of a table; the first `left` columns hold words."""

    title: str
    headings: tuple[str, ...]
    lines: tuple[tuple[Item, ...], ...]
    left: int = 1


@dataclass(frozen=True)
class Sheet:
    """A table ready to be written.

    records: the lines of the CSV file, unrounded, None where nothing is known. summary: what the
    JSON file holds: nested mappings that end in numbers.
    """

    name: str
    title: str
    subject: str
    caption: str
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]
    provenance: str
    records: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any] = field(default_factory=dict)


def item(words: str | Item, mark: str = "", tone: Tone = "") -> Item:
    """A cell; what there is no value for reads softly."""
    if isinstance(words, Item):
        return words
    return Item(words, mark, tone or ("soft" if words == text.MISSING else ""))


def line(*cells: str | Item) -> tuple[Item, ...]:
    """A line of a grid."""
    return tuple(item(cell) for cell in cells)


def grid(
    title: str,
    headings: Sequence[str],
    lines: Sequence[tuple[Item, ...]],
    left: int = 1,
) -> Grid:
    """A grid without the columns of numbers in which no line has any; ValueError if ragged."""
    filled = [
        column < left or any(one[column].words != text.MISSING for one in lines)
        for column in range(len(headings))
    ]

    def kept(cells: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(cell for cell, keep in zip(cells, filled, strict=True) if keep)

    return Grid(title, kept(headings), tuple(kept(one) for one in lines), left)


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals, or a dash."""
    return text.MISSING if value is None else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """A share in percent, without the sign."""
    return number(None if share is None else 100 * share)


def quantity(value: float | None, unit: str = "") -> str:
    """Three digits with a decimal prefix, such as `4.62 G` or `25.4 kB`."""
    if value is None:
        return text.MISSING
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # What would round up to 1000 of a smaller prefix belongs to the larger one.
        if abs(value) >= 0.9995 * factor:
            return f"{_three(value / factor)} {prefix}{unit}"
    return f"{_three(value)} {unit}".rstrip()


def _three(value: float) -> str:
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"


def mean_and_spread(values: Sequence[float]) -> str:
    """`94.12 ± 0.41`, or a dash where there is no value."""
    if not values:
        return text.MISSING
    return text.fixed(seeds.mean(values)) + text.spread(seeds.spread(values))


def known(values: Mapping[str, float | None]) -> dict[str, float]:
    """What is known; metric tools compare numbers only."""
    return {key: value for key, value in values.items() if value is not None}
