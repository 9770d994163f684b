"""All tables and figures of a study, and what agrees with the paper, as one HTML page.

The page loads nothing: styles and figures are in it. Links lead to the files beside it.
"""

import base64
import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tables.errors import TableError
from tables.figures.model import Figure
from tables.figures.style import in_order
from tables.files import flatten, read_json
from tables.html_page import page
from tables.runs import Run, Study

NAME = "index.html"
# Status of a cell -> how it is headed, and what it means.
STATUSES = {
    "within": ("Within", "The difference is within the tolerance that the main comparison states."),
    "outside": (
        "Outside",
        "The difference is larger than the tolerance that the main comparison states.",
    ),
    "unpublished": ("Not published", "No published value was found to compare with."),
    "not run": ("Not run", "There is a published value, and this study has no finished run of it."),
}
_SETTINGS = (
    "model.name",
    "model.img_size",
    "model.embed_dim",
    "model.depth",
    "model.num_heads",
    "data.name",
    "recipe.epochs",
    "recipe.cga_epochs",
    "recipe.batch_size",
    "recipe.lr",
    "recipe.weight_decay",
    "recipe.precision",
    "quant.boundary_range",
)
_SHOWN_VALUES = 4
_SAFE_LINK = re.compile(r"(https?://|(?![a-zA-Z][a-zA-Z0-9+.-]*:)(?!//))[^\s]*")
_INLINE = re.compile(
    r"\\(?P<escaped>[\\|*<>`_\[\]#-])|`(?P<code>[^`]+)`|\*\*(?P<bold>.+?)\*\*"
    r"|\[(?P<words>[^\]]+)\]\((?P<link>[^)\s]+)\)"
)
_NOTES = "<h4>Notes</h4>"
_RULE = re.compile(r":?-+:?")


class Agreement(NamedTuple):
    """One cell beside the paper: words for all, and a key of STATUSES."""

    cell: str
    ours: str
    published: str
    status: str


@dataclass(frozen=True)
class _Section:
    id: str
    title: str
    body: str
    downloads: tuple[tuple[str, str], ...]


def write_report(
    out: Path,
    study: Study,
    tables: Sequence[tuple[str, Path, Sequence[Path]]],
    figures: Sequence[Figure],
    agreement: Sequence[tuple[str, str, str, str]],
) -> Path:
    """Write out/index.html and return its path.

    Args:
        out: the folder of the rendered files; links are relative to it.
        tables: title, the table as Markdown, CSV or a fragment of HTML, and files to link.
        figures: as `render_figures` returns them.
        agreement: cell, our value, the published value, and one of STATUSES.

    TableError if a file cannot be read or written, or a status is unknown.
    """
    from markupsafe import Markup

    rows = [Agreement(*row) for row in agreement]
    unknown = sorted({row.status for row in rows} - STATUSES.keys())
    if unknown:
        raise TableError(f"report: status {unknown[0]!r}, allowed are {', '.join(STATUSES)}")
    counts = Counter(row.status for row in rows)
    content = page(
        "report.html.j2",
        study=str(study.runs[0].settings.get("study", study.folder.name)),
        facts=_facts(study),
        tables=[
            _Section(f"table-{number}", title, Markup(fragment(path)), _downloads(files, out))
            for number, (title, path, files) in enumerate(tables, 1)
        ],
        figures=[
            (figure, _embedded(figure.svg), _downloads(_files(figure), out))
            for figure in figures
            if figure.svg is not None
        ],
        skipped=[figure for figure in figures if figure.svg is None],
        agreement=[
            (status, *STATUSES[status], [row for row in rows if row.status == status])
            for status in STATUSES
        ],
        counts={status: counts[status] for status in STATUSES},
        n_runs=len(study.runs),
        unfinished=study.unfinished,
    )
    path = out / NAME
    staged = out / f".{NAME}.part"
    try:
        out.mkdir(parents=True, exist_ok=True)
        staged.write_text(content, encoding="utf-8")
        os.replace(staged, path)
    except OSError as error:
        raise TableError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path


def fragment(path: Path) -> str:
    """A table file as HTML that is safe to put into the page; by its suffix.

    A `.html` file is taken as it is, since the suite wrote it, but must not be a whole page.
    """
    try:
        words = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read ({error})") from error
    if path.suffix == ".csv":
        return _table_html(list(csv.reader(words.splitlines())), [], escape)
    if path.suffix == ".html":
        if "<html" in words.lower():
            raise TableError(f"{path}: is a whole page, expected a fragment of one")
        return words
    return markdown_html(words)


def markdown_html(words: str) -> str:
    """Headings, paragraphs, lists, pipe tables, **bold**, `code` and links; all else is text.

    The first heading is left out, since the page has the title already; others, and lines all in
    bold, become h4. Notes can be folded.
    """
    parts: list[str] = []
    blocks = re.split(r"\n\s*\n", re.sub(r"<!--.*?-->", "", words, flags=re.DOTALL).strip())
    for place, block in enumerate(blocks):
        lines = block.strip().splitlines()
        if lines and lines[0].startswith("#"):
            title = lines.pop(0)
            if place > 0:
                parts.append(f"<h4>{_inline(title.lstrip('#').strip())}</h4>")
        if not lines:
            continue
        if len(lines) > 1 and lines[0].startswith("|") and _is_rule(lines[1]):
            grid = [_cells(line) for line in lines]
            parts.append(_table_html([grid[0], *grid[2:]], grid[1], _inline))
        elif all(re.match(r"[-*] |  ", line) for line in lines):
            parts.append(_list_html(lines))
            if len(parts) > 1 and parts[-2] == _NOTES:
                notes = parts.pop()
                parts[-1] = f"<details><summary>Notes</summary>{notes}</details>"
        elif len(lines) == 1 and re.fullmatch(r"\*\*[^*]+\*\*", lines[0]):
            parts.append(f"<h4>{_inline(lines[0][2:-2])}</h4>")
        else:
            parts.append(f"<p>{_inline(' '.join(lines))}</p>")
    return "\n".join(parts)


def _is_rule(line: str) -> bool:
    return all(_RULE.fullmatch(cell) for cell in _cells(line))


def _cells(line: str) -> list[str]:
    """The cells of a pipe row; an escaped pipe does not separate."""
    inner = line.strip().removeprefix("|").removesuffix("|")
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", inner)]


def _list_html(lines: Sequence[str]) -> str:
    items: list[str] = []
    for line in lines:
        if line.startswith("  ") and items:
            items[-1] += f" {line.strip()}"
        else:
            items.append(line.strip()[2:])
    return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"


def _table_html(
    grid: Sequence[Sequence[str]], rule: Sequence[str], show: Callable[[str], str]
) -> str:
    """A table with a header row and row headers; it scrolls in a container of its own."""
    if not grid:
        return "<p>No rows.</p>"

    def kind(column: int) -> str:
        right = column < len(rule) and rule[column].endswith(":") and rule[column][0] != ":"
        return ' class="number"' if right else ""

    head = "".join(
        f'<th scope="col"{kind(place)}>{show(cell)}</th>' for place, cell in enumerate(grid[0])
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{show(cell)}</th>'
            if place == 0
            else f"<td{kind(place)}>{show(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in grid[1:]
    )
    return (
        '<div class="scroll" tabindex="0" role="group" aria-label="Table, scrolls sideways">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _inline(words: str) -> str:
    done, place = [], 0
    for match in _INLINE.finditer(words):
        done.append(escape(words[place : match.start()]))
        place = match.end()
        if match["escaped"]:
            done.append(escape(match["escaped"]))
        elif match["code"]:
            done.append(f"<code>{escape(match['code'])}</code>")
        elif match["bold"]:
            done.append(f"<strong>{_inline(match['bold'])}</strong>")
        else:
            done.append(_link(match["words"], match["link"]))
    done.append(escape(words[place:]))
    return "".join(done)


def _link(words: str, target: str) -> str:
    """A link to the web or to a file beside the page; other schemes stay text."""
    if not _SAFE_LINK.fullmatch(target):
        return _inline(words)
    return f'<a href="{escape(target)}">{_inline(words)}</a>'


def _embedded(svg: Path | None) -> str:
    if svg is None:
        return ""
    try:
        content = svg.read_bytes()
    except OSError as error:
        raise TableError(f"{svg}: cannot be read ({error.strerror or error})") from error
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode("ascii")


def _files(figure: Figure) -> list[Path]:
    return [path for path in (figure.svg, figure.png, figure.csv) if path is not None]


def _downloads(files: Sequence[Path], out: Path) -> tuple[tuple[str, str], ...]:
    """What a link says, and where it leads from `out`."""
    return tuple(
        (
            path.suffix.lstrip(".").upper().replace("TEX", "LaTeX").replace("MD", "Markdown"),
            quote(Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()),
        )
        for path in files
    )


def _facts(study: Study) -> list[tuple[str, str]]:
    """What was run, where and from which code, in words."""
    runs = study.runs
    quantized = [run for run in runs if run.wbits < 32] or list(runs)
    facts = [
        (key, _values([run.settings.get(key) for run in quantized]))
        for key in _SETTINGS
        if any(run.settings.get(key) is not None for run in quantized)
    ]
    environments = [_environment(run) for run in runs]
    return [
        ("methods", _values(in_order(run.method for run in runs), shown=None)),
        ("bits", _values([run.bits.upper() for run in quantized])),
        ("seeds", _values([run.seed for run in runs], shown=None)),
        *([("outdated", ", ".join(study.outdated))] if study.outdated else []),
        *facts,
        ("device", _values([run.origin.device for run in runs])),
        ("hardware", _values([found.get("device_name") for found in environments])),
        ("torch", _values([run.origin.torch for run in runs])),
        ("commits", _values([_commit(run) for run in runs])),
    ]


def _values(values: Sequence[object], shown: int | None = _SHOWN_VALUES) -> str:
    """The different values in order of appearance, the first few of them."""
    different = list(
        dict.fromkeys("not known" if value is None else str(value) for value in values)
    )
    words = ", ".join(different[:shown])
    hidden = 0 if shown is None else len(different) - shown
    return f"{words} and {hidden} more" if hidden > 0 else words


def _commit(run: Run) -> str | None:
    if run.origin.commit is None:
        return None
    return run.origin.commit[:10] + (" (with local changes)" if run.origin.dirty else "")


def _environment(run: Run) -> Mapping[str, object]:
    path = run.folder / "env.json"
    return flatten(read_json(path)) if path.exists() else {}
