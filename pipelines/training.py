"""Train and evaluate one run; every training stage calls this."""

from __future__ import annotations

import hashlib
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ofq_core
from ofq_core import checkpoints
from ofq_core.cost import model_cost
from ofq_core.data import PreparedData, load_prepared
from ofq_core.errors import CheckpointError, DataError
from ofq_core.evaluation import evaluate
from ofq_core.files import sha256_file
from ofq_core.models import QuantPlan, build_model, convert, image_shape
from ofq_core.nn import calibrate
from ofq_core.settings import RunSettings
from ofq_core.training import Teacher, Trainer, generator, make_deterministic
from pipelines.environment import describe_environment
from pipelines.progress import ProgressBar
from pipelines.results import read_json, write_history, write_json, write_settings

PARTIAL = Path(".partial")
CALIBRATION_IMAGES = 256

Log = Callable[[str], None]


@dataclass(frozen=True)
class Inputs:
    """Where a run finds its data and its teacher; teacher None trains on labels alone."""

    data: Path
    teacher: Path | None


def _say(message: str) -> None:
    print(message, flush=True)


def build_student(settings: RunSettings, inputs: Inputs, data: PreparedData, log: Log) -> nn.Module:
    """The model that a run trains: fresh without a teacher, else the teacher's converted copy."""
    model = build_model(settings.model, settings.seed)
    if data.classes != settings.model.num_classes:
        raise DataError(
            f"model.num_classes = {settings.model.num_classes}, but the data has {data.classes} "
            "classes"
        )
    shape = tuple(data.train.images.shape[1:])
    if image_shape(model) != shape:
        raise DataError(
            f"model.img_size = {settings.model.img_size}, model.in_chans = "
            f"{settings.model.in_chans}: the model takes images of shape {image_shape(model)}, the "
            f"data has {shape} (channels, height, width)"
        )
    if inputs.teacher is None:
        return model
    checkpoints.load_weights(model, inputs.teacher, "teacher")
    report = convert(model, QuantPlan.from_settings(settings.quant))
    log(f"{settings.name}: {report.summary()}")
    count = min(CALIBRATION_IMAGES, len(data.train))
    # The same images for every method: they depend on the seed alone.
    order = torch.randperm(len(data.train), generator=generator(settings.seed, "calibration"))
    images = data.normalise(data.train.images[order[:count]])
    scales = calibrate(model, images)
    smallest = min((c.smallest for c in scales), default=float("nan"))
    log(
        f"{settings.name}: calibrated {len(scales)} activation quantizers on {count} images, "
        f"smallest scale {smallest:.2e}"
    )
    return model


def train_run(settings: RunSettings, inputs: Inputs, stage: str, log: Log = _say) -> Path:
    """Train one run in a private folder, resuming what an earlier attempt left there.

    Returns:
        A folder with student.pt, history.csv, oscillation.json, training.json, settings.yaml and
        env.json, complete; the caller moves it into place and then calls `finish`.
    """
    began = time.time()
    make_deterministic(settings.seed, settings.recipe.threads or torch.get_num_threads())
    data = load_prepared(inputs.data)
    if inputs.teacher is not None and not inputs.teacher.is_file():
        raise CheckpointError(f"teacher {inputs.teacher}: no such file; run `dvc repro teacher`")
    work = PARTIAL / f"{stage}-{settings.name}-{_run_key(settings, inputs, data)[:12]}"
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        # Read here too, so that a damaged one is reported before anything is built or said.
        done = checkpoints.load_checkpoint(checkpoint, settings.sha256())["progress"]["epoch"]
        log(f"{settings.name}: cut off before, going on after epoch {done} from {checkpoint}")
    model = build_student(settings, inputs, data, log)
    teacher = None
    if inputs.teacher is not None and settings.distill is not None:
        full = build_model(settings.model, settings.seed)
        checkpoints.load_weights(full, inputs.teacher, "teacher")
        teacher = Teacher(full, settings.distill.teacher_head)
    with ProgressBar(f"{stage} {settings.name}") as bar:
        trainer = Trainer(settings, model, teacher, data, checkpoint, bar)
        progress = trainer.run()
    result = work / "result"
    checkpoints.save(result / "student.pt", model.state_dict())
    write_history(result / "history.csv", progress.history)
    write_json(result / "oscillation.json", trainer.oscillation_layers)
    train_images = len(progress.history) * trainer.steps * trainer.batch_size
    write_json(
        result / "training.json",
        {
            "val_top1": progress.best_top1,
            "epoch_selected": progress.best_epoch,
            "oscillation": trainer.oscillation,
            "cost": {
                "train_seconds": progress.seconds,
                "images_per_second": train_images / progress.seconds,
                "peak_memory_bytes": peak_memory_bytes(),
                **model_cost(model).as_dict(),
            },
            "settings_sha256": settings.sha256(),
        },
    )
    write_settings(result / "settings.yaml", settings)
    write_json(
        result / "env.json",
        {
            **describe_environment(),
            "manifest_sha256": data.manifest_sha256,
            "teacher_sha256": None if inputs.teacher is None else sha256_file(inputs.teacher),
            "wall_seconds": time.time() - began,
        },
    )
    return result


def evaluate_run(folder: Path, settings: RunSettings, inputs: Inputs) -> dict[str, Any]:
    """Read the test split, once, with the selected weights; returns the content of metrics.json."""
    make_deterministic(settings.seed, settings.recipe.threads or torch.get_num_threads())
    data = load_prepared(inputs.data)
    model = build_model(settings.model, settings.seed)
    if inputs.teacher is not None:
        convert(model, QuantPlan.from_settings(settings.quant))
    checkpoints.load_weights(model, folder / "student.pt", "student")
    result = evaluate(model, data, data.test, settings.recipe.batch_size)
    return {**result.as_dict(), **read_json(folder / "training.json")}


def finish(result: Path) -> None:
    """Remove a run's private folder once its result is in place.

    All of it: an attempt that was killed while it wrote leaves a temporary file behind.
    """
    shutil.rmtree(result.parent, ignore_errors=True)


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _run_key(settings: RunSettings, inputs: Inputs, data: PreparedData) -> str:
    """All that decides a run: settings, data, teacher, torch and this code.

    A checkpoint of anything else is never resumed.
    """
    teacher = "" if inputs.teacher is None else sha256_file(inputs.teacher)
    text = f"{settings.sha256()}/{data.manifest_sha256}/{teacher}/{torch.__version__}/{_code_sha()}"
    return hashlib.sha256(text.encode()).hexdigest()


def _code_sha() -> str:
    """Hash over the sources of ofq_core."""
    root = Path(ofq_core.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
