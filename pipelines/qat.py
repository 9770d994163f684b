"""Stage `qat`: train the one configuration under `quant` and `seed` in params.yaml."""

from __future__ import annotations

import sys
from pathlib import Path

from ofq_core.settings import RunSettings, StudySettings
from pipelines.alone import alone
from pipelines.params import load_study
from pipelines.prepare import data_folder
from pipelines.stage import stage_main
from pipelines.teacher import WEIGHTS

FOLDER = Path("results/experiment")


def main(argv: list[str]) -> None:
    """Train the dialled experiment into results/experiment/."""
    study = load_study()
    settings = study.experiment()
    with alone(FOLDER):
        _train(study, settings)


def _train(study: StudySettings, settings: RunSettings) -> None:
    from ofq_core.distributed import join_world
    from pipelines.fit import check_runs
    from pipelines.results import publish_files
    from pipelines.training import Inputs, finish, train_run

    with join_world() as world:
        check_runs(study, [settings], world)
        inputs = Inputs(data_folder(study), WEIGHTS)
        result = train_run(settings, inputs, "qat", world=world)
    if not world.main:
        return
    # Metrics of an earlier experiment must not stand beside these weights.
    publish_files(result, FOLDER, outdated=["metrics.json"])
    finish(result)


if __name__ == "__main__":
    stage_main(main, sys.argv[1:], __doc__)
