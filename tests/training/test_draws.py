"""Draws inside a model (dropout) depend on seed, epoch, step and process alone."""

import pytest
import torch
from torch import nn

from ofq_core.data import Batch
from ofq_core.distributed import World


class CutOffError(Exception):
    """As if the process were killed."""


@pytest.fixture
def dropping(micro, make_trainer, tmp_path):
    """A trainer whose model drops a fifth of every position, and what was kept in each forward."""

    def make(name, **options):
        settings = micro("ofq", recipe={"checkpoint_seconds": 1e-9})
        trainer = make_trainer(settings, tmp_path / f"{name}.pt", **options)
        kept = []
        trainer.model.pos_drop = nn.Dropout(0.2)
        trainer.model.pos_drop.register_forward_hook(
            lambda module, inputs, output: kept.append(output != 0) if module.training else None
        )
        return trainer, kept

    return make


def test_a_run_with_dropout_goes_on_bit_identically(dropping, identical):
    """Though the process draws for other reasons too, and differently after the cut."""
    whole, _ = dropping("whole", observe=lambda event: torch.rand(1))

    def cut_off(event):
        torch.rand(7)
        if (event.epoch, event.step) == (1, 3):
            raise CutOffError

    first, _ = dropping("cut", observe=cut_off)
    second, _ = dropping("cut")
    whole.run()
    with pytest.raises(CutOffError):
        first.run()
    second.run()
    identical(second.model.state_dict(), whole.model.state_dict())


def test_every_step_and_process_draws_afresh(dropping):
    trainer, kept = dropping("draws")
    trainer.model.train()
    batch = Batch(torch.ones(32, 1, 8, 8), torch.zeros(32, dtype=torch.int64))
    for epoch, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        trainer.gradients.fill(batch, epoch, step)
    assert torch.equal(kept[0], kept[3])
    assert not any(torch.equal(kept[0], other) for other in kept[1:3])
    assert not torch.equal(kept[1], kept[2])

    # Process 1, which here has no partner.
    trainer.gradients.world = World(rank=1, size=1)
    trainer.gradients.fill(batch, 0, 0)
    assert not torch.equal(kept[4], kept[0])
    assert (~kept[0]).float().mean() == pytest.approx(0.2, abs=0.02)
