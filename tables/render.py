"""Render a table: `python -m tables.render --results results/digits --out tables/rendered`."""

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tables.errors import TableError, command_main

if TYPE_CHECKING:
    from tables.write import RenderedPaths


def render(
    results: Path,
    out: Path,
    teacher: Path | None = None,
    table: str = "ablation",
    only: Collection[str] | None = None,
) -> "RenderedPaths":
    """Read the runs below `results` and write every format of `table` into `out`.

    `only` names the run folders that count, by default all. `teacher` is an optional JSON file with
    the teacher's top1 (percent), n_images and epochs. TableError, with a one-line message and
    nothing written, if the runs are missing, broken, or not comparable.
    """
    # Late, so that --show and --help do not wait for the template engine.
    from tables.build import build
    from tables.published import PublishedNumbers
    from tables.runs import read_study
    from tables.spec import load_spec
    from tables.write import write_table

    spec = load_spec(table)
    return write_table(
        build(read_study(results, only), spec, PublishedNumbers(), out, teacher), out
    )


def show(out: Path, table: str = "ablation") -> str:
    """The rendered Markdown and the paths to open; TableError if nothing is rendered yet."""
    markdown = out / f"{table}.md"
    try:
        words = markdown.read_text(encoding="utf-8")
    except OSError as error:
        raise TableError(
            f"{markdown}: not rendered yet; run python -m tables.render --results ... first"
        ) from error
    shown = [("HTML", f"{table}.html"), ("LaTeX", f"{table}.tex"), ("Markdown", f"{table}.md")]
    return (
        words + "\n" + "\n".join(f"{kind:<9}{os.path.relpath(out / name)}" for kind, name in shown)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 1 with one line on stderr after an error."""
    parser = argparse.ArgumentParser(prog="python -m tables.render", description=__doc__)
    parser.add_argument("--results", type=Path, help="folder of one study, such as results/digits")
    parser.add_argument(
        "--out", type=Path, default=Path("tables/rendered"), help="folder of the rendered files"
    )
    parser.add_argument(
        "--teacher", type=Path, help="the teacher's metrics (JSON), quoted in the notes"
    )
    parser.add_argument(
        "--table", default="ablation", help="name of a specification in tables/specs"
    )
    parser.add_argument(
        "--show", action="store_true", help="print what is already rendered, render nothing"
    )
    options = parser.parse_args(arguments)
    if options.results is None and not options.show:
        parser.error("--results is needed, unless --show prints what is already rendered")
    try:
        if not options.show:
            render(options.results, options.out, options.teacher, options.table)
        print(show(options.out, options.table))
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    command_main(main)
