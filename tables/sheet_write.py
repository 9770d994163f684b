"""Sheets in every format: Markdown, LaTeX, CSV, JSON and a self-contained HTML page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tables.html_page import page
from tables.latex import escape as latex
from tables.markdown import escape as markdown
from tables.markdown import grid as markdown_grid
from tables.sheet import Grid, Item, Sheet


@dataclass(frozen=True)
class SheetPaths:
    """Where the files of one sheet lie."""

    markdown: Path
    latex: Path
    latex_tabular: Path
    csv: Path
    html: Path
    json: Path

    def all(self) -> tuple[Path, ...]:
        """Every path."""
        return tuple(vars(self).values())


def sheet_paths(name: str, out: Path) -> SheetPaths:
    """The paths that sheet `name` has below `out`."""
    return SheetPaths(
        markdown=out / f"{name}.md",
        latex=out / f"{name}.tex",
        latex_tabular=out / f"{name}_tabular.tex",
        csv=out / f"{name}.csv",
        html=out / f"{name}.html",
        json=out / f"{name}.json",
    )


def sheet_files(sheet: Sheet, out: Path) -> dict[Path, bytes]:
    """Every file of a sheet, by path, before any is written."""
    paths = sheet_paths(sheet.name, out)
    words = {
        paths.markdown: sheet_markdown(sheet),
        paths.latex: sheet_latex(sheet),
        paths.latex_tabular: sheet_tabular(sheet),
        paths.csv: sheet_csv(sheet),
        paths.html: page("sheet.html.j2", sheet=sheet),
        paths.json: json.dumps(sheet.summary, indent=2, ensure_ascii=False) + "\n",
    }
    return {path: content.encode() for path, content in words.items()}


def sheet_markdown(sheet: Sheet) -> str:
    """Caption, grids, notes."""
    parts = [f"# {sheet.title}: {sheet.subject}", markdown(sheet.caption)]
    for grid in sheet.grids:
        lines = [[_marked(cell) for cell in line] for line in grid.lines]
        if grid.title:
            parts.append(f"**{markdown(grid.title)}**")
        parts.append(markdown_grid(grid.headings, lines, left=grid.left))
    parts += ["**Notes**", "\n".join(f"- {markdown(note)}" for note in sheet.notes)]
    parts.append(markdown(sheet.provenance))
    return "\n\n".join(part for part in parts if part) + "\n"


def _marked(cell: Item) -> str:
    return f"{cell.words} [{cell.mark}]" if cell.mark else cell.words


def sheet_csv(sheet: Sheet) -> str:
    """The records, with every column that one of them has, in the order of their appearance."""
    columns = dict.fromkeys(key for record in sheet.records for key in record)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(sheet.records)
    return buffer.getvalue()


def sheet_tabular(sheet: Sheet) -> str:
    r"""The bare tabulars, for \input into a document that loads booktabs."""
    head = "% Needs \\usepackage{booktabs}. Rendered; edit the code that renders, not this file."
    tabulars = [
        f"{_title(grid)}{_tabular(grid)}" + ("\n" if grid is sheet.grids[-1] else "\n\n")
        for grid in sheet.grids
    ]
    return f"{head}\n{''.join(tabulars)}"


def sheet_latex(sheet: Sheet) -> str:
    """A document that compiles with pdflatex: caption, tabulars and notes on landscape pages."""
    return "\n".join(
        [
            r"\documentclass[10pt]{article}",
            r"\usepackage[a4paper,landscape,margin=12mm]{geometry}",
            r"\usepackage{booktabs}",
            r"\usepackage{graphicx}",
            r"\pagestyle{empty}",
            r"\setlength{\parindent}{0pt}",
            r"\begin{document}",
            r"\raggedright",
            rf"\textbf{{{latex(sheet.title)}: {latex(sheet.subject)}.}}",
            rf"{latex(sheet.caption)}\par\medskip",
            *(part for grid in sheet.grids for part in _scaled(grid)),
            r"\footnotesize",
            *(rf"{latex(note)}\par\smallskip" for note in (*sheet.notes, sheet.provenance)),
            r"\end{document}",
            "",
        ]
    )


def _scaled(grid: Grid) -> Iterator[str]:
    """A tabular as wide as the page at most."""
    yield r"\sbox0{\footnotesize\setlength{\tabcolsep}{4pt}%"
    yield _tabular(grid) + "}%"
    # With its title in one piece, so that no page ends between the two.
    yield rf"\begin{{minipage}}{{\linewidth}}\raggedright {_title(grid)}%"
    yield r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi"
    yield r"\end{minipage}\par\medskip"


def _title(grid: Grid) -> str:
    return rf"\textbf{{{latex(grid.title)}}}\par\smallskip" + "\n" if grid.title else ""


def _tabular(grid: Grid) -> str:
    columns = "l" * grid.left + "r" * (len(grid.headings) - grid.left)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(latex(heading) for heading in grid.headings) + r" \\",
            r"\midrule",
            *(" & ".join(_latex_cell(cell) for cell in line) + r" \\" for line in grid.lines),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _latex_cell(cell: Item) -> str:
    mark = rf"\textsuperscript{{{latex(cell.mark)}}}" if cell.mark else ""
    words = rf"\emph{{{latex(cell.words)}}}" if cell.tone == "soft" else latex(cell.words)
    return words + mark
