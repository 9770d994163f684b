"""Train, evaluate, publish and track one run as a folder under results/<study>/."""

from __future__ import annotations

from pathlib import Path

from ofq_core.settings import RunSettings, StudySettings
from pipelines import tracking
from pipelines.alone import alone
from pipelines.prepare import data_folder
from pipelines.stage import is_main, large_imports
from pipelines.unchanged import check_unchanged


def run_to_folder(
    study: StudySettings, settings: RunSettings, teacher: Path | None, stage: str
) -> None:
    """Produce results/<study>/<run>/, whole or not at all, and hand it to MLflow.

    MLflow is imported by a helper process while this one trains; a tracking server that is down
    costs a message, never the run. Of several processes only the main one writes and tracks.
    """
    folder = Path("results") / settings.study / settings.name
    with alone(folder):
        with tracking.background(active=None if is_main() else False) as tracker:
            # Imported here, so that a wrong setting is reported before torch is loaded.
            with large_imports():
                from ofq_core.distributed import join_world
                from ofq_core.models import import_timm
                from pipelines.fit import check_runs
                from pipelines.results import publish_folder, write_json
                from pipelines.training import Inputs, evaluate_run, finish, train_run

                import_timm()
            inputs = Inputs(data=data_folder(study), teacher=teacher)
            with join_world() as world:
                check_runs(study, [settings], world)
                result = train_run(settings, inputs, stage, world=world)
                metrics = evaluate_run(result, settings, inputs, world)
            if not world.main:
                return
            (result / "training.json").unlink()
            write_json(result / "metrics.json", metrics)
            publish_folder(result, folder)
            tracker.log(folder)
        # Waiting for the tracking server takes time, in which an edit may come.
        check_unchanged()
        finish(result)
    print(f"{stage} {settings.name}: {describe(metrics)}")


def describe(metrics: dict[str, object]) -> str:
    """One line for the log."""
    oscillation = metrics["oscillation"]
    text = (
        f"top-1 {metrics['top1']:.2f} % ({metrics['n_correct']} of {metrics['n_images']} test "
        "images)"
    )
    if metrics["val_top1"] is not None:
        text += f", validation {metrics['val_top1']:.2f} %"
    if isinstance(oscillation, dict):
        text += f", {100 * oscillation['share']:.1f} % of the weights oscillate"
    return text
