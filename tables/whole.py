"""Everything that is rendered of a study: all tables, all figures, and the report over them."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tables import text
from tables.figures import Figure, render_figures
from tables.paper import Rendered, render_all
from tables.report import write_report
from tables.runs import read_study

_MAIN = "main"


@dataclass(frozen=True)
class Whole:
    """What was written: tables and figures in the order of the report, and the report."""

    tables: list[Rendered]
    figures: list[Figure]
    report: Path


def render_whole(
    results: Path,
    out: Path,
    teacher: Path | None = None,
    only: Collection[str] | None = None,
    noise: Path | None = None,
) -> Whole:
    """Write every table and figure of the runs below `results`, and index.html, into `out`.

    Args: see `tables.paper.render_all`.

    Raises:
        TableError: one line; the runs are missing, broken, or not comparable.
    """
    tables = render_all(results, out, teacher, only, noise)
    study = read_study(results, only)
    figures = render_figures(study, out)
    report = write_report(
        out,
        study,
        [(table.title, table.paths.markdown, _downloads(table, out)) for table in tables],
        figures,
        agreement(out / f"{_MAIN}.csv"),
    )
    return Whole(tables, figures, report)


def _downloads(table: Rendered, out: Path) -> list[Path]:
    """The files of a table; those of single rows are linked from it."""
    return [path for path in table.paths.all() if path.parent == out]


def agreement(main: Path) -> list[tuple[str, str, str, str]]:
    """Cell, our value, published value and status of each line of the main comparison's CSV."""
    rows = []
    with main.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            bits = "FP32" if line["wbits"] == "32" else f"W{line['wbits']}A{line['abits']}"
            cell = f"{line['label']}, {line['model']}, {bits}"
            ours = f"{float(line['top1_mean']):.2f}" if line["top1_mean"] else text.MISSING
            rows.append((cell, ours, line["published"] or text.MISSING, line["status"]))
    return rows
