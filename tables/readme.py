"""Put the reference table and figure into README.md: `python -m tables.readme`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tables.errors import TableError, command_main

README = Path("README.md")
RENDERED = Path("tables/reference/digits_full/rendered")
BEGIN, END = "<!-- table:begin -->\n", "<!-- table:end -->\n"


def block(rendered: Path = RENDERED) -> str:
    """Caption, first table and figure of the rendered reference, as Markdown.

    TableError if there is no rendered reference.
    """
    path = rendered / "ablation.md"
    if not path.is_file():
        raise TableError(f"{path}: no rendered reference; run python -m tables.reference first")
    sections = path.read_text(encoding="utf-8").split("\n\n")
    first = next(i for i, section in enumerate(sections) if section.startswith("|"))
    parts = [
        *sections[first - 1 : first + 1],
        f"[All of the table, with its notes]({path.as_posix()})",
        f"![Top-1 and share of oscillating weights by bit width]({(rendered / 'ablation.svg')})",
    ]
    return "\n" + "\n\n".join(parts) + "\n\n"


def with_block(readme: str, content: str) -> str:
    """`readme` with everything between the markers replaced; TableError if they are missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise TableError(f"{README}: the markers {BEGIN.strip()} and {END.strip()} are missing")
    return before + begin + content + end + after


def main() -> int:
    """The command line; returns the exit status."""
    try:
        README.write_text(with_block(README.read_text(encoding="utf-8"), block()), encoding="utf-8")
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{README}: table and figure of {RENDERED}")
    return 0


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m tables.readme", description=__doc__).parse_args()
    command_main(main)
