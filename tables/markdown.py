"""The table as Markdown, in narrow parts so that it also reads well in a terminal."""

from collections.abc import Callable, Sequence

from tables import text
from tables.model import Cell, Row, Table

ROW_MARK = "<!-- one row of a rendered table; rendering again replaces it -->"


def markdown_table(table: Table) -> str:
    """Accuracy beside the published values, difference to the baseline, oscillation, notes."""
    quantized = [row for row in table.rows if not row.spans]
    headings = [table.heading(bits) for bits in table.columns]
    compared = [row for row in quantized if not row.cells[0].is_baseline]
    parts = [
        f"# {table.title}: {table.subject}",
        "**Test top-1 (%)**, mean ± sample standard deviation (n seeds). "
        f"Right: {table.published_title}, with its trust level (see the notes).",
        grid(
            ["Method", *headings, *(f"Publ. {heading}" for heading in headings)],
            [
                [row.label, *_across(table, row, text.top1_and_n), *_across(table, row, _published)]
                for row in table.rows
            ],
        ),
        f"**Difference to {table.baseline_label}** in percentage points, "
        "mean ± sample standard deviation of the per-seed differences.",
        grid(
            ["Method", *headings],
            [[row.label, *_across(table, row, text.difference)] for row in compared],
        ),
        *_blocks(table, headings),
        "**Oscillating weights (%)**, mean over seeds.",
        grid(
            ["Method", *headings],
            [[row.label, *_across(table, row, text.oscillation)] for row in quantized],
        ),
        "**Notes**",
        "\n".join(f"- {escape(note)}" for note in table.notes),
        f"The runs behind each row: {', '.join(_row_link(row) for row in table.rows)}.",
        escape(table.provenance),
    ]
    return "\n\n".join(parts) + "\n"


def markdown_row(table: Table, row: Row) -> str:
    """One row with every seed and its run folder, as a document for `rows/` beside the table."""
    headings = [
        "Bits",
        "Top-1 (%)",
        f"Difference to {table.baseline_label}",
        "Oscillating (%)",
        table.published_title,
    ]
    lines = [
        [
            f"W{cell.wbits}A{cell.abits}",
            *(show(cell) for show in (text.top1_and_n, text.difference, text.oscillation)),
            text.published(cell) + (f" ({cell.published.trust})" if cell.published.trust else ""),
        ]
        for cell in row.cells
    ]
    seeds = [
        [
            f"W{cell.wbits}A{cell.abits}",
            str(seed.seed),
            text.fixed(seed.top1),
            f"[{_name(seed.folder)}](../{seed.folder})",
        ]
        for cell in row.cells
        for seed in cell.seeds
    ]
    parts = [ROW_MARK, f"# {row.label}: {table.subject}", grid(headings, lines)]
    if seeds:
        parts.append(grid(["Bits", "Seed", "Top-1 (%)", "Run"], seeds, literal=False))
    parts += [
        f"{text.MISSING} W{cell.wbits}A{cell.abits}: {cell.reason}."
        for cell in row.cells
        if cell.reason
    ]
    return "\n\n".join(parts) + "\n"


def _blocks(table: Table, headings: Sequence[str]) -> list[str]:
    """What another fidelity changes, where the study has rows of one."""
    rows = [row for row in table.rows if row.block]
    if not rows:
        return []
    return [
        "**Difference to the same method at the study's own fidelity** in percentage points, "
        "mean ± sample standard deviation of the per-seed differences.",
        grid(
            ["Method", *headings],
            [[row.label, *_across(table, row, text.difference_of_block)] for row in rows],
        ),
    ]


def _across(table: Table, row: Row, show: Callable[[Cell], str]) -> list[str]:
    return [show(row.cell(column)) for column in range(len(table.columns))]


def _published(cell: Cell) -> str:
    return text.published(cell) + (f" [{text.trust_mark(cell)}]" if cell.published.trust else "")


def _row_link(row: Row) -> str:
    return f"[{escape(row.label)}](rows/{row.method}.md)"


def _name(folder: str) -> str:
    return folder.rsplit("/", 1)[-1]


def escape(words: str) -> str:
    """Words as Markdown shows them literally."""
    for character in "\\|*<>`":
        words = words.replace(character, f"\\{character}")
    return words


def grid(
    headings: Sequence[str], lines: Sequence[Sequence[str]], literal: bool = True, left: int = 1
) -> str:
    """A pipe table with padded columns: `left` columns of words, then numbers at the right.

    `literal`: nothing in a cell is Markdown.
    """
    cells = [[escape(cell) if literal else cell for cell in line] for line in (headings, *lines)]
    widths = [max(3, *(len(line[column]) for line in cells)) for column in range(len(headings))]
    rule = [
        "-" * width if column < left else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]

    def joined(line: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    return "\n".join(joined(line) for line in (cells[0], rule, *cells[1:]))
