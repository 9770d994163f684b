"""CGA over many steps: what is frozen in a step keeps every bit in it, whatever the optimizer."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ofq_core.methods.lsq import LSQWeight
from ofq_core.methods.statsq import StatsQWeight
from ofq_core.quant import qkr_product
from ofq_core.training.cga import ConfidenceGuidedAnnealing
from ofq_core.training.lowbit import LowBitWeight

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.5),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-1, momentum=0.9, weight_decay=0.1),
}


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    steps=st.integers(1, 8),
    bits=st.integers(2, 8),
    quantizer=st.sampled_from([StatsQWeight, LSQWeight]),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    band=st.sampled_from([0.005, 0.05, 0.3]),
    seed=st.integers(0, 10**6),
)
def test_frozen_weights_keep_every_bit(steps, bits, quantizer, optimizer, band, seed):
    """Weight decay and the momentum of earlier steps would move them."""
    parameter = nn.Parameter(randn(12, 16, seed=seed))
    other = nn.Parameter(randn(5, seed=seed))
    module = quantizer(parameter.detach().clone(), bits)
    inner = OPTIMIZERS[optimizer]([parameter, other])
    weight = LowBitWeight("weight", module, parameter, parameter.detach, lambda: parameter)
    annealing = ConfidenceGuidedAnnealing(inner, [weight], band)
    for step in range(steps):
        before, other_before = parameter.detach().clone(), other.detach().clone()
        free = module.free(parameter, band)
        parameter.grad, other.grad = randn(12, 16, seed=seed + step), randn(5, seed=seed + step)
        annealing.step()
        assert torch.equal(parameter[~free], before[~free])
        assert (parameter != before)[free].all()
        assert (other != other_before).all(), "what CGA does not watch trains on"
        assert int(annealing.frozen) == int((~free).sum())


def test_products_are_masked_between_start_and_stop_only():
    """W_qk is no parameter: its gradient is masked instead, and only in the last phase."""
    factors = [nn.Parameter(randn(8, 8, seed=i)) for i in (0, 1)]
    module = StatsQWeight(qkr_product(*factors, 2).detach(), 2)

    def latent():
        return qkr_product(*factors, 2)

    product = LowBitWeight("qk", module, None, lambda: latent().detach(), latent)
    annealing = ConfidenceGuidedAnnealing(torch.optim.SGD(factors, lr=0.1), [product], 0.1)

    def gradient():
        return torch.autograd.grad(module(qkr_product(*factors, 2)).sum(), factors[0])[0]

    full = gradient()
    annealing.start()
    assert not torch.allclose(gradient(), full)
    annealing.stop()
    assert torch.equal(gradient(), full)
    annealing.step()  # nothing to restore, nothing counted
    assert annealing.total == 0
