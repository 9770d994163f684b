"""Stage `check`: every setting in params.yaml is valid. Runs before anything else, in a second.

Its output never changes, so a valid change of a setting reruns only the stages that read it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ofq_core.files import write_atomic
from pipelines.params import load_study
from pipelines.stage import stage_main

OUTPUT = Path("data/settings-checked")


def main(argv: list[str]) -> None:
    """Check params.yaml."""
    study = load_study()
    write_atomic(OUTPUT, b"The settings in params.yaml are valid.\n")
    cells = len(study.grid.all_cells())
    print(f"check: study {study.study}, {cells} grid cells, experiment {study.experiment().name}")


if __name__ == "__main__":
    stage_main(main, sys.argv[1:], __doc__)
