"""Stage `tables`: render every table and figure of the study, and hand the rows to MLflow."""

from __future__ import annotations

import sys
from pathlib import Path

from ofq_core.errors import OFQError
from ofq_core.settings import StudySettings
from pipelines import tracking
from pipelines.noise import noise_file
from pipelines.params import load_study
from pipelines.stage import stage_main
from pipelines.teacher import FOLDER as TEACHER

OUT = Path("tables/rendered")


class RenderingError(OFQError):
    """The result files do not make a table."""


def run_names(study: StudySettings) -> set[str]:
    """Folders of the study's runs; DVC keeps those of cells that are no longer in the grid."""
    names = {study.cell(*cell).name for cell in study.grid.all_cells()}
    return names | {study.full_precision(seed).name for seed in study.grid.full_precision_seeds}


def main(argv: list[str]) -> None:
    """Render the study."""
    from tables.errors import TableError
    from tables.whole import render_whole

    study = load_study()
    with tracking.background() as tracker:
        try:
            whole = render_whole(
                Path("results") / study.study,
                OUT,
                TEACHER / "metrics.json",
                run_names(study),
                noise_file(study),
            )
        except TableError as error:
            raise RenderingError(str(error)) from error
        tracker.rows(OUT, study.study)
    for figure in whole.figures:
        if figure.skipped_reason is not None:
            print(f"tables: no figure {figure.name}: {figure.skipped_reason}")
    print(f"tables: {len(whole.tables)} tables and their figures: {whole.report}")


if __name__ == "__main__":
    stage_main(main, sys.argv[1:], __doc__)
