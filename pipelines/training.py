"""Train and evaluate one run; every training stage calls this."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ofq_core
from ofq_core import checkpoints
from ofq_core.cost import model_cost
from ofq_core.data import Data, check_class_names, open_data, stored_class_names
from ofq_core.distributed import CPU, World
from ofq_core.errors import CheckpointError, DataError
from ofq_core.evaluation import evaluate
from ofq_core.files import sha256_file
from ofq_core.models import QuantPlan, build_model, convert
from ofq_core.nn import calibrate
from ofq_core.settings import RunSettings
from ofq_core.training import Teacher, TeacherCache, Trainer, make_deterministic
from pipelines.environment import cpu_name, describe_code, describe_environment
from pipelines.fit import check_fits
from pipelines.progress import ProgressBar
from pipelines.results import read_json, write_history, write_json, write_settings
from pipelines.stopping import stop_on_sigterm

PARTIAL = Path(".partial")
ANSWERS = PARTIAL / "teacher-logits"
# The teacher's accuracy, beside its weights: a file of its own, because students depend on it, and
# the teacher's metrics.json differs each time by the seconds it took.
REFERENCE = "reference.json"
CALIBRATION_IMAGES = 256
UNREADABLE_NAMES = 20
# Of training.json.
TRAINING_KEYS = frozenset(
    ("val_top1", "epoch_selected", "oscillation", "unreadable_images", "cost", "settings_sha256")
)

Log = Callable[[str], None]


@dataclass(frozen=True)
class Inputs:
    """Where a run finds its data and its teacher; teacher None trains on labels alone."""

    data: Path
    teacher: Path | None


def _say(message: str) -> None:
    print(message, flush=True)


def _ignore(message: object) -> None:
    pass


def build_student(
    settings: RunSettings, inputs: Inputs, data: Data, log: Log, device: torch.device = CPU
) -> nn.Module:
    """The model that a run trains: fresh without a teacher, else the teacher's converted copy."""
    model = build_model(settings.model, settings.seed)
    check_fits(model, settings.model, data.classes, data.shape)
    if inputs.teacher is None:
        return model
    checkpoints.load_weights(model, inputs.teacher, "teacher")
    plan = QuantPlan.from_settings(settings.quant, settings.fidelity)
    report = convert(model, plan, settings.seed)
    log(f"{settings.name}: {report.summary()}")
    # The same images for every method: they depend on the seed alone.
    images = data.calibration_images(settings.seed, CALIBRATION_IMAGES)
    scales = calibrate(model.to(device), images.to(device))
    if scales:
        smallest = min(c.smallest for c in scales)
        log(
            f"{settings.name}: calibrated {len(scales)} activation quantizers on {len(images)} "
            f"images, smallest scale {smallest:.2e}"
        )
    return model


def train_run(
    settings: RunSettings,
    inputs: Inputs,
    stage: str,
    log: Log = _say,
    world: World | None = None,
) -> Path:
    """Train one run in a private folder, resuming what an earlier attempt left there.

    Every process of the world must call. Only the main one writes and logs.

    Returns:
        A folder with student.pt, history.csv, oscillation.json, histogram.json, trajectories.json,
        training.json, settings.yaml and env.json, complete; the caller moves it into place and then
        calls `finish`.

    Raises:
        TrainingStopped: SIGTERM came while it trained. Called again, it goes on.
    """
    world = world or World()
    log = log if world.main else _ignore
    began = time.time()
    # Now, not at the end: another branch may be checked out meanwhile.
    code = describe_code()
    make_deterministic(settings.seed, settings.recipe.threads or torch.get_num_threads())
    data = open_data(settings.data, inputs.data)
    if inputs.teacher is not None and not inputs.teacher.is_file():
        raise CheckpointError(f"teacher {inputs.teacher}: no such file; run `dvc repro teacher`")
    if inputs.teacher is not None:
        _check_classes(inputs.teacher, data, inputs)
    # Damaged, it should be said now and not after the training.
    _reference_top1(inputs)
    key = _run_key(settings, inputs, data)
    work = PARTIAL / f"{stage}-{settings.name}-{key[:12]}"
    checkpoint = work / "checkpoint.pt"
    model = build_student(settings, inputs, data, log, world.device)
    teacher = None
    if inputs.teacher is not None and settings.distill is not None:
        full = build_model(settings.model, settings.seed)
        checkpoints.load_weights(full, inputs.teacher, "teacher")
        cache = None
        if settings.distill.cache_teacher and settings.fidelity.teacher_mode == "eval":
            folder = _answers_folder(settings, inputs.teacher, world)
            cache = TeacherCache(folder, log)
        fidelity = settings.fidelity
        teacher = Teacher(full, fidelity.teacher_head, fidelity.teacher_mode, cache)
    observer = ProgressBar(f"{stage} {settings.name}") if world.main else nullcontext(_ignore)
    with observer as observe, stop_on_sigterm() as asked_to_stop:
        trainer = Trainer(
            settings, model, teacher, data, checkpoint, observe, world, log, asked_to_stop, key
        )
        trainer.run()
    result = work / "result"
    if world.main:
        _write_result(result, trainer, inputs, began, code)
    world.wait()
    return result


def _write_result(
    result: Path, trainer: Trainer, inputs: Inputs, began: float, code: dict[str, Any]
) -> None:
    settings, progress = trainer.settings, trainer.progress
    # All that is in the folder gets published: no half-written file of an attempt that was killed.
    shutil.rmtree(result, ignore_errors=True)
    checkpoints.save(result / "student.pt", trainer.model.state_dict())
    write_history(result / "history.csv", progress.history)
    write_json(result / "oscillation.json", trainer.oscillation_layers)
    write_json(result / "histogram.json", trainer.tracker.histogram(), indent=None)
    path = trainer.tracker.trajectory
    paths = {} if path is None else path.report()
    write_json(result / "trajectories.json", paths, indent=None)
    train_images = len(progress.history) * trainer.steps * trainer.batch_size
    write_json(
        result / "training.json",
        {
            "val_top1": progress.best_top1,
            "epoch_selected": progress.best_epoch,
            "oscillation": trainer.oscillation,
            "unreadable_images": {
                "count": len(progress.unreadable),
                "names": progress.unreadable[:UNREADABLE_NAMES],
            },
            "cost": {
                "train_seconds": progress.seconds,
                "images_per_second": train_images / progress.seconds if train_images else None,
                "peak_memory_bytes": peak_memory_bytes(),
                **model_cost(trainer.model).as_dict(),
            },
            "settings_sha256": settings.sha256(),
        },
    )
    write_settings(result / "settings.yaml", settings)
    write_json(
        result / "env.json",
        {
            **describe_environment(trainer.world, code),
            **checkpoints.record(result / "student.pt"),
            "precision": settings.recipe.precision,
            "pieces_per_step": trainer.gradients.pieces,
            "manifest_sha256": trainer.data.manifest_sha256,
            "class_names": trainer.data.class_names,
            "teacher_sha256": None if inputs.teacher is None else sha256_file(inputs.teacher),
            "wall_seconds": time.time() - began,
        },
    )


def load_student(
    folder: Path, settings: RunSettings, converted: bool, device: torch.device = CPU
) -> nn.Module:
    """The model of a finished training with its selected weights, in evaluation mode.

    converted: False for a run without a teacher, which is full precision.
    """
    model = build_model(settings.model, settings.seed)
    if converted:
        plan = QuantPlan.from_settings(settings.quant, settings.fidelity)
        convert(model, plan, settings.seed)
    checkpoints.load_weights(model, folder / "student.pt", "student")
    return model.to(device).eval()


def evaluate_run(
    folder: Path, settings: RunSettings, inputs: Inputs, world: World | None = None
) -> dict[str, Any]:
    """Read the test split, once, with the selected weights.

    Every process of the world must call.

    Returns:
        The content of metrics.json. reference_top1: the teacher's on the same images, null where
        the teacher's stage has not told.

    Raises:
        DataError: training.json or the teacher's reference.json is damaged.
    """
    world = world or World()
    make_deterministic(settings.seed, settings.recipe.threads or torch.get_num_threads())
    data = open_data(settings.data, inputs.data)
    _check_classes(folder / "student.pt", data, inputs)
    training, reference = read_training(folder, settings), _reference_top1(inputs)
    result = evaluate(
        load_student(folder, settings, inputs.teacher is not None, world.device),
        data,
        "test",
        settings.recipe.batch_size,
        world.share,
        world.device,
        settings.recipe.precision,
        str(folder / "student.pt"),
    )
    metrics = {**result.as_dict(), **training}
    # The main process will remove or move files when it has this.
    world.wait()
    return {**metrics, "reference_top1": reference}


def read_training(folder: Path, settings: RunSettings) -> dict[str, Any]:
    """What a training said of itself.

    Raises:
        DataError: training.json is missing, damaged, or of a run with other settings.
    """
    path = folder / "training.json"
    training = read_json(path)
    missing = sorted(TRAINING_KEYS - training.keys())
    if missing:
        raise DataError(f"{path} cannot be read: no {missing[0]}; train again (`dvc repro -f qat`)")
    if training["settings_sha256"] != settings.sha256():
        raise DataError(
            f"{path} is of a run with other settings (sha256 "
            f"{str(training['settings_sha256'])[:12]}, expected {settings.sha256()[:12]}); train "
            "again (`dvc repro -f qat`)"
        )
    return training


def _check_classes(weights: Path, data: Data, inputs: Inputs) -> None:
    names = stored_class_names(weights)
    check_class_names(str(weights), names, data.class_names, str(inputs.data))


def _reference_top1(inputs: Inputs) -> float | None:
    """What the teacher's stage measured, beside the teacher's weights."""
    if inputs.teacher is None:
        return None
    path = inputs.teacher.with_name(REFERENCE)
    if not path.is_file():
        return None
    value = read_json(path).get("top1")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise DataError(
            f"{path}: top1 = {value!r}, expected a percentage; measure the teacher again "
            "(`dvc repro -f teacher`)"
        )
    return float(value)


def write_reference(folder: Path, metrics: dict[str, Any]) -> None:
    """What students compare themselves with: a function of the teacher's weights and the data."""
    write_json(folder / REFERENCE, {key: metrics[key] for key in ("top1", "n_correct", "n_images")})


def finish(result: Path) -> None:
    """Remove a run's private folder once its result is in place.

    All of it: an attempt that was killed while it wrote leaves a temporary file behind.
    """
    shutil.rmtree(result.parent, ignore_errors=True)


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _run_key(settings: RunSettings, inputs: Inputs, data: Data) -> str:
    """All that decides a run: settings, data, teacher, torch and this code.

    A checkpoint of anything else is never resumed.
    """
    teacher = "" if inputs.teacher is None else sha256_file(inputs.teacher)
    text = f"{settings.sha256()}/{data.manifest_sha256}/{teacher}/{torch.__version__}/{_code_sha()}"
    return hashlib.sha256(text.encode()).hexdigest()


def _answers_folder(settings: RunSettings, teacher: Path, world: World) -> Path:
    """Where the teacher's logits are kept: by all that may change them for given images.

    The seed and the process are in the name only to keep apart what is asked about other images.
    """
    device = world.device
    recipe = settings.recipe
    decides = {
        "teacher": sha256_file(teacher),
        "model": settings.model.model_dump(),
        "head": settings.fidelity.teacher_head,
        "format": (recipe.precision, recipe.channels_last, torch.get_num_threads()),
        "code": (_code_sha(), torch.__version__, metadata.version("timm")),
        "device": (device.type, torch.cuda.get_device_name(device))
        if device.type == "cuda"
        else (cpu_name(), torch.backends.cpu.get_cpu_capability()),
        "images": (settings.seed, recipe.batch_size, world.rank, world.size),
    }
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return ANSWERS / key[:16]


def _code_sha() -> str:
    """Hash over the sources of ofq_core."""
    root = Path(ofq_core.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.c")]):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
