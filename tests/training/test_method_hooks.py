"""What a method does beside the forward pass: penalties in the gradient, a look at each step."""

import pytest
import torch

from ofq_core.methods.dampening import DampenedWeight
from ofq_core.methods.lsq import LSQWeight
from ofq_core.methods.pact import PACTActivation
from ofq_core.nn import ActivationRule, LSQActivation, WeightQuantizer
from ofq_core.training import method
from ofq_core.training.method import MethodHooks
from ofq_core.training.tracker import low_bit_weights

STEPS = 18
STRENGTH = {"strength": 3.0}


@pytest.fixture
def trainer_of(micro, make_trainer, tmp_path):
    def make(weight, qkr=False, options=None, recipe=None):
        quant = {"weight": weight, "qkr": qkr, "options": options or {}}
        return make_trainer(micro("lsq", quant=quant, recipe=recipe or {}), tmp_path / "c.pt")

    return make


@pytest.fixture
def loss_of():
    """The loss of a model in FP64 on random images."""
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    return lambda model: model(images).square().mean()


def gradients(model):
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


# Penalties


@pytest.mark.parametrize("progress", [0.3, 1.0])
@pytest.mark.parametrize("qkr", [False, True])
@pytest.mark.parametrize("weight", ["dampening", "obr"])
def test_penalties_are_as_if_they_were_in_the_loss(weight, qkr, progress, trainer_of, loss_of):
    """The gradient of one graph, loss and penalties; under QKR it reaches W_q and W_k."""
    model = trainer_of(weight, qkr, STRENGTH).model.double().eval()
    weights = low_bit_weights(model)
    loss_of(model).backward()
    without = gradients(model)
    MethodHooks(model, weights).add_penalties(progress)
    found = gradients(model)

    model.zero_grad()
    terms = [w.quantizer.penalty(w.differentiable(), progress) for w in weights]
    (loss_of(model) + sum(terms)).backward()
    expected = gradients(model)
    assert all(float(term.detach()) > 0 for term in terms)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda text, n=name: f"{n}: {text}")
    changed = {n for n, g in found.items() if not torch.allclose(g, without[n], rtol=1e-3)}
    factors = ["q_weight", "k_weight", "v.weight"] if qkr else ["qkv.weight"]
    matrices = ["mlp.fc1.weight", "mlp.fc2.weight", "attn.proj.weight"]
    matrices += [f"attn.{name}" for name in factors]
    moved = {f"blocks.0.{name}" for name in matrices}
    if weight == "obr":  # clipped weights stand at an outer code, which moves with the scale
        quantizers = ["mlp.fc1.weight", "mlp.fc2.weight", "attn.proj.weight"]
        quantizers += ["attn.qk", "attn.v.weight"] if qkr else ["attn.qkv.weight"]
        moved |= {f"blocks.0.{name}_quantizer.scale" for name in quantizers}
    assert changed == moved


def test_pacts_alphas(trainer_of, loss_of):
    """2 * 0.5 * alpha is added to the gradient of every low-bit alpha, and nothing else changes."""
    model = trainer_of("pact", options={"alpha_decay": 0.5}).model.double().eval()
    alphas = {
        f"{name}.scale": module.scale
        for name, module in model.named_modules()
        if isinstance(module, LSQActivation) and isinstance(module.rule, PACTActivation)
    }
    assert "blocks.0.mlp.fc1.input_quantizer.scale" in alphas
    assert not any(name.startswith(("patch_embed", "head")) for name in alphas)
    loss_of(model).backward()
    without = gradients(model)
    MethodHooks(model, low_bit_weights(model)).add_penalties(0.0)
    for name, gradient in gradients(model).items():
        added = alphas[name].detach() if name in alphas else torch.zeros_like(gradient)
        torch.testing.assert_close(gradient, without[name] + added)


def test_the_optimizer_sees_penalties(trainer_of):
    """Bit for bit the gradients of the step: those of the batch plus those of the penalties."""
    trainer = trainer_of("dampening", options=STRENGTH)
    fill, seen = trainer.gradients.fill, []
    trainer.gradients.fill = lambda *args: (fill(*args), seen.append(gradients(trainer.model)))[0]
    step = trainer.optimizer.step
    name = "blocks.0.mlp.fc1.weight"
    after = []
    trainer.optimizer.step = lambda: (after.append(gradients(trainer.model)[name]), step())
    trainer.run()
    # Eighteen steps; a quarter of them is over after four and a half.
    pulled = [not torch.equal(a, b[name]) for a, b in zip(after, seen, strict=True)]
    assert pulled == [False] * 5 + [True] * 13


# Parameters that have no gradient


def layers():
    """Two matrices under a penalty; `other` is not."""
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(2)])
    model.other = torch.nn.Linear(4, 4)
    generator = torch.Generator().manual_seed(0)
    weights = []
    for index, layer in enumerate(model.blocks):
        torch.nn.init.normal_(layer.weight, generator=generator)
        quantizer = DampenedWeight(layer.weight.detach(), 2, 1.0)
        layer.quantizer = quantizer
        parameter = layer.weight
        weights.append(
            method.LowBitWeight(
                str(index), quantizer, parameter, parameter.detach, lambda p=parameter: p
            )
        )
    return model, weights


def test_parameters_outside_the_penalty_are_untouched():
    model, weights = layers()
    MethodHooks(model, weights).add_penalties(1.0)
    found = gradients(model)
    given = {name for name, gradient in found.items() if gradient is not None}
    assert given == {"blocks.0.weight", "blocks.1.weight"}
    first = model.blocks[0].weight
    (expected,) = torch.autograd.grad(weights[0].quantizer.penalty(first, 1.0), first)
    torch.testing.assert_close(found["blocks.0.weight"], expected)


def test_parameters_that_are_not_trained_are_untouched():
    model, weights = layers()
    model.blocks[0].weight.requires_grad_(False)
    MethodHooks(model, weights).add_penalties(1.0)
    found = gradients(model)
    assert found["blocks.0.weight"] is None
    assert found["blocks.1.weight"].abs().max() > 0
    model.zero_grad()
    model.blocks[1].weight.requires_grad_(False)
    MethodHooks(model, weights).add_penalties(1.0)
    assert not any(gradient is not None for gradient in gradients(model).values())


def test_no_penalty_at_this_moment():
    """None from every quantizer: no gradient appears."""
    model, weights = layers()
    MethodHooks(model, weights).add_penalties(0.0)
    assert not any(gradient is not None for gradient in gradients(model).values())


# Once per step


def test_after_step_and_penalty_are_called_once_per_step(trainer_of, monkeypatch):
    """penalty: progress 0 at the first step; after_step: exactly 1 after the last."""
    calls = {"penalty": [], "after_step": []}

    class Both(LSQWeight):
        def penalty(self, weight, progress):
            assert weight.requires_grad
            calls["penalty"].append((id(self), progress))

        def after_step(self, weight, progress):
            assert not torch.is_grad_enabled()
            calls["after_step"].append((id(self), progress, weight.detach().clone()))

    monkeypatch.setattr("ofq_core.methods.lsq.LSQWeight", Both)
    trainer = trainer_of("lsq", qkr=True)
    latents = []
    trainer.observe = lambda event: latents.extend(
        weight.latent().clone() for weight in trainer.tracker.weights
    )
    trainer.run()
    ids = [id(weight.quantizer) for weight in trainer.tracker.weights]
    assert len(ids) == 5
    assert calls["penalty"] == [(i, step / STEPS) for step in range(STEPS) for i in ids]
    found = calls["after_step"]
    expected = [(i, step / STEPS) for step in range(1, STEPS + 1) for i in ids]
    assert [(i, progress) for i, progress, _ in found] == expected
    assert found[-1][1] == 1.0
    # The weights as the step left them, QKR's product too.
    assert all(torch.equal(w, latent) for (_, _, w), latent in zip(found, latents, strict=True))


def test_after_step_may_write_into_the_weights(trainer_of, monkeypatch):
    class Zeroing(LSQWeight):
        def after_step(self, weight, progress):
            weight[0].zero_()

    monkeypatch.setattr("ofq_core.methods.lsq.LSQWeight", Zeroing)
    trainer = trainer_of("lsq")
    trainer.run()
    for weight in trainer.tracker.weights:
        assert not weight.parameter[0].any()
        assert weight.parameter[1].all()


# Methods without hooks


@pytest.mark.parametrize("weight", ["lsq", "statsq", "seq", "stableqat", "lsqplus"])
def test_nothing_is_called_for_others(weight, trainer_of, monkeypatch):
    def fail(*args):
        pytest.fail("called")

    for base, name in (
        (WeightQuantizer, "penalty"),
        (WeightQuantizer, "after_step"),
        (ActivationRule, "penalty"),
    ):
        monkeypatch.setattr(base, name, fail)
    trainer = trainer_of(weight, recipe={"epochs": 1, "cga_epochs": 0})
    assert trainer.hooks.penalised == []
    assert trainer.hooks.looking == []
    assert trainer.hooks.activations == []
    monkeypatch.setattr(method.torch.autograd, "grad", fail)
    trainer.run()
    assert trainer.progress.step == 6


@pytest.mark.parametrize(
    ("weight", "counts"),
    [("dampening", (4, 0)), ("obr", (4, 0)), ("freezing", (0, 4)), ("qema", (0, 4))],
)
def test_who_is_called(weight, counts, trainer_of):
    hooks = trainer_of(weight).hooks
    assert (len(hooks.penalised), len(hooks.looking)) == counts
    assert hooks.activations == []
