"""Stage `evaluate`: the test accuracy of the dialled experiment, and its MLflow run."""

from __future__ import annotations

import sys

from pipelines import tracking
from pipelines.alone import alone
from pipelines.params import load_study
from pipelines.prepare import data_folder
from pipelines.qat import FOLDER
from pipelines.run_folder import describe
from pipelines.stage import is_main, stage_main
from pipelines.teacher import WEIGHTS
from pipelines.unchanged import check_unchanged


def main(argv: list[str]) -> None:
    """Evaluate results/experiment/ and write its metrics.json."""
    study = load_study()
    with alone(FOLDER), tracking.background(active=None if is_main() else False) as tracker:
        from ofq_core.distributed import join_world
        from pipelines.results import read_settings, write_json
        from pipelines.training import Inputs, evaluate_run

        settings = read_settings(FOLDER)
        with join_world() as world:
            inputs = Inputs(data_folder(study), WEIGHTS)
            metrics = evaluate_run(FOLDER, settings, inputs, world)
        if not world.main:
            return
        check_unchanged()
        write_json(FOLDER / "metrics.json", metrics)
        tracker.log(FOLDER)
    print(f"evaluate {settings.name}: {describe(metrics)}")


if __name__ == "__main__":
    stage_main(main, sys.argv[1:], __doc__)
