"""Stage `check@<what>`: settings in params.yaml are valid. Runs before anything else, in a second.

`settings`: each of them, the teacher and the dialled experiment, for which everything waits;
`grid`: the cells of the tables, for which only they wait, so that no experiment is refused because
of a cell that will not run. Outputs never change, so a valid change of a setting reruns only the
stages that read it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ofq_core.errors import SettingsError
from ofq_core.files import write_atomic
from ofq_core.settings import StudySettings
from pipelines.params import PARAMS, load_study
from pipelines.stage import stage_main

FOLDER = Path("data/checked")
WHAT = ("settings", "grid")


def checked(study: StudySettings, what: str) -> str:
    """What there is, in words, once it is known to be right.

    Raises:
        SettingsError: one of its runs cannot be.
    """
    if what == "grid":
        study.runs_of_grid()
        return f"{len(study.grid.all_cells())} grid cells"
    if study.teacher.checkpoint is None and study.teacher.pretrained is None:
        study.full_precision(study.teacher.seed)
    return f"study {study.study}, experiment {study.experiment().name}"


def main(argv: list[str]) -> None:
    """Check params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.check", description=__doc__)
    parser.add_argument("--what", choices=WHAT, help="default: all")
    wanted = parser.parse_args(argv).what
    study = load_study()
    wanted = WHAT if wanted is None else (wanted,)
    try:
        found = [checked(study, what) for what in wanted]
    except SettingsError as error:
        raise SettingsError(f"{PARAMS}: {error}") from error
    for what in wanted:
        write_atomic(FOLDER / what, b"The settings in params.yaml are valid.\n")
    print(f"check: {', '.join(found)}")


if __name__ == "__main__":
    stage_main(main, sys.argv[1:])
