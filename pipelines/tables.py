"""Stage `tables`: render the study's tables from result files, and hand the rows to MLflow."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

from ofq_core.errors import OFQError
from ofq_core.settings import StudySettings
from pipelines import tracking
from pipelines.params import load_study
from pipelines.stage import stage_main
from pipelines.teacher import FOLDER as TEACHER

OUT = Path("tables/rendered")


class RenderingError(OFQError):
    """The result files do not make a table."""


def run_names(study: StudySettings) -> set[str]:
    """Folders of the study's runs; DVC keeps those of cells that are no longer in the grid."""
    cells = product(study.grid.methods, study.grid.bits, study.grid.seeds)
    names = {study.cell(*cell).name for cell in cells}
    return names | {study.full_precision(seed).name for seed in study.grid.full_precision_seeds}


def main(argv: list[str]) -> None:
    """Render every table of the study."""
    from tables.errors import TableError
    from tables.render import render

    study = load_study()
    with tracking.background() as tracker:
        try:
            paths = render(
                Path("results") / study.study, OUT, TEACHER / "metrics.json", only=run_names(study)
            )
        except TableError as error:
            raise RenderingError(str(error)) from error
        tracker.rows(OUT, study.study)
    print(f"tables: {paths.markdown}, {paths.latex}, {paths.html}")


if __name__ == "__main__":
    stage_main(main, sys.argv[1:])
