"""Every method on real digits: it learns, keeps what it may not touch, and goes on after a stop."""

import math

import pytest
import torch

from ofq_core import checkpoints
from ofq_core.data import open_data, prepare_digits
from ofq_core.models import build_model
from ofq_core.settings import DigitsSettings
from ofq_core.settings.methods import WEIGHT_METHODS
from ofq_core.training import Trainer, make_deterministic
from tests.training import conftest as training

# Fixtures of that folder; they take `digits` and `teacher_file` from this file.
make_trainer, micro, identical = training.make_trainer, training.micro, training.identical

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
