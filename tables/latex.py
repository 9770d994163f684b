"""The table as LaTeX: a bare booktabs tabular, and a document that compiles by itself."""

from tables import text
from tables.model import Cell, Row, Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: rf"\ensuremath{{{character}}}" for character in "<>|"},
    "`": r"\char96{}",
    "±": r"\ensuremath{\pm}",
    "\N{MINUS SIGN}": r"\ensuremath{-}",
    "—": "---",
    "Δ": r"\ensuremath{\Delta}",
    **{character: f"\\{character}" for character in "&%$#_"},
}
_PER_BITS = 3


def escape(words: str) -> str:
    """Text as LaTeX shows it literally."""
    return "".join(_SPECIAL.get(character, character) for character in words)


def latex_tabular(table: Table) -> str:
    r"""The bare tabular, for \input into a document that loads booktabs."""
    columns = len(table.columns)
    group = r"rrr@{\hspace{14pt}}"
    lines = [
        "% Needs \\usepackage{booktabs}. Rendered; edit the specification, not this file.",
        rf"\begin{{tabular}}{{l{group * columns}{'r' * columns}}}",
        r"\toprule",
        " & ".join(["", *(_span(_PER_BITS, table.heading(bits)) for bits in table.columns)])
        + f" & {_span(columns, escape(table.published_title))} \\\\",
        _rules(columns),
        " & ".join(
            ["Method"]
            + ["Top-1", rf"\ensuremath{{\Delta}} {escape(table.baseline_label)}", r"Osc.\,\%"]
            * columns
            + [table.heading(bits) for bits in table.columns]
        )
        + r" \\",
        r"\midrule",
        *(_line(table, row) + (r" \addlinespace" if row.spans else "") for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def latex_document(table: Table) -> str:
    """A document that compiles with pdflatex: caption, tabular and notes on a landscape page."""
    counts = {cell.n for row in table.rows for cell in row.cells if cell.n}
    seeds = f"n = {counts.pop()} seeds in every cell" if len(counts) == 1 else "n in parentheses"
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
            rf"\textbf{{{escape(table.title)}: {escape(table.subject)}.}}",
            f"{escape(table.caption)} {escape(seeds)}.",
            r"Superscripts: trust in the published value, see the notes.\par\medskip",
            r"\sbox0{\footnotesize\setlength{\tabcolsep}{4pt}%",
            latex_tabular(table).rstrip() + "}%",
            # Scale down only what is too wide: a narrow table must not be blown up.
            r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi\par\medskip",
            r"\footnotesize",
            *(rf"{escape(note)}\par\smallskip" for note in (*table.notes, table.provenance)),
            r"\end{document}",
            "",
        ]
    )


def _line(table: Table, row: Row) -> str:
    columns = len(table.columns)
    if row.spans:
        cell = row.cells[0]
        fields = [_span(_PER_BITS * columns, _top1(table, cell)), _span(columns, _published(cell))]
    else:
        fields = [
            field
            for cell in row.cells
            for field in (
                _top1(table, cell),
                escape(text.difference(cell)),
                escape(text.oscillation(cell)),
            )
        ]
        fields += [_published(cell) for cell in row.cells]
    return " & ".join([escape(row.label), *fields]) + r" \\"


def _top1(table: Table, cell: Cell) -> str:
    """n is left to the caption where all cells have the same."""
    counts = {other.n for row in table.rows for other in row.cells if other.n}
    return escape(text.top1(cell) if len(counts) == 1 else text.top1_and_n(cell))


def _published(cell: Cell) -> str:
    if cell.published.trust is None:
        return rf"\emph{{{escape(text.published(cell))}}}"
    return rf"{escape(text.published(cell))}\textsuperscript{{{text.trust_mark(cell)}}}"


def _span(columns: int, words: str) -> str:
    return rf"\multicolumn{{{columns}}}{{c}}{{{words}}}"


def _rules(columns: int) -> str:
    ends = [(2 + _PER_BITS * column, 1 + _PER_BITS * (column + 1)) for column in range(columns)]
    first = 2 + _PER_BITS * columns
    return " ".join(
        rf"\cmidrule(lr){{{start}-{end}}}" for start, end in [*ends, (first, first + columns - 1)]
    )
