"""Render docs/methods.md from the registry and the headers: `python -m tests.methods.render`.

It also writes tables/methods.json, the labels that the tables show.

Nothing is imported but the registry: a header is the docstring of the file that holds the method.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import NamedTuple

from ofq_core.settings.methods import WEIGHT_METHODS, Option, WeightMethod

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "methods.md"
LABELS = ROOT / "tables" / "methods.json"

HEAD = """# Methods

What `quant.weight` may name: `dvc exp run -S method=<name> -S quant.wbits=3 evaluate`. An option is
dialled with `-S quant.options.<option>=<value>`. A further method: see
[adding-a-method.md](adding-a-method.md).

This page is rendered from the registry (`ofq_core/settings/methods.py`) and from the headers of the
files in `ofq_core/methods/` by `python -m tests.methods.render`. w: latent weights, q: quantized
weights, s: scale, b: bits, qmin and qmax: outer codes. Formulas are written as in the headers.

First and last layer are LSQ with `quant.edge_bits`, whatever the method. The recipe, the teacher
and what else is quantized are the same for all methods.

"""
NOTES_HEAD = """
## What the headers say besides

"""
# A citation is what stands in parentheses and has a year.
_CITATION = re.compile(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")
_DEVIATIONS = re.compile(r"(?:^|\s)Deviations?: (.*)$")
_ASSIGNMENT = re.compile(r"[\w/]+ = ")
# Two spaces part two statements of one line.
_GAP = re.compile(r"([,;]?) {2,}")


class Header(NamedTuple):
    """The docstring of a method's file, taken apart.

    formulas: one a statement. deviations: empty where the header has none. notes: paragraphs.
    """

    title: str
    citation: str
    formulas: tuple[str, ...]
    deviations: str
    notes: tuple[str, ...]


def source(method: WeightMethod) -> Path:
    """The file of a method."""
    return ROOT / (method.quantizer.partition(":")[0].replace(".", "/") + ".py")


def header(path: Path) -> Header:
    """Take the docstring of a file apart."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first, *paragraphs = text.split("\n\n")
    title = first.replace("\n", " ")
    formulas: list[str] = []
    deviations, notes = "", []
    for paragraph in paragraphs:
        if paragraph.startswith("    "):
            formulas += _statements(paragraph)
            continue
        line = paragraph.replace("\n", " ")
        found = _DEVIATIONS.search(line)
        if found is not None:
            deviations, line = found[1], line[: found.start()]
        if line:
            notes.append(line)
    citation = "; ".join(_CITATION.findall(title))
    return Header(title, citation, tuple(formulas), deviations, tuple(notes))


def _statements(block: str) -> list[str]:
    """Statements of a formula, each in one line.

    A line that is indented further, or begins in parentheses, goes on with the one before it.
    """
    statements: list[str] = []
    for line in block.replace("`", "").splitlines():
        text = line.strip()
        deeper = line.startswith("     ") or text.startswith("(")
        if not statements or not deeper:
            statements.append(text)
        elif _ASSIGNMENT.match(text) and not statements[-1].endswith(","):
            statements[-1] += f"; {text}"
        else:
            statements[-1] += f" {text}"
    return [_GAP.sub(lambda gap: (gap[1] or ",") + " ", text) for text in statements]


def page() -> str:
    """The whole page."""
    heads = {name: header(source(method)) for name, method in WEIGHT_METHODS.items()}
    rows = [_row(name, method, heads[name]) for name, method in WEIGHT_METHODS.items()]
    columns = (
        "`method`",
        "name",
        "citation",
        "formula",
        "deviations",
        "options: default, range",
        "bits",
        "with QKR",
        "with CGA",
    )
    notes = [
        "\n\n".join([f"### {method.label} (`{name}`)", heads[name].title, *heads[name].notes])
        for name, method in WEIGHT_METHODS.items()
        if heads[name].notes
    ]
    return HEAD + _table(columns, rows) + NOTES_HEAD + "\n\n".join(notes) + "\n"


def labels() -> str:
    """What tables/methods.json holds: label and whether it trains, in the registry's order."""
    kept = {
        name: {"label": method.label, "trains": method.trains}
        for name, method in WEIGHT_METHODS.items()
    }
    return json.dumps(kept, indent=2) + "\n"


def _row(name: str, method: WeightMethod, head: Header) -> tuple[str, ...]:
    return (
        f"`{name}`",
        method.label + ("" if method.trains else ", not trained"),
        head.citation or "none: common practice",
        "`" + "; ".join(head.formulas) + "`",
        head.deviations or "none",
        "; ".join(_option(key, option) for key, option in method.options.items()) or "none",
        _bits(method.bits),
        _allowed(method.no_qkr),
        _allowed(method.no_cga),
    )


def _option(name: str, option: Option) -> str:
    low, high, default = (f"{value:.6g}" for value in (option.low, option.high, option.default))
    own = "".join(f" ({value:.6g} at {bits} bits)" for bits, value in option.default_at.items())
    return f"`{name}`: {default}{own}, [{low}, {high}], {option.what}"


def _bits(bits: tuple[int, ...]) -> str:
    if len(bits) > 2 and bits == tuple(range(bits[0], bits[-1] + 1)):
        return f"{bits[0]} to {bits[-1]}"
    return ", ".join(map(str, bits))


def _allowed(reason: str) -> str:
    return f"no: {reason}" if reason else "yes"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(_cell(c) for c in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
    LABELS.write_text(labels())
    print(f"{PAGE.name}: {len(WEIGHT_METHODS)} methods")
