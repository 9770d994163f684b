"""Every method on real digits: it learns, keeps what it may not touch, and goes on after a stop."""

import json
import math
from itertools import product

import pytest
import torch

from ofq_core import checkpoints
from ofq_core.data import open_data, prepare_digits
from ofq_core.errors import ModelError
from ofq_core.evaluate import main as evaluate_command
from ofq_core.models import build_model
from ofq_core.noise import inject_noise
from ofq_core.settings import DigitsSettings
from ofq_core.settings.methods import WEIGHT_METHODS
from ofq_core.training import Trainer, make_deterministic
from pipelines.training import Inputs, evaluate_run, load_student
from tests.training import conftest as training

# Fixtures of that folder; they take `digits` and `teacher_file` from this file.
make_trainer, micro, identical = training.make_trainer, training.micro, training.identical
train_run = training.train_run

# Clean images and a wider model than theirs: the teacher must know something after seconds.
CLEAN = dict.fromkeys(["shift_pixels", "scale_range", "rotate_degrees", "noise"], 0.0)
DATA = {"subset": None, **CLEAN}
MODEL = {"embed_dim": 32}
TEACHER = {"epochs": 20, "cga_epochs": 0, "batch_size": 64, "lr": 1e-2, "min_lr": 1e-4}
TEACHER |= {"warmup_epochs": 3, "weight_decay": 0.0}
# Eighteen steps an epoch.
LEARNING = {"epochs": 3, "cga_epochs": 0, "batch_size": 64, "lr": 6e-3, "min_lr": 1e-3}
LEARNING |= {"weight_decay": 0.0, "checkpoint_seconds": 1e9}
# Nine steps an epoch.
SHORT = {"epochs": 1, "cga_epochs": 0, "batch_size": 128, "checkpoint_seconds": 1e9}

TRAINED = [name for name, method in WEIGHT_METHODS.items() if method.trains]
UNTRAINED = [name for name, method in WEIGHT_METHODS.items() if not method.trains]
WITH_QKR = [name for name in TRAINED if not WEIGHT_METHODS[name].no_qkr]
WITH_CGA = [name for name in TRAINED if not WEIGHT_METHODS[name].no_cga]
CHANCE = 10.0


@pytest.fixture(autouse=True)
def _process_as_before(torch_as_before):
    with torch_as_before():
        yield


@pytest.fixture(scope="session")
def settings_of(micro):
    """Settings of a run of one method."""

    def build(name, recipe, bits=2, **quant):
        quant = {"weight": name, "qkr": False, "cga": False, **quant}
        return micro("lsq", bits, quant=quant, recipe=recipe, data=DATA, model=MODEL)

    return build


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """All digits; 180 validation images."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare_digits(DigitsSettings(**{**training.DATA, **DATA}), folder)
    return folder


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory, micro, digits, torch_as_before):
    """Weights of a teacher that is right more often than not."""
    settings = micro("fp", recipe=TEACHER, data=DATA, model=MODEL)
    folder = tmp_path_factory.mktemp("teacher")
    with torch_as_before():
        make_deterministic(settings.seed, 1)
        model = build_model(settings.model, settings.seed)
        data = open_data(settings.data, digits)
        progress = Trainer(settings, model, None, data, folder / "checkpoint.pt").run()
    assert progress.best_top1 > 55.0
    checkpoints.save(folder / "teacher.pt", model.state_dict())
    return folder / "teacher.pt"


@pytest.fixture
def trainer(settings_of, make_trainer, tmp_path):
    """What trains one method."""

    def build(name, recipe, bits=2, **quant):
        return make_trainer(settings_of(name, recipe, bits, **quant), tmp_path / "c.pt")

    return build


def finite(trainer):
    return all(bool(value.isfinite().all()) for value in trainer.model.state_dict().values())


# Learning


@pytest.mark.parametrize("name", TRAINED)
def test_it_learns_at_two_bits(name, trainer):
    """In three epochs the training loss falls by a third or more; guessing is right in a tenth."""
    run = trainer(name, LEARNING)
    progress = run.run()
    first, *_, last = [row["train_loss"] for row in progress.history]
    assert last < 0.8 * first
    assert progress.best_top1 > 4 * CHANCE
    assert finite(run)


@pytest.mark.parametrize("name", UNTRAINED)
def test_what_is_not_trained_keeps_what_the_teacher_knows(name, trainer, teacher_file, identical):
    """No step is taken, and the latent weights are the teacher's in every bit."""
    run = trainer(name, LEARNING, bits=4)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    progress = run.run()
    assert progress.history == []
    assert progress.best_top1 > 6 * CHANCE
    identical(dict(run.model.state_dict()), before)
    teacher = torch.load(teacher_file, weights_only=True)
    names = [weight.name for weight in run.tracker.weights]
    assert len(names) == 4
    for weight in run.tracker.weights:
        assert torch.equal(weight.latent(), teacher[weight.name]), weight.name


@pytest.mark.parametrize("name", WITH_QKR)
def test_with_qkr(name, trainer):
    """One epoch: losses are finite, and so is all that they moved."""
    run = trainer(name, SHORT, qkr=True)
    assert [weight.name for weight in run.tracker.weights if weight.parameter is None]
    losses = []
    run.observe = lambda event: losses.append(event.loss)
    (row,) = run.run().history
    assert len(losses) == 9
    assert all(map(math.isfinite, [*losses, row["train_loss"], row["val_loss"]]))
    assert finite(run)


def test_nothing_that_is_trained_is_left_out():
    assert {"dampening", "obr", "freezing", "qema", "seq", "stableqat"} < set(WITH_QKR)
    assert {"lsqplus", "pact"} < set(WITH_QKR)
    assert set(WITH_CGA) == set(TRAINED) - {"freezing", "qema"}


# CGA


@pytest.mark.parametrize("name", WITH_CGA)
def test_cga_keeps_frozen_weights_in_every_bit(name, trainer):
    """With momentum, weight decay and the method's penalty pulling at them."""
    band = 0.1
    recipe = {**SHORT, "cga_epochs": 1, "weight_decay": 0.2}
    run = trainer(name, recipe, cga=True, boundary_range=band)
    before, kept, free, epochs = {}, 0, 0, []

    def remember():
        for weight in run.annealing.weights:
            mask = weight.quantizer.free(weight.parameter, band)
            before[weight.name] = mask, weight.latent().clone()

    def observe(event):
        nonlocal kept, free
        epochs.append(event.epoch)
        for weight in run.annealing.weights:
            mask, value = before[weight.name]
            moved = weight.latent() != value
            if event.epoch == 1:
                assert not moved[~mask].any(), weight.name
                kept, free = kept + int((~mask).sum()), free + int(moved.sum())
            else:
                assert moved[~mask].any(), "before the last phase everything may move"
        remember()

    remember()
    run.observe = observe
    history = run.run().history
    assert epochs == [0] * 9 + [1] * 9
    assert kept > free > 0, "both kinds are there"
    assert 0.0 < history[1]["free_share"] < 0.5
    assert math.isfinite(history[1]["train_loss"])


# Going on after an interruption

# Buffers that change while the run goes on; with these thresholds some weights freeze within it.
FREEZING = {"options": {"first_threshold": 0.002, "last_threshold": 0.0005}}
STATE = {
    "freezing": ("freezing", FREEZING, "frozen"),
    "freezing-qkr": ("freezing", {**FREEZING, "qkr": True}, "frozen"),
    "qema": ("qema", {}, "average"),
}
OFTEN = {**SHORT, "epochs": 2, "checkpoint_seconds": 1e-9}


class CutOffError(Exception):
    """As if the process were killed."""


def cut_off_after(steps):
    def observe(event):
        if event.epoch * event.steps + event.step + 1 == steps:
            raise CutOffError

    return observe


def summary(trainer):
    return training.without_times(
        {
            "model": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "tracker": trainer.tracker.state_dict(),
            "progress": trainer.progress.state_dict(),
        }
    )


@pytest.mark.parametrize("case", STATE)
def test_state_survives_an_interruption(case, settings_of, make_trainer, identical, tmp_path):
    """Cut off in both epochs and resumed, a run ends as if it had not been, in every bit."""
    name, quant, buffer = STATE[case]
    settings = settings_of(name, OFTEN, **quant)
    whole = make_trainer(settings, tmp_path / "whole.pt")
    fresh = {key: value.clone() for key, value in whole.model.state_dict().items()}
    whole.run()
    checkpoint = tmp_path / "resumed.pt"
    for steps in (4, 15):
        with pytest.raises(CutOffError):
            make_trainer(settings, checkpoint, cut_off_after(steps)).run()
    saved = torch.load(checkpoint, weights_only=True)["model"]
    names = [key for key in saved if key.endswith(f".{buffer}")]
    assert any(not torch.equal(saved[key], fresh[key]) for key in names), "nothing to lose"
    left = []
    resumed = make_trainer(settings, checkpoint, left.append)
    resumed.run()
    # The step that was cut off had been observed, but not saved.
    assert len(left) == 4
    identical(summary(resumed), summary(whole))


# 32 bits switch off: weights, activations, first and last layer.

OFF = [bits for bits in product((3, 32), (3, 32), (8, 32)) if 32 in bits]
EVERY = [("statsq", bits, qkr) for bits in OFF for qkr in (False, True)]
# What a method has of its own is its weights, and here and there its activations.
EVERY += [(name, (3, 32, 32), True) for name in WEIGHT_METHODS if name != "statsq"]
EVERY += [(name, (32, 3, 8), True) for name, m in WEIGHT_METHODS.items() if m.activation]


@pytest.mark.parametrize(("name", "bits", "qkr"), EVERY)
def test_32_bits_switch_off(
    name, bits, qkr, settings_of, train_run, digits, teacher_file, tmp_path
):
    """From the first step to the noise experiment, with a stop in between."""
    wbits, abits, edge_bits = bits
    quant = {"wbits": wbits, "abits": abits, "edge_bits": edge_bits, "qkr": qkr}
    settings = settings_of(name, OFTEN, **quant)
    if settings.quant.trains:
        with pytest.raises(CutOffError):
            train_run(settings, tmp_path, cut_off_after(12))
    run = train_run(settings, tmp_path)
    assert any("going on after epoch 1" in line for line in run.log) == settings.quant.trains
    low_bit = wbits != 32
    assert bool(json.loads((run.folder / "histogram.json").read_text())) == low_bit
    assert bool(run.oscillation) == (low_bit and settings.quant.trains)
    assert all(bool(value.isfinite().all()) for value in run.student.values())

    metrics = evaluate_run(run.folder, settings, Inputs(digits, teacher_file))
    words = [str(run.folder), "--data", str(digits), "--json", str(tmp_path / "out.json")]
    evaluate_command(words)
    again = json.loads((tmp_path / "out.json").read_text())["result"]
    # The command takes batches of its own size.
    assert again["n_correct"] == pytest.approx(metrics["n_correct"], abs=1)
    assert again["loss"] == pytest.approx(metrics["loss"], rel=1e-2)

    model = load_student(run.folder, settings, converted=True)
    if low_bit:
        assert inject_noise(model, lambda: 0.0, 0.05, 1, seed=0).weights > 0
    else:
        with pytest.raises(ModelError, match=r"no low-bit weights to perturb: quant\.wbits = 32"):
            inject_noise(model, lambda: 0.0, 0.05, 1, seed=0)


@pytest.mark.parametrize("qkr", [False, True])
def test_all_off_is_the_teacher(qkr, settings_of, make_trainer, teacher_file, tmp_path):
    """What is validated before the first step is the full-precision model, class by class."""
    off = {"wbits": 32, "abits": 32, "edge_bits": 32, "qkr": qkr}
    run = make_trainer(settings_of("statsq", SHORT, **off), tmp_path / "c.pt")
    found = run._validate()
    run.model = build_model(run.settings.model, 0)
    checkpoints.load_weights(run.model, teacher_file, "teacher")
    teacher = run._validate()
    assert teacher.top1 > 5 * CHANCE
    assert found.loss == pytest.approx(teacher.loss, rel=1e-6)
    assert found.per_class_correct == teacher.per_class_correct
