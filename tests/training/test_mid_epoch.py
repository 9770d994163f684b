"""Checkpoints within an epoch: cut off anywhere, a run ends as if it had not been, in every bit."""

import json
import shutil

import pytest
import torch

from ofq_core import checkpoints
from ofq_core.errors import CheckpointError
from tests.training.conftest import without_times

# Six steps an epoch, two epochs of QAT, one of CGA; a checkpoint after every step.
OFTEN = {"checkpoint_seconds": 1e-9}


class CutOffError(Exception):
    """As if the process were killed."""


def cut_off_after(steps):
    def observe(event):
        if event.epoch * event.steps + event.step + 1 == steps:
            raise CutOffError

    return observe


def summary(trainer):
    state = {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "tracker": trainer.tracker.state_dict(),
        "progress": trainer.progress.state_dict(),
        "layers": trainer.oscillation_layers,
    }
    if trainer.averaged is not None:
        state["averaged"] = trainer.averaged.state_dict()
    return without_times(state)


@pytest.fixture(scope="module")
def undisturbed(micro, make_trainer, tmp_path_factory):
    made = {}

    def run(method, **recipe):
        key = method, json.dumps(recipe)
        if key not in made:
            trainer = make_trainer(
                micro(method, recipe={**OFTEN, **recipe}),
                tmp_path_factory.mktemp("whole") / "c.pt",
            )
            trainer.run()
            made[key] = summary(trainer)
        return made[key]

    return run


# A checkpoint is written after a step has been observed, so the step that is cut off is repeated.
@pytest.mark.parametrize("cuts", [(1,), (4,), (6,), (7,), (13,), (15,), (18,), (3, 9, 16)])
@pytest.mark.parametrize(
    ("method", "recipe"),
    [("ofq", {}), ("lsq_cga", {}), ("ofq", {"ema_decay": 0.9, "clip_grad": 0.5})],
    ids=["ofq", "lsq_cga", "ofq-ema-clip"],
)
def test_bit_identical(cuts, method, recipe, micro, make_trainer, undisturbed, identical, tmp_path):
    settings = micro(method, recipe={**OFTEN, **recipe})
    for steps in cuts:
        with pytest.raises(CutOffError):
            make_trainer(settings, tmp_path / "c.pt", cut_off_after(steps)).run()
    steps_left = []
    trainer = make_trainer(settings, tmp_path / "c.pt", steps_left.append)
    trainer.run()
    assert len(steps_left) == 18 - (cuts[-1] - 1)
    identical(summary(trainer), undisturbed(method, **recipe))


def test_how_often_does_not_matter(micro, make_trainer, undisturbed, tmp_path):
    """Weights are those of a run that writes after every epoch."""
    trainer = make_trainer(micro("ofq"), tmp_path / "c.pt")
    trainer.run()
    expected = undisturbed("ofq")["model"]
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


# Checkpoints that cannot be used. After 15 steps the newest has 14 of them, the one before 13.


def edited(change):
    def damage(path):
        state = checkpoints.load(path)
        change(state)
        checkpoints.save(path, state)

    return damage


def drop(*keys):
    def change(state):
        *parents, last = keys
        for key in parents:
            state = state[key]
        del state[last]

    return edited(change)


def put(value, *keys):
    def change(state):
        *parents, last = keys
        for key in parents:
            state = state[key]
        state[last] = value(state[last])

    return edited(change)


BIAS = "blocks.0.mlp.fc2.bias"


def select_not_finite(state):
    broken = {**state["model"], BIAS: state["model"][BIAS] / 0}
    state["progress"] |= {"best_epoch": 1, "best_state": broken}


# Those that no check of the file alone can tell from a good one, among others.
DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5000]),
    "empty": lambda path: path.write_bytes(b""),
    "random": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "foreign": lambda path: torch.save({"state_dict": {}, "epoch": 3}, path),
    "of another run": put(lambda sha: "0" * 64, "settings_sha256"),
    "no weight": drop("model", BIAS),
    "weight of another shape": put(lambda bias: bias[:-1], "model", BIAS),
    "weight of another dtype": put(lambda bias: bias.double(), "model", BIAS),
    "weight not finite": put(lambda bias: bias / 0, "model", BIAS),
    "selected not finite": edited(select_not_finite),
    "selected nothing": put(lambda epoch: 1, "progress", "best_epoch"),
    "no moment": drop("optimizer", "state", 3, "exp_avg"),
    "moment of another shape": put(lambda m: m[..., :1], "optimizer", "state", 3, "exp_avg_sq"),
    "groups": put(lambda groups: groups[:1], "optimizer", "param_groups"),
    "no codes": drop("tracker", "state", "codes"),
    "fewer codes": put(lambda codes: codes[:-1], "tracker", "state", "codes"),
    "no paths": put(lambda paths: paths[:-1], "tracker", "samples", "paths"),
    "no selection": drop("progress", "best_epoch"),
    "no losses": drop("progress", "running", "losses"),
    "another step": put(lambda step: step - 1, "progress", "step"),
    "no history": put(lambda rows: rows[:-1], "progress", "history"),
}


@pytest.fixture(scope="module")
def cut_off(micro, make_trainer, tmp_path_factory):
    """A run that was cut off in its 15th step, and what it left."""
    folder = tmp_path_factory.mktemp("cut off")
    settings = micro("ofq", recipe=OFTEN)
    with pytest.raises(CutOffError):
        make_trainer(settings, folder / "c.pt", cut_off_after(15)).run()
    return settings, folder


def go_on(settings, folder, make_trainer):
    steps, log = [], []
    trainer = make_trainer(settings, folder / "c.pt", steps.append, log=log.append)
    trainer.run()
    return trainer, len(steps), [line for line in log if line.startswith("ofq-w2a2-s0: ")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_costs_one_step(
    damage, cut_off, make_trainer, undisturbed, identical, tmp_path
):
    """The run goes on from the one before, says so, and loses nothing."""
    settings, folder = cut_off
    folder = shutil.copytree(folder, tmp_path / "run")
    newest = folder / "c.pt"
    DAMAGES[damage](newest)
    content = newest.read_bytes()
    trainer, steps, log = go_on(settings, folder, make_trainer)
    assert steps == 18 - 13
    assert log[0].startswith(f"ofq-w2a2-s0: {newest}")
    assert log[0].endswith(f"; not used, kept as {folder / 'c.unusable'} until the run is done")
    assert log[1:] == [
        "ofq-w2a2-s0: cut off before, going on after epoch 2, step 1 from "
        f"{folder / 'c.previous.pt'}"
    ]
    assert (folder / "c.unusable").read_bytes() == content
    identical(summary(trainer), undisturbed("ofq"))


def test_without_a_good_checkpoint_it_starts_afresh(
    cut_off, make_trainer, undisturbed, identical, tmp_path
):
    """One is found to be damaged only when half of it has been taken."""
    settings, folder = cut_off
    folder = shutil.copytree(folder, tmp_path / "run")
    DAMAGES["no losses"](folder / "c.pt")
    DAMAGES["truncated"](folder / "c.previous.pt")
    trainer, steps, log = go_on(settings, folder, make_trainer)
    assert steps == 18
    assert len(log) == 3
    assert log[-1] == "ofq-w2a2-s0: no other checkpoint is there, starting afresh"
    identical(summary(trainer), undisturbed("ofq"))


def test_killed_between_two_checkpoints(cut_off, make_trainer, undisturbed, identical, tmp_path):
    settings, folder = cut_off
    folder = shutil.copytree(folder, tmp_path / "run")
    (folder / "c.pt").unlink()
    trainer, steps, log = go_on(settings, folder, make_trainer)
    assert (steps, len(log)) == (18 - 13, 1)
    identical(summary(trainer), undisturbed("ofq"))


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()], ids=str)
def test_a_disk_that_fails_is_no_damage(error, cut_off, make_trainer, monkeypatch, tmp_path):
    """Nothing is put aside for what may be good again in a minute."""
    settings, folder = cut_off
    folder = shutil.copytree(folder, tmp_path / "run")
    before = sorted(path.name for path in folder.iterdir())

    def fail(*arguments, **options):
        raise error

    trainer = make_trainer(settings, folder / "c.pt")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(CheckpointError, match=r"c\.pt"):
        trainer.run()
    assert sorted(path.name for path in folder.iterdir()) == before
