"""CGA inside a training run: only in its phase, on every low-bit matrix, and on W_qk's gradient."""

import pytest
import torch

from ofq_core.models import QuantPlan, build_model, convert
from ofq_core.nn import QKRAttention
from ofq_core.training import low_bit_weights

MATRICES = {
    "ofq": ["attn.proj.weight", "attn.qk", "attn.v.weight", "mlp.fc1.weight", "mlp.fc2.weight"],
    "lsq_cga": ["attn.proj.weight", "attn.qkv.weight", "mlp.fc1.weight", "mlp.fc2.weight"],
}


@pytest.mark.parametrize("method", MATRICES)
def test_low_bit_weights_are_the_matrices_of_the_blocks(method, micro):
    """Patch embedding and heads (8 bit) are not among them."""
    settings = micro(method, model={"depth": 2})
    model = build_model(settings.model, 0)
    convert(model, QuantPlan.from_settings(settings.quant, settings.fidelity))
    names = sorted(weight.name for weight in low_bit_weights(model))
    assert names == [f"blocks.{i}.{name}" for i in (0, 1) for name in MATRICES[method]]


# Of the weights that may move. Now and then an update is below half a unit in the last place: about
# one in a million, and one is enough for a run of 40,000 updates not to move "all".
MOST = 0.99


def moves(step):
    """Share of all weights that a step moved."""
    return float(torch.cat([moved.flatten() for moved in step["moved"].values()]).float().mean())


@pytest.fixture
def watched(micro, make_trainer, tmp_path):
    """Train and note, per step, which weights were free before it and which have moved."""

    def train(method, **quant):
        settings = micro(method, recipe={"cga_epochs": 2, "weight_decay": 0.2}, quant=quant)
        steps = []
        trainer = make_trainer(settings, tmp_path / f"{method}.pt")
        matrices = trainer.annealing.weights

        def masks():
            return {
                w.name: (w.quantizer.free(w.parameter, settings.quant.boundary_range), w.latent())
                for w in matrices
            }

        before = {}

        def remember():
            before.update(
                {name: (free.clone(), value.clone()) for name, (free, value) in masks().items()}
            )

        def observe(event):
            steps.append(
                {
                    "epoch": event.epoch,
                    "band": {p.name: p.quantizer.gradient_band for p in trainer.annealing.products},
                    "free": {name: free for name, (free, _) in before.items()},
                    "moved": {
                        name: value != before[name][1] for name, (_, value) in masks().items()
                    },
                }
            )
            remember()

        remember()
        trainer.observe = observe
        trainer.run()
        return trainer, steps

    return train


@pytest.mark.parametrize("method", ["ofq", "statsq_cga", "lsq_cga"])
def test_only_free_weights_move_and_only_in_the_last_phase(method, watched):
    """With weight decay and the momentum of twelve steps before it."""
    _, steps = watched(method, boundary_range=0.1)
    assert len(steps) == 24
    for step in steps[:12]:
        assert moves(step) > MOST, "QAT: everything moves"
    frozen = free = free_moved = 0
    for step in steps[12:]:
        for name, moved in step["moved"].items():
            mask = step["free"][name]
            assert not moved[~mask].any(), f"{name}: a frozen weight changed"
            free_moved += int(moved[mask].sum())
            frozen += int((~mask).sum())
            free += int(mask.sum())
    assert 0.05 < free / (free + frozen) < 0.5, "both kinds were there"
    assert free_moved > MOST * free


def test_without_cga_the_last_phase_trains_on(watched):
    trainer, steps = watched("lsq", boundary_range=0.1)
    assert all(moves(step) > MOST for step in steps)
    assert not trainer.annealing.frozen.any(), "no step was one of CGA"


def test_band_of_the_product_is_set_in_the_last_phase_only(watched):
    trainer, steps = watched("ofq", boundary_range=0.1)
    bands = [step["band"]["blocks.0.attn.qk"] for step in steps]
    assert bands == [None] * 12 + [0.1] * 12
    (product,) = trainer.annealing.products
    assert product.quantizer.gradient_band is None, "after the run"


def test_stop_undoes_start(micro, make_trainer, tmp_path):
    trainer = make_trainer(micro("ofq"), tmp_path / "c.pt")
    (product,) = trainer.annealing.products
    before = dict(vars(product.quantizer))
    for _ in range(2):
        trainer.annealing.start()
        assert product.quantizer.gradient_band == trainer.settings.quant.boundary_range
        trainer.annealing.stop()
        assert vars(product.quantizer) == before


@pytest.mark.parametrize("band", [0.02, 0.1, 0.5])
def test_gradient_of_the_query_key_product_is_masked(band, micro, make_trainer, tmp_path):
    """dL/dW_qk reaches W_q and W_k where the product is free, and is zero where it is not.

    The narrowest band has some fifteen of the 512 entries in it; a much narrower one may have none.
    """
    trainer = make_trainer(micro("ofq", quant={"boundary_range": band}), tmp_path / "c.pt")
    attention = trainer.model.blocks[0].attn
    assert isinstance(attention, QKRAttention)
    product = attention.product().detach().requires_grad_()
    attention.product = lambda: product
    attention.train()
    x = torch.randn(4, 18, 16, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(4, 18, 16, generator=torch.Generator().manual_seed(1))

    def gradient():
        return torch.autograd.grad((attention(x) * weights).sum(), product)[0]

    full = gradient()
    assert (full != 0).all()
    trainer.annealing.start()
    masked = gradient()
    free = attention.qk_quantizer.free(product.detach(), band)
    assert torch.equal(masked, full * free)
    assert 0 < int(free.sum()) < free.numel()
    attention.eval()
    assert torch.equal(gradient(), full), "evaluation is not part of CGA"


def test_counts_of_frozen_weights(micro, make_trainer, tmp_path):
    """What `annealing` reports after a run is the mask of its last step."""
    settings = micro("statsq_cga", quant={"boundary_range": 0.05})
    trainer = make_trainer(settings, tmp_path / "c.pt")
    last = {}

    def observe(event):
        last["frozen"] = last.get("next")
        last["next"] = sum(
            int((~w.quantizer.free(w.parameter, 0.05)).sum()) for w in trainer.annealing.weights
        )

    trainer.observe = observe
    trainer.run()
    assert int(trainer.annealing.frozen) == last["frozen"]
    assert trainer.annealing.total == 3 * 16 * 16 + 16 * 16 + 2 * 16 * 32
