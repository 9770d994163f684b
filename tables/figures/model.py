"""What a figure is before and after it is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class MissingData(Exception):  # noqa: N818 - no error: the study has no run that this figure shows
    """The study has not what a figure shows; the message says what is missing, in a sentence."""


@dataclass(frozen=True)
class Drawing:
    """A drawn figure: Matplotlib's object, a caption, and the numbers in it as a table."""

    canvas: Any
    caption: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Figure:
    """A figure of the study. Skipped ones have no files, but a reason."""

    name: str
    title: str
    caption: str
    svg: Path | None
    png: Path | None
    csv: Path | None
    skipped_reason: str | None = None
