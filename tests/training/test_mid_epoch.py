"""Checkpoints within an epoch: cut off anywhere, a run ends as if it had not been, in every bit."""

import json

import pytest
import torch

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
