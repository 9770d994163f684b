"""Stage `teacher`: the full-precision model that every student starts from and learns from."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofq_core.settings import StudySettings
from pipelines.alone import alone
from pipelines.params import load_study
from pipelines.prepare import data_folder
from pipelines.stage import is_main, large_imports, stage_main

if TYPE_CHECKING:
    from torch import nn

FOLDER = Path("results/teacher")
WEIGHTS = FOLDER / "teacher.pt"
# Images per forward where no recipe says how many; without influence on the result.
BATCH_SIZE = 256


def main(argv: list[str]) -> None:
    """Train the teacher, or take the weights that the settings name, and evaluate it."""
    study = load_study()
    with alone(FOLDER):
        (adopt if is_given(study) else train)(study)


def is_given(study: StudySettings) -> bool:
    """Whether the settings name weights instead of a training."""
    return study.teacher.checkpoint is not None or study.teacher.pretrained is not None


def train(study: StudySettings) -> None:
    """Train by the teacher's recipe and seed."""
    with large_imports():
        from ofq_core.distributed import join_world
        from ofq_core.models import import_timm
        from pipelines.fit import check_runs
        from pipelines.results import publish_folder, write_json
        from pipelines.training import Inputs, evaluate_run, finish, train_run, write_reference

        import_timm()
    settings = study.full_precision(study.teacher.seed)
    inputs = Inputs(data=data_folder(study), teacher=None)
    with join_world() as world:
        # The experiment as well: it would be refused when this has been trained for it.
        check_runs(study, [settings, study.experiment()], world)
        result = train_run(settings, inputs, "teacher", world=world)
        metrics = evaluate_run(result, settings, inputs, world)
    if not world.main:
        return
    write_json(result / "metrics.json", {**metrics, "epochs": settings.recipe.epochs})
    write_reference(result, metrics)
    (result / "student.pt").replace(result / "teacher.pt")
    publish_folder(result, FOLDER)
    finish(result)
    report(metrics)


def adopt(study: StudySettings) -> None:
    """Check that given weights fit the model and the data, evaluate them and take them."""
    import torch

    from ofq_core import checkpoints
    from ofq_core.checkpoints.subject import data_of_run
    from ofq_core.data import check_alike, check_class_names, open_data, stored_class_names
    from ofq_core.data.environment import user_file
    from ofq_core.distributed import join_world
    from ofq_core.evaluation import evaluate
    from ofq_core.training import make_deterministic
    from pipelines.fit import check_fits, check_runs
    from pipelines.results import publish_folder, write_json, write_settings
    from pipelines.training import PARTIAL, write_reference

    teacher = study.teacher
    threads = None if teacher.recipe is None else teacher.recipe.threads
    make_deterministic(teacher.seed, threads or torch.get_num_threads())
    with join_world() as world:
        check_runs(study, [study.experiment()], world)
        data = open_data(study.data, data_folder(study))
        # One process alone, so that not all of them download.
        given = given_weights(study) if world.main else None
        world.wait()
        model = given or given_weights(study)
        check_fits(model, study.model, data.classes, data.shape)
        source = teacher.checkpoint or teacher.pretrained
        names = None
        if teacher.checkpoint is not None:
            weights = user_file(Path(teacher.checkpoint))
            names = stored_class_names(weights)
            check_alike(f"teacher.checkpoint = {source!r}", data_of_run(weights), study.data)
        checked = check_class_names(str(source), names, data.class_names, str(data_folder(study)))
        if world.main and not checked:
            print(
                f"teacher: the order of the classes was not checked: {source} does not say their "
                "names"
            )
        model.to(world.device)
        share, device = world.share, world.device
        result = evaluate(model, data, "test", BATCH_SIZE, share, device, name=f"teacher {source}")
    if not world.main:
        return
    folder = PARTIAL / "teacher-adopted"
    shutil.rmtree(folder, ignore_errors=True)
    checkpoints.save(folder / WEIGHTS.name, model.cpu().state_dict())
    keys = {"study", "model", "data", "teacher"}
    write_settings(folder / "settings.yaml", study, keys)
    record = checkpoints.record(folder / WEIGHTS.name)
    write_json(folder / "env.json", {**record, "class_names": data.class_names})
    write_json(folder / "metrics.json", {**result.as_dict(), "source": source})
    write_reference(folder, result.as_dict())
    publish_folder(folder, FOLDER)
    report(result.as_dict())


def check_given(study: StudySettings) -> None:
    """Check that given weights fit the model, as far as that is known without a download."""
    from ofq_core.models import check_pretrained

    if study.teacher.pretrained is not None:
        check_pretrained(study.model, study.teacher.pretrained)
    else:
        given_weights(study)


def given_weights(study: StudySettings) -> nn.Module:
    """The model with the weights of `teacher.checkpoint` or `teacher.pretrained`."""
    from ofq_core import checkpoints
    from ofq_core.data.environment import user_file
    from ofq_core.models import build_model, load_pretrained

    if study.teacher.pretrained is not None:
        return load_pretrained(study.model, study.teacher.pretrained)
    model = build_model(study.model, study.teacher.seed)
    path = user_file(Path(str(study.teacher.checkpoint)))
    says = checkpoints.load_weights(model, path, "teacher").says()
    if says and is_main():
        print(f"teacher: {path}: {says}", flush=True)
    return model


def report(metrics: dict[str, Any]) -> None:
    """One line for the log."""
    print(f"teacher: top-1 {metrics['top1']:.2f} % on {metrics['n_images']} test images")


if __name__ == "__main__":
    stage_main(main, sys.argv[1:], __doc__)
