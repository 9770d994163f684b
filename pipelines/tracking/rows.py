"""The rendered tables, handed to the parent runs of their rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofq_core.files import parse_json

from .errors import TrackingError, first_line
from .labels import NOTE, RENDERED
from .record import EXPECTED_NAME, MAX_FILE_BYTES, NAME, digest_of
from .store import Outcome, Store

# A study may have no row of the ablation; of what both have, the ablation's numbers count.
TABLES = ("methods", "ablation")
_BITS = re.compile(r"w\d+a\d+")
_MAX_NOTE = 5000


def attach_rows(store: Store, rendered: Path, study: str) -> dict[str, Outcome]:
    """Attach `rows/<method>.md`, the tables' files and their means to each row's parent run.

    Raises:
        TrackingError: `rendered` holds no table, a name is none, or the store refused.
    """
    if not NAME.fullmatch(study):
        raise TrackingError(f"study {study!r}: {EXPECTED_NAME}")
    there = [name for name in TABLES if (rendered / f"{name}.json").is_file()]
    cells: dict[str, dict[str, float]] = {}
    for name in there or TABLES[-1:]:
        for method, row in _read_table(rendered / f"{name}.json").items():
            cells.setdefault(method, {}).update(row)
    paths = [path for name in there for path in sorted(rendered.glob(f"{name}.*"))]
    table = tuple(path for path in paths if _small(path))
    outcomes: dict[str, Outcome] = {}
    for method, row in cells.items():
        text = rendered / "rows" / f"{method}.md"
        files = (text, *table) if text.is_file() else table
        tags = {RENDERED: digest_of(files)}
        if text.is_file():
            tags[NOTE] = text.read_text(encoding="utf-8")[:_MAX_NOTE]
        outcomes[method] = store.attach_row(study, method, row, tags, files, RENDERED)
    return outcomes


def _small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= MAX_FILE_BYTES


def _read_table(path: Path) -> dict[str, dict[str, float]]:
    """Method -> `w2a2.top1_mean` -> value, from method -> w2a2 -> top1_mean -> value."""
    try:
        loaded = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrackingError(f"{path} is missing: render the tables first") from None
    except (OSError, ValueError) as error:
        raise TrackingError(f"{path} cannot be read: {first_line(error)}") from error
    rows = {
        method: _numbers(cells)
        for method, cells in (loaded.items() if isinstance(loaded, dict) else ())
        if isinstance(cells, Mapping) and any(_BITS.fullmatch(key) for key in cells)
    }
    for method in rows:
        if not NAME.fullmatch(method):
            raise TrackingError(f"{path} has a row {method!r}: {EXPECTED_NAME}")
    if not rows:
        raise TrackingError(f"{path} holds no table row (method -> w2a2 -> values)")
    return rows


def _numbers(cells: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{bits}.{name}": float(value)
        for bits, cell in cells.items()
        if _BITS.fullmatch(bits) and isinstance(cell, Mapping)
        for name, value in cell.items()
        if isinstance(value, (int, float))
    }
