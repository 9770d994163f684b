"""Stage `teacher`: the full-precision model that every student starts from and learns from."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ofq_core.settings import StudySettings
from pipelines.params import load_study
from pipelines.prepare import data_folder
from pipelines.stage import stage_main

FOLDER = Path("results/teacher")
WEIGHTS = FOLDER / "teacher.pt"


def main(argv: list[str]) -> None:
    """Train the teacher, or take the checkpoint that the settings name, and evaluate it."""
    study = load_study()
    if study.teacher.checkpoint is None:
        train(study)
    else:
        adopt(study, Path(study.teacher.checkpoint))


def train(study: StudySettings) -> None:
    """Train by the teacher's recipe and seed."""
    from pipelines.results import publish_folder, write_json
    from pipelines.training import Inputs, evaluate_run, finish, train_run

    settings = study.full_precision(study.teacher.seed)
    inputs = Inputs(data=data_folder(study), teacher=None)
    result = train_run(settings, inputs, "teacher")
    metrics = evaluate_run(result, settings, inputs)
    write_json(result / "metrics.json", {**metrics, "epochs": settings.recipe.epochs})
    (result / "student.pt").replace(result / "teacher.pt")
    publish_folder(result, FOLDER)
    finish(result)
    report(metrics)


def adopt(study: StudySettings, checkpoint: Path) -> None:
    """Check that a given checkpoint fits the model, evaluate it and take it as the teacher."""
    from ofq_core import checkpoints
    from ofq_core.data import load_prepared
    from ofq_core.evaluation import evaluate
    from ofq_core.models import build_model
    from ofq_core.training import make_deterministic
    from pipelines.results import publish_folder, write_json, write_settings
    from pipelines.training import PARTIAL

    settings = study.full_precision(study.teacher.seed)
    make_deterministic(settings.seed, settings.recipe.threads or 1)
    model = build_model(settings.model, settings.seed)
    checkpoints.load_weights(model, checkpoint, "teacher")
    data = load_prepared(data_folder(study))
    metrics = evaluate(model, data, data.test, settings.recipe.batch_size).as_dict()
    result = PARTIAL / "teacher-adopted"
    shutil.rmtree(result, ignore_errors=True)
    checkpoints.save(result / WEIGHTS.name, model.state_dict())
    write_settings(result / "settings.yaml", settings)
    write_json(result / "metrics.json", {**metrics, "source": str(checkpoint)})
    publish_folder(result, FOLDER)
    report(metrics)


def report(metrics: dict[str, float]) -> None:
    """One line for the log."""
    print(f"teacher: top-1 {metrics['top1']:.2f} % on {metrics['n_images']} test images")


if __name__ == "__main__":
    stage_main(main, sys.argv[1:])
