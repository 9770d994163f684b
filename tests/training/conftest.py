"""Micro runs: settings, prepared digits, a teacher, and the trainer that a stage would build."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ofq_core import checkpoints
from ofq_core.data import open_data, prepare_digits
from ofq_core.models import build_model
from ofq_core.settings import DigitsSettings, RunSettings
from ofq_core.training import Teacher, Trainer, make_deterministic
from pipelines import training

MODEL = {
    "name": "deit_tiny_distilled_patch16_224",
    "num_classes": 10,
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 2.0,
}
DATA = {
    "name": "digits",
    "subset": 300,  # 195 train: six steps an epoch
    "shift_pixels": 0.5,
    "scale_range": 0.05,
    "rotate_degrees": 5.0,
    "noise": 0.05,
}
# Rates far above a sensible recipe's, so that codes flip within a dozen steps.
RECIPE = {
    "epochs": 2,
    "cga_epochs": 1,
    "batch_size": 32,
    "lr": 5e-3,
    "min_lr": 2e-3,
    "weight_decay": 0.05,
    "checkpoint_seconds": 0.0,
    "threads": 1,
}
METHODS = {
    "lsq": {"weight": "lsq", "qkr": False, "cga": False},
    "lsq_cga": {"weight": "lsq", "qkr": False, "cga": True},
    "statsq": {"weight": "statsq", "qkr": False, "cga": False},
    "statsq_cga": {"weight": "statsq", "qkr": False, "cga": True},
    "ofq": {"weight": "statsq", "qkr": True, "cga": True},
    "fp": {"weight": "statsq", "qkr": False, "cga": False, "wbits": 32, "abits": 32},
}


@pytest.fixture(autouse=True)
def _process_as_before(torch_as_before):
    with torch_as_before():
        yield


@pytest.fixture(scope="session")
def micro():
    """Settings of a micro run; `recipe`, `data`, `model`, `distill`, `fidelity` and `quant` add or
    override."""

    def make(method="ofq", bits=2, seed=0, **groups):
        quant = {"wbits": bits, "abits": bits, **METHODS[method], **groups.pop("quant", {})}
        recipe = {**RECIPE, **groups.pop("recipe", {})}
        data = {**DATA, **groups.pop("data", {})}
        model = {**MODEL, **groups.pop("model", {})}
        return RunSettings(
            study="micro",
            method=method,
            fidelity=groups.pop("fidelity", {}),
            seed=seed,
            quant=quant,
            model=model,
            data=data,
            recipe=recipe,
            distill=groups.pop("distill", None if method == "fp" else {}),
            **groups,
        )

    return make


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Folder of prepared digits."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare_digits(DigitsSettings(**DATA), folder)
    return folder


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory, micro, digits, torch_as_before):
    """Weights of a teacher that knows more than nothing: two dozen steps."""
    settings = micro("fp", seed=1000, recipe={"epochs": 4, "cga_epochs": 0})
    folder = tmp_path_factory.mktemp("teacher")
    with torch_as_before():
        make_deterministic(settings.seed, 1)
        model = build_model(settings.model, settings.seed)
        data = open_data(settings.data, digits)
        Trainer(settings, model, None, data, folder / "checkpoint.pt").run()
    checkpoints.save(folder / "teacher.pt", model.state_dict())
    return folder / "teacher.pt"


@pytest.fixture(scope="session")
def make_trainer(digits, teacher_file):
    """A trainer as a stage builds it: the teacher's converted, calibrated copy is the student."""

    def make(
        settings,
        checkpoint,
        observe=lambda event: None,
        world=None,
        log=print,
        data=None,
        **options,
    ):
        make_deterministic(settings.seed, 1)
        data = open_data(settings.data, digits) if data is None else data
        fp = settings.method == "fp"
        inputs = training.Inputs(digits, None if fp else teacher_file)
        student = training.build_student(settings, inputs, data, lambda message: None)
        teacher = None
        if not fp:
            full = build_model(settings.model, settings.seed)
            checkpoints.load_weights(full, teacher_file, "teacher")
            fidelity = settings.fidelity
            teacher = Teacher(full, fidelity.teacher_head, fidelity.teacher_mode)
        return Trainer(settings, student, teacher, data, checkpoint, observe, world, log, **options)

    return make


class _Observer:
    """Takes the place of the progress bar."""

    def __init__(self, observe):
        self.observe = observe

    def __enter__(self):
        return self.observe

    def __exit__(self, *error):
        pass


@pytest.fixture(scope="session")
def train_run(digits, teacher_file, torch_as_before):
    """Run the stages' own `train_run` in a folder; returns everything that it left there."""

    def run(settings, folder, observe=lambda event: None):
        folder.mkdir(parents=True, exist_ok=True)
        log = []
        with pytest.MonkeyPatch.context() as patch, torch_as_before():
            patch.chdir(folder)
            patch.setattr(training, "ProgressBar", lambda stage: _Observer(observe))
            teacher = None if settings.method == "fp" else teacher_file
            inputs = training.Inputs(digits, teacher)
            result = training.train_run(settings, inputs, "test", log.append).resolve()
        return read_run(result, log)

    return run


@pytest.fixture(scope="session")
def left_behind():
    """What a finished `train_run` of another process left in a folder."""

    def read(folder):
        (result,) = folder.glob(".partial/*/result")
        return read_run(result, [])

    return read


def read_run(result: Path, log):
    saved = result.parent / "checkpoint.pt"
    # Post-training quantization takes no step, and leaves no checkpoint.
    checkpoint = without_times(torch.load(saved, weights_only=True)) if saved.exists() else None
    return SimpleNamespace(
        folder=result,
        log=log,
        state=checkpoint,
        history=checkpoint["progress"]["history"] if checkpoint else [],
        student=torch.load(result / "student.pt", weights_only=True),
        student_bytes=(result / "student.pt").read_bytes(),
        oscillation=json.loads((result / "oscillation.json").read_text()),
        training=without_times(json.loads((result / "training.json").read_text())),
    )


def without_times(value):
    """A copy without the entries that a clock or the process decides."""
    clocks = {"seconds", "images_per_second", "train_seconds", "peak_memory_bytes"}
    if isinstance(value, dict):
        return {key: without_times(v) for key, v in value.items() if key not in clocks}
    if isinstance(value, list | tuple):
        return [without_times(v) for v in value]
    return value


@pytest.fixture(scope="session")
def identical():
    """Assert that two nested states agree in every bit, and say where they do not."""

    def check(a, b, where="state"):
        assert type(a) is type(b), where
        if isinstance(a, dict):
            assert a.keys() == b.keys(), where
            for key in a:
                check(a[key], b[key], f"{where}.{key}")
        elif isinstance(a, list):
            assert len(a) == len(b), where
            for index, (x, y) in enumerate(zip(a, b, strict=True)):
                check(x, y, f"{where}[{index}]")
        elif isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype, where
            assert a.shape == b.shape, where
            # Bits, not values: NaN equals itself, -0.0 is not 0.0.
            assert a.numpy().tobytes() == b.numpy().tobytes(), where
        else:
            assert a == b, where

    return check
