"""Micro models with weights everywhere, and trainers wired as a stage wires them."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from ofq_core import checkpoints
from ofq_core.data import open_data, prepare_digits
from ofq_core.models import QuantPlan, build_model, convert
from ofq_core.settings import DigitsSettings, ModelSettings, RunSettings
from ofq_core.training import Trainer, make_deterministic
from pipelines import training

IMAGES = {"num_classes": 10, "img_size": 8, "patch_size": 2, "in_chans": 1, "mlp_ratio": 2.0}
MODELS = {
    "deit": {
        "name": "deit_tiny_distilled_patch16_224",
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        **IMAGES,
    },
    # 4 x 4 tokens in shifted windows of 2 x 2, then 2 x 2 tokens in one window.
    "swin": {
        "name": "swin_tiny_patch4_window7_224",
        "embed_dim": 8,
        "depths": (2, 2),
        "heads_per_stage": (2, 4),
        "window_size": 2,
        **IMAGES,
    },
}
DATA = {"name": "digits", "subset": 300}
# Rates far above a sensible recipe's, so that a dozen steps do something.
RECIPE = {
    "epochs": 2,
    "cga_epochs": 1,
    "cooldown_epochs": 1,
    "batch_size": 32,
    "lr": 5e-3,
    "min_lr": 2e-3,
    "warmup_epochs": 1,
    "weight_decay": 0.05,
    "checkpoint_seconds": 0.0,
    "threads": 1,
}


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "claim(what, released): what a test proves, and what the released code does"
    )
    config.addinivalue_line("markers", "switch(name): the fidelity switch that a test is about")


@pytest.fixture(autouse=True)
def _process_as_before(torch_as_before):
    with torch_as_before():
        yield


@pytest.fixture(scope="session")
def run_settings():
    """Settings of a micro run; fidelity, recipe and quant add or override."""

    def make(model="deit", qkr=True, bits=2, fidelity=None, recipe=None, distill=None, **quant):
        quant = {"weight": "statsq", "wbits": bits, "abits": bits, "cga": True} | quant
        full = bits == 32
        return RunSettings(
            study="fidelity",
            method="any",
            fidelity=fidelity or {},
            seed=0,
            quant={**quant, "qkr": qkr, "cga": quant["cga"] and not full},
            model=MODELS[model],
            data=DATA,
            recipe={**RECIPE, **(recipe or {})},
            distill=None if full else distill or {},
        )

    return make


@pytest.fixture(scope="session")
def source(draw_weights):
    """A full-precision model whose tensors are all nonzero and different, as after training.

    A fresh model has zero biases: keeping a bias of zero would prove nothing.
    """

    def build(name="deit"):
        return draw_weights(build_model(ModelSettings(**MODELS[name]), 0))

    return build


@pytest.fixture(scope="session")
def converted():
    """Convert a full-precision model in place as the settings say; returns the report."""

    def run(model, settings):
        plan = QuantPlan.from_settings(settings.quant, settings.fidelity)
        return convert(model, plan, settings.seed)

    return run


@pytest.fixture(scope="session")
def images():
    def make(batch=8, dtype=torch.float32):
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, 1, 8, 8, generator=generator).to(dtype)

    return make


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, source):
    """Prepared digits, and for each model a file of teacher weights."""
    folder = tmp_path_factory.mktemp("inputs")
    prepare_digits(DigitsSettings(**DATA), folder / "digits")
    made = {}
    for name in MODELS:
        checkpoints.save(folder / f"{name}.pt", source(name).state_dict())
        made[name] = training.Inputs(folder / "digits", folder / f"{name}.pt")
    return made


@pytest.fixture(scope="session")
def learned(tmp_path_factory, run_settings, torch_as_before):
    """A full-precision model that has learned digits for a few seconds, and its data."""
    folder = tmp_path_factory.mktemp("learned")
    made = {}

    def build(name="deit"):
        epochs = {"deit": 15, "swin": 8}[name]
        recipe = {"epochs": epochs, "cga_epochs": 0, "min_lr": 1e-4, "lr": 6e-3}
        settings = run_settings(name, bits=32, edge_bits=32, recipe=recipe)
        plain = {"shift_pixels": 0.0, "scale_range": 0.0, "rotate_degrees": 0.0}
        settings = settings.model_copy(update={"data": DigitsSettings(name="digits", **plain)})
        if not made:
            prepare_digits(settings.data, folder / "digits")
        data = open_data(settings.data, folder / "digits")
        model = build_model(settings.model, settings.seed)
        if name not in made:
            with torch_as_before():
                make_deterministic(settings.seed, 1)
                Trainer(settings, model, None, data, folder / f"{name}.pt").run()
            made[name] = model.state_dict()
        model.load_state_dict(made[name])
        return model.eval(), data

    return build


class WiredError(Exception):
    """The trainer is ready; nothing has been trained."""


@pytest.fixture
def wired(inputs, tmp_path, monkeypatch):
    """The trainer that the stages' own `train_run` builds from settings, before its first step."""
    numbers = itertools.count()

    def build(settings):
        ready = []

        def stop(trainer):
            ready.append(trainer)
            raise WiredError

        (name,) = [key for key, sizes in MODELS.items() if sizes["name"] == settings.model.name]
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(Trainer, "run", stop)
            with pytest.raises(WiredError):
                training.train_run(settings, inputs[name], "test", lambda message: None)
        # Its own path is relative to the folder that has been left again.
        ready[0].checkpoint = tmp_path / f"{next(numbers)}.ckpt"
        return ready[0]

    return build


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory, run_settings, inputs, in_two_processes):
    """What `tests.fidelity.processes` found in each of two processes that trained together."""
    folder = tmp_path_factory.mktemp("processes")
    settings = run_settings(recipe={"checkpoint_seconds": 1e-9})
    job = {
        "settings": settings.model_dump(mode="json"),
        "data": str(inputs["deit"].data),
        "teacher": str(inputs["deit"].teacher),
    }
    (folder / "job.json").write_text(json.dumps(job))
    return in_two_processes("tests.fidelity.processes", folder)
