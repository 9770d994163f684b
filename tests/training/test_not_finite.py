"""What is not finite stops the run, names the place, and loses nothing."""

import re

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
    trainer = make_trainer(micro("statsq"), tmp_path / "c.pt")
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


NAN, INF = float("nan"), float("inf")


def set_weight(value, average=False):
    """One entry of a parameter, right after the optimizer's step."""

    def change(trainer):
        model = trainer.averaged.module if average else trainer.model
        with torch.no_grad():
            model.get_parameter("blocks.0.mlp.fc2.bias")[3] = value

    return change


def set_moment(trainer):
    """As a finite gradient of 1e20 does: its square is none, and the weight never moves again."""
    bias = trainer.model.get_parameter("head.bias")
    trainer.optimizer.state[bias]["exp_avg_sq"][0] = INF


LAST = {
    "nan": (set_weight(NAN), {}, "blocks.0.mlp.fc2.bias has 1 of 16 values like nan"),
    "inf": (set_weight(-INF), {}, "blocks.0.mlp.fc2.bias has 1 of 16 values like -inf"),
    "moment": (set_moment, {}, "exp_avg_sq of head.bias has 1 of 10 values like inf"),
    "average": (
        set_weight(NAN, average=True),
        {"ema_decay": 0.9},
        "the average of blocks.0.mlp.fc2.bias has 1 of 16 values like nan",
    ),
}


@pytest.mark.parametrize("step", [6, 18])
@pytest.mark.parametrize("kind", LAST)
def test_after_the_last_step(kind, step, micro, make_trainer, tmp_path, identical):
    """Of an epoch and of the run: no loss has seen it. No checkpoint has it, the run goes on."""
    change, recipe, expected = LAST[kind]
    settings = micro("ofq", recipe=recipe)
    trainer = make_trainer(settings, tmp_path / "c.pt")

    def observe(event):
        if event.epoch * event.steps + event.step + 1 == step:
            change(trainer)

    trainer.observe = observe
    with pytest.raises(TrainingError) as error:
        trainer.run()
    message = str(error.value)
    assert message.startswith(f"{expected} after step {step} (epoch {step // 6 - 1})")
    assert message.endswith("Lower recipe.lr = 0.005.")
    assert (tmp_path / "c.pt").exists() == (step > 6) == ("last good checkpoint" in message)
    states = []
    for name in ("c.pt", "whole.pt"):
        again = make_trainer(settings, tmp_path / name)
        again.run()
        states.append(dict(again.model.state_dict()))
    identical(*states)


def test_asked_to_stop_with_a_weight_that_is_not_finite(micro, make_trainer, tmp_path):
    """The checkpoint that would end the run for ever is not written."""
    asked = []
    trainer = make_trainer(micro("statsq"), tmp_path / "c.pt", asked_to_stop=lambda: bool(asked))

    def observe(event):
        if event.step == 3:
            set_weight(NAN)(trainer)
        if event.step == 2:
            asked.append(event)

    trainer.observe = observe
    with pytest.raises(TrainingError, match=r"fc2\.bias has 1 of 16 values like nan after step 4"):
        trainer.run()
    assert not (tmp_path / "c.pt").exists()


@pytest.mark.parametrize("method", ["ofq", "lsq_cga", "fp"])
def test_a_rate_beyond_all_bounds(method, micro, make_trainer, tmp_path):
    """One step an epoch: weights of 1e30 are finite, what they compute is not. Each attempt says
    so in one message, and none leaves a checkpoint."""
    recipe = {"lr": 1e30, "min_lr": 1e29, "batch_size": 195}
    for _ in range(2):
        trainer = make_trainer(micro(method, recipe=recipe), tmp_path / "c.pt")
        with pytest.raises(TrainingError) as error:
            trainer.run()
        said = (
            r"after step 1 \(epoch 0\), \d+ of 30 val images get logits that are NaN or infinite,"
        )
        assert re.match(said, str(error.value))
        assert str(error.value).endswith("Lower recipe.lr = 1e+30.")
        assert not (tmp_path / "c.pt").exists()


def test_before_the_first_step(micro, make_trainer, tmp_path):
    """What the run starts from: its message gives no advice about the rate."""
    trainer = make_trainer(micro("lsq"), tmp_path / "c.pt")
    with torch.no_grad():
        trainer.model.get_parameter("blocks.0.mlp.fc1.weight_quantizer.scale")[0] = INF
    with pytest.raises(TrainingError) as error:
        trainer.run()
    name = "blocks.0.mlp.fc1.weight_quantizer.scale"
    assert str(error.value) == f"{name} has 1 of 32 values like inf before the first step"


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_teachers_answer(value, micro, make_trainer, tmp_path):
    """Also where the loss would not tell: a class with the logit -inf has probability 0."""
    trainer = make_trainer(micro("statsq"), tmp_path / "c.pt")

    def spoil_head(module, inputs, output):
        return output.index_fill(1, torch.tensor([2]), value)

    for head in (trainer.teacher.model.head, trainer.teacher.model.head_dist):
        head.register_forward_hook(spoil_head)
    with pytest.raises(TrainingError, match=r"loss = nan at step 0 .* first in teacher\.head"):
        trainer.run()
