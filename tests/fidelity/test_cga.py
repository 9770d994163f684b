"""Confidence-guided annealing acts: on parameters, on the query-key product, through a kill."""

import pytest
import torch

from tests.fidelity.frozen import Witness, frozen_by_definition


class CutOffError(Exception):
    """As if the process were killed."""


@pytest.mark.claim(
    "CGA freezes exactly the weights outside the band: they keep every bit, the others move.",
    released="The same in FP32; under AMP nothing is frozen, and in Swin without QKR nothing is.",
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("qkr", [False, True], ids=["plain", "qkr"])
@pytest.mark.parametrize("model", ["deit", "swin"])
def test_frozen_weights_keep_every_bit(model, qkr, precision, run_settings, wired):
    """At every CGA step the band, computed anew from its definition, tells who may move."""
    settings = run_settings(model, qkr=qkr, recipe={"precision": precision}, boundary_range=0.1)
    trainer = wired(settings)
    names = {weight.name.split(".")[-2] for weight in trainer.annealing.weights}
    assert names == {"fc1", "fc2", "proj", "v" if qkr else "qkv"} | (
        {"reduction"} if model == "swin" else set()
    )
    watch = Witness(trainer)
    trainer.run()
    assert watch.steps == trainer.steps
    assert watch.unsure < 1e-3 * (watch.free + watch.frozen)
    assert watch.frozen_moved == 0
    assert 0.02 < watch.free / (watch.free + watch.frozen) < 0.5
    assert watch.free_moved > 0.9 * watch.free


@pytest.mark.claim(
    "CGA reaches the query-key product: the gradient of its confident entries is exactly zero, and "
    "W_q and W_k get what the free ones pass on.",
    released="No effect at all: the mask is detached before it can act.",
)
@pytest.mark.parametrize("targets", ["all", "linear"])
@pytest.mark.parametrize("model", ["deit", "swin"])
def test_confident_entries_of_the_product_get_no_gradient(model, targets, run_settings, wired):
    """dL/dW_q[h] = W_k[h] (U[h] * free)^T; with cga_targets=linear, U unmasked, as released."""
    fidelity = {"cga_targets": targets, "qk_bias": "drop"}
    trainer = wired(run_settings(model, fidelity=fidelity, boundary_range=0.1))
    modules = [m for m in trainer.model.modules() if hasattr(m, "qk_quantizer")]
    seen = {}

    def keep(module, arguments, output):
        arguments[0].retain_grad()
        output.retain_grad()
        seen[module] = arguments[0], output

    for module in modules:
        module.qk_quantizer.register_forward_hook(keep)
    trainer.annealing.start()
    trainer.model.train()
    trainer.gradients.fill(next(batches(trainer)), 0, 0)
    assert len(seen) == len(modules) > 1
    for module in modules:
        product, quantized = seen[module.qk_quantizer]
        frozen, sure = frozen_by_definition(product, 2, 0.1)
        free = torch.ones_like(frozen) if targets == "linear" else ~frozen
        assert 0 < frozen.float().mean() < 1
        assert bool((~sure).float().mean() < 1e-2)
        assert bool((quantized.grad[frozen & sure] != 0).any()), "there was something to mask"
        assert torch.equal(product.grad[sure], (quantized.grad * free)[sure])
        passed = product.grad.view(module.num_heads, -1, product.shape[1]).transpose(1, 2)
        keys = module.k_weight.view(module.num_heads, module.head_dim, -1)
        expected = (keys @ passed).flatten(0, 1)
        # Two orders of a sum of FP32 differ by at most its terms' sizes, an eps for each of them.
        terms = (keys.abs() @ passed.abs()).flatten(0, 1)
        bound = passed.shape[1] * torch.finfo(torch.float32).eps * terms
        assert bool(((module.q_weight.grad - expected).abs() <= bound).all())


def batches(trainer):
    world = trainer.world
    return trainer.data.train_batches(trainer.recipe, 0, 0, 0, world.share, world.device)


@pytest.mark.claim(
    "CGA is not just more training: every method has as many epochs, and without CGA all "
    "weights move in the last ones.",
    released="CGA is a second run on top of a finished one, so with it there are more epochs.",
)
def test_without_cga_everything_moves(run_settings, wired):
    """Same phases and steps; no weight is held."""
    with_cga, without = (wired(run_settings(cga=cga)) for cga in (True, False))
    assert with_cga.schedule == without.schedule
    watch = Witness(without)
    before = []

    def observe(event):
        if event.epoch == 2:
            weights = [w.parameter.detach().clone() for w in without.annealing.weights]
            if before:
                still = sum(int((a == b).sum()) for a, b in zip(before[-1], weights, strict=True))
                assert still < 0.05 * sum(w.numel() for w in weights)
            before.append(weights)

    without.observe = observe
    without.run()
    assert len(before) == without.steps
    assert watch.steps == 0


@pytest.mark.claim(
    "Frozen weights stay frozen through a kill in the middle of CGA, and the run ends "
    "bit-identical to an undisturbed one.",
    released="CGA is a second run, whose first epoch is forced to be number 300.",
)
def test_frozen_weights_survive_a_kill(run_settings, wired, tmp_path):
    """Cut off at the third step of CGA, from a checkpoint of every step."""
    settings = run_settings(recipe={"checkpoint_seconds": 1e-9})

    def cut_off(event):
        if event.epoch == 2 and event.step == 2:
            raise CutOffError

    undisturbed, first, second = wired(settings), wired(settings), wired(settings)
    undisturbed.checkpoint = tmp_path / "undisturbed"
    first.checkpoint = second.checkpoint = tmp_path / "disturbed"
    first.observe = cut_off
    watches = [Witness(first), Witness(second)]
    undisturbed.run()
    with pytest.raises(CutOffError):
        first.run()
    second.run()
    assert [watch.steps for watch in watches] == [3, 4], "it went on in the middle of the epoch"
    assert all(watch.frozen > 0 for watch in watches)
    assert [watch.frozen_moved for watch in watches] == [0, 0]
    state = second.model.state_dict()
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(state[name], value), name


@pytest.mark.claim(
    "Frozen weights stay frozen under DDP, through a kill too: both processes hold the same bits.",
    released="Its runs use DDP; nothing tests that.",
)
def test_frozen_weights_survive_two_processes(two_processes):
    """Two gloo processes; a second pair is cut off at the third step of CGA and goes on."""
    for run, steps in (("undisturbed", 6), ("resumed", 7)):
        for found in two_processes:
            assert found[run]["steps"] == steps
            assert found[run]["frozen"] > 10 * found[run]["free"] > 0
            assert found[run]["frozen_moved"] == 0
            assert found[run]["free_moved"] > 0
    first = two_processes[0]["undisturbed"]["state"]
    for other in (two_processes[0]["resumed"], *(found["resumed"] for found in two_processes[1:])):
        for name, value in first.items():
            assert torch.equal(other["state"][name], value), name
