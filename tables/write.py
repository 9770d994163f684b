"""Write all files of a table, or none: everything is rendered before the first file is replaced."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from tables.errors import TableError
from tables.figure import figure_bytes
from tables.html_page import html_page
from tables.latex import latex_document, latex_tabular
from tables.markdown import ROW_MARK, markdown_row, markdown_table
from tables.model import Table
from tables.plain import csv_table, json_summary


@dataclass(frozen=True)
class RenderedPaths:
    """Where the files of one table lie; `rows` has a Markdown file per row, by method."""

    markdown: Path
    latex: Path
    latex_tabular: Path
    csv: Path
    html: Path
    json: Path
    svg: Path
    png: Path
    rows: tuple[Path, ...]

    def all(self) -> tuple[Path, ...]:
        """Every path, rows last."""
        single = [getattr(self, field.name) for field in fields(self) if field.name != "rows"]
        return (*single, *self.rows)


def paths_of(name: str, out: Path, methods: tuple[str, ...]) -> RenderedPaths:
    """The paths that table `name` has below `out`."""
    return RenderedPaths(
        markdown=out / f"{name}.md",
        latex=out / f"{name}.tex",
        latex_tabular=out / f"{name}_tabular.tex",
        csv=out / f"{name}.csv",
        html=out / f"{name}.html",
        json=out / f"{name}.json",
        svg=out / f"{name}.svg",
        png=out / f"{name}.png",
        rows=tuple(out / "rows" / f"{method}.md" for method in methods),
    )


def write_table(table: Table, out: Path) -> RenderedPaths:
    """Render into a temporary folder beside `out`, then move file by file.

    Other files in `out` stay, since a user may point it at a folder of their own; only row files of
    an earlier rendering that this one does not have are removed. TableError if it cannot be
    written.
    """
    paths = paths_of(table.name, out, tuple(row.method for row in table.rows))
    write_files(table_files(table, out), out)
    remove_stale_rows(paths)
    return paths


def table_files(table: Table, out: Path) -> dict[Path, bytes]:
    """Every file of a table, by path, before any is written."""
    return _contents(table, paths_of(table.name, out, tuple(row.method for row in table.rows)))


def remove_stale_rows(paths: RenderedPaths) -> None:
    """Remove the row files of an earlier rendering that this one does not have; TableError."""
    folder = paths.markdown.parent / "rows"
    try:
        for path in folder.glob("*.md"):
            stale = path not in paths.rows
            if stale and path.read_text(encoding="utf-8").startswith(ROW_MARK):
                path.unlink()
    except OSError as error:
        raise TableError(f"{folder}: cannot be written ({error.strerror or error})") from error


def write_files(contents: Mapping[Path, bytes], out: Path) -> None:
    """Write all files, each below `out`, or none; TableError if they cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            for path, content in contents.items():
                staged = staging / path.relative_to(out)
                staged.parent.mkdir(exist_ok=True)
                staged.write_bytes(content)
            for path in contents:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(staging / path.relative_to(out), path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise TableError(f"{out}: cannot be written ({error.strerror or error})") from error


def _contents(table: Table, paths: RenderedPaths) -> dict[Path, bytes]:
    svg, png = figure_bytes(table)
    texts = {
        paths.markdown: markdown_table(table),
        paths.latex: latex_document(table),
        paths.latex_tabular: latex_tabular(table),
        paths.csv: csv_table(table),
        paths.html: html_page(table, svg),
        paths.json: json_summary(table),
    }
    for path, row in zip(paths.rows, table.rows, strict=True):
        texts[path] = markdown_row(table, row)
    contents = {path: words.encode() for path, words in texts.items()}
    return contents | {paths.svg: svg, paths.png: png}
