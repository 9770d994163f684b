"""Moving average of the weights, gradient clipping, bf16, memory layout, schedule per step."""

import math

import pytest
import torch

from ofq_core.settings import FidelitySettings, RecipeSettings
from ofq_core.training.schedule import Schedule


def steps_of(trainer):
    """Weights of the student after every step, by a hook on the tracker."""
    seen, update = [], trainer.tracker.update

    def watch():
        update()
        seen.append({k: v.detach().clone() for k, v in trainer.model.named_parameters()})

    trainer.tracker.update = watch
    return seen


def test_moving_average_by_hand(micro, make_trainer, tmp_path):
    """a <- d a + (1 - d) w after every step, from the weights after the first; that is kept."""
    decay = 0.8
    trainer = make_trainer(micro("ofq", recipe={"ema_decay": decay}), tmp_path / "c.pt")
    seen = steps_of(trainer)
    trainer.run()
    average = seen[0]
    for weights in seen[1:]:
        average = {k: decay * average[k] + (1 - decay) * v for k, v in weights.items()}
    assert len(seen) == 18
    kept = dict(trainer.kept_model.named_parameters())
    for name, value in average.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-5, atol=1e-7, msg=name)
    last = seen[-1]["blocks.0.mlp.fc1.weight"]
    assert not torch.allclose(kept["blocks.0.mlp.fc1.weight"], last, rtol=1e-3)
    # There is one epoch of the last phase, so that is selected: the run ends with the average.
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, kept[name]), name


@pytest.mark.parametrize("method", ["statsq", "statsq_cga"])
def test_clipping_by_hand(method, micro, make_trainer, tmp_path):
    """The optimizer sees gradients of that norm; those of frozen weights do not count."""
    largest = 0.01
    settings = micro(method, recipe={"clip_grad": largest, "epochs": 1})
    trainer = make_trainer(settings, tmp_path / "c.pt")
    norms, frozen = [], []

    def look(optimizer, *_):
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"]]
        norms.append(math.sqrt(sum(float(g.square().sum()) for g in gradients)))
        frozen.append(sum(int((w.parameter.grad == 0).sum()) for w in trainer.annealing.weights))

    trainer.optimizer.register_step_pre_hook(look)
    trainer.run()
    assert norms == pytest.approx([largest] * 12, rel=1e-4)
    assert (min(frozen[6:]) > 1000) == (method == "statsq_cga")


def test_without_a_limit_gradients_are_left_alone(micro, make_trainer, tmp_path):
    states = []
    for limit in (None, 1e6):
        settings = micro("statsq", recipe={"clip_grad": limit, "epochs": 1, "cga_epochs": 0})
        trainer = make_trainer(settings, tmp_path / f"{limit}.pt")
        trainer.run()
        states.append(trainer.model.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize("method", ["lsq", "ofq"])
def test_bf16_learns_and_keeps_fp32_weights(method, micro, make_trainer, tmp_path):
    """The losses are near those in FP32 and not the same: matrix products did run in bf16."""
    losses = {}
    for precision in ("fp32", "bf16"):
        settings = micro(method, bits=4, recipe={"precision": precision})
        trainer = make_trainer(settings, tmp_path / f"{precision}.pt")
        trainer.run()
        losses[precision] = [row["train_loss"] for row in trainer.progress.history]
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"][-1] < losses["bf16"][0]


def test_channels_last(micro, make_trainer, tmp_path):
    """The convolution's weights and the images have that layout; the losses are the same."""
    losses = {}
    for layout in (False, True):
        settings = micro("ofq", bits=8, recipe={"channels_last": layout, "epochs": 1})
        settings = settings.model_copy(update={"fidelity": FidelitySettings(cga_targets="linear")})
        trainer = make_trainer(settings, tmp_path / f"{layout}.pt")
        seen = []
        trainer.model.patch_embed.proj.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(inputs[0].stride())
        )
        trainer.run()
        losses[layout] = [row["train_loss"] for row in trainer.progress.history]
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)


RECIPE = RecipeSettings(
    epochs=4, cga_epochs=2, cooldown_epochs=3, batch_size=1, lr=1.0, min_lr=0.2, warmup_lr=0.1,
    warmup_epochs=1,
)  # fmt: skip


def test_phases():
    described = Schedule.from_settings(RECIPE, FidelitySettings(), 5)
    assert described.phases == ("qat",) * 4 + ("anneal",) * 2
    assert described.last_phase == 4
    released = Schedule.from_settings(RECIPE, FidelitySettings(cooldown=True), 5)
    assert released.phases == ("qat",) * 4 + ("cooldown",) * 3 + ("anneal",) * 2
    assert released.last_phase == 7


def test_rate_per_step_by_hand():
    """Warm-up reaches lr's line after its epochs; the cosine is that of epoch + step / steps."""
    schedule = Schedule.from_settings(RECIPE, FidelitySettings(), 4)
    assert [schedule.rate(0, step) for step in range(4)] == pytest.approx([0.1, 0.325, 0.55, 0.775])
    # Half-way through epoch 2 of 4: 0.2 + 0.4 (1 + cos(2.5 pi / 4)).
    assert schedule.rate(2, 2) == pytest.approx(0.2 + 0.4 * (1 + math.cos(2.5 * math.pi / 4)))
    assert schedule.rate(4, 0) == schedule.rate(5, 3) == 0.2
    rates = [schedule.rate(epoch, step) for epoch in range(1, 6) for step in range(4)]
    assert rates == sorted(rates, reverse=True)


def test_rate_per_epoch_stands_still():
    schedule = Schedule.from_settings(RECIPE, FidelitySettings(lr_step="epoch"), 4)
    assert {schedule.rate(2, step) for step in range(4)} == {
        0.2 + 0.4 * (1 + math.cos(math.pi / 2))
    }


def test_the_optimizer_gets_the_rate_of_its_step(micro, make_trainer, tmp_path):
    trainer = make_trainer(micro("ofq"), tmp_path / "c.pt")
    used = []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append({g["lr"] for g in optimizer.param_groups})
    )
    trainer.run()
    assert used == [{trainer.schedule.rate(e, s)} for e in range(3) for s in range(6)]
    assert len({rate for rates in used for rate in rates}) == 13
