"""Stage `tables`: render the study's tables from result files, and hand the rows to MLflow."""

from __future__ import annotations

import sys
from pathlib import Path

from ofq_core.errors import OFQError
from pipelines import tracking
from pipelines.params import load_study
from pipelines.stage import stage_main
from pipelines.teacher import FOLDER as TEACHER

OUT = Path("tables/rendered")


class RenderingError(OFQError):
    """The result files do not make a table."""


def main(argv: list[str]) -> None:
    """Render every table of the study."""
    from tables.errors import TableError
    from tables.render import render, show

    study = load_study()
    with tracking.background() as tracker:
        try:
            render(Path("results") / study.study, OUT, TEACHER / "metrics.json")
        except TableError as error:
            raise RenderingError(str(error)) from error
        tracker.rows(OUT, study.study)
    print(show(OUT))


if __name__ == "__main__":
    stage_main(main, sys.argv[1:])
