"""A loss that is not finite stops the run, names the place, and loses nothing."""

import pytest
import torch

from ofq_core.training import TrainingError

OFTEN = {"checkpoint_seconds": 1e-9}


def spoil(trainer, name, at):
    """Put NaN into a parameter before step `at` (counted from 1)."""

    def observe(event):
        if event.epoch * event.steps + event.step + 1 == at - 1:
            with torch.no_grad():
                trainer.model.get_parameter(name).view(-1)[0] = float("nan")

    trainer.observe = observe


@pytest.mark.parametrize(
    ("parameter", "module"),
    [
        ("blocks.0.norm1.weight", "blocks.0.norm1"),
        ("blocks.0.mlp.fc2.bias", "blocks.0.mlp.fc2"),
        ("head.input_quantizer.bias_before", "head.input_quantizer"),
    ],
)
def test_the_first_module_is_named(parameter, module, micro, make_trainer, tmp_path):
    trainer = make_trainer(micro("statsq", recipe=OFTEN), tmp_path / "c.pt")
    spoil(trainer, parameter, at=9)
    with pytest.raises(TrainingError) as error:
        trainer.run()
    message = str(error.value)
    assert message.startswith("loss = nan at step 8 (epoch 1), first in ")
    assert f"first in {module}" in message
    assert f"last good checkpoint: {tmp_path / 'c.pt'}" in message
    assert "Lower recipe.lr = 0.005" in message


def test_what_was_there_stays_and_the_run_goes_on(micro, make_trainer, tmp_path, identical):
    """The checkpoint is the one of before; without the cause, the run ends as if undisturbed."""
    settings = micro("ofq")
    whole = make_trainer(settings, tmp_path / "whole.pt")
    whole.run()
    trainer = make_trainer(settings, tmp_path / "c.pt")
    spoil(trainer, "blocks.0.attn.v.weight", at=9)
    with pytest.raises(TrainingError):
        trainer.run()
    again = make_trainer(settings, tmp_path / "c.pt")
    again.run()
    identical(dict(again.model.state_dict()), dict(whole.model.state_dict()))


def test_before_the_first_checkpoint(micro, make_trainer, tmp_path):
    trainer = make_trainer(micro("statsq"), tmp_path / "c.pt")
    spoil(trainer, "blocks.0.norm1.weight", at=3)
    with pytest.raises(TrainingError, match=r"at step 2 \(epoch 0\)") as error:
        trainer.run()
    assert "checkpoint" not in str(error.value)
    assert not (tmp_path / "c.pt").exists()


def test_the_loss_alone(micro, make_trainer, tmp_path, monkeypatch):
    """Every output is finite, the loss is not: overflow in the loss itself."""
    trainer = make_trainer(micro("statsq"), tmp_path / "c.pt")
    loss = trainer.gradients._loss

    def infinite(*arguments, **options):
        losses = loss(*arguments, **options)
        return losses._replace(total=losses.total * float("inf"))

    monkeypatch.setattr(trainer.gradients, "_loss", infinite)
    with pytest.raises(TrainingError, match=r"loss = inf at step 0 .* in the loss alone"):
        trainer.run()
