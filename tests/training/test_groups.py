"""Matrices that are treated as one vector: which ones, and each comes out as it would alone."""

import pytest
import torch
from torch import nn

from ofq_core.methods.lsq import LSQWeight
from ofq_core.methods.statsq import StatsQWeight
from ofq_core.training import groups
from ofq_core.training.cga import ConfidenceGuidedAnnealing
from ofq_core.training.groups import grouped
from ofq_core.training.lowbit import LowBitWeight

SHAPES = [(4, 6), (3, 5), (8, 2), (2, 7)]


def low_bit(shape, bits=2, quantizer=StatsQWeight, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameter = nn.Parameter(torch.randn(*shape, generator=generator, dtype=dtype))
    module = quantizer(parameter.detach().clone(), bits)
    return LowBitWeight(str(shape), module, parameter, parameter.detach, lambda: parameter)


def names(found):
    return [[weight.name for weight in group.weights] for group in found]


def test_one_group_where_all_is_alike():
    weights = [low_bit(shape) for shape in SHAPES]
    (group,) = grouped(weights)
    assert group.weights == weights
    assert (group.rows, group.entries) == (slice(0, 4), slice(0, 69))
    assert (group.low, group.high) == (-2, 1)


def test_codes_and_dtypes_divide():
    weights = [
        low_bit((1, 1)),
        low_bit((1, 2), bits=3),
        low_bit((1, 3), bits=3, dtype=torch.float64),
        low_bit((1, 4), bits=3, dtype=torch.float64),
        low_bit((1, 5)),
    ]
    found = grouped(weights)
    assert names(found) == [["(1, 1)"], ["(1, 2)"], ["(1, 3)", "(1, 4)"], ["(1, 5)"]]
    assert [group.rows for group in found] == [slice(0, 1), slice(1, 2), slice(2, 4), slice(4, 5)]
    assert [group.entries.stop for group in found] == [1, 3, 10, 15]


def test_large_matrices_divide(monkeypatch):
    monkeypatch.setattr(groups, "_GROUP_ENTRIES", 40)
    found = grouped([low_bit(shape) for shape in [*SHAPES, (9, 9)]])
    assert names(found) == [["(4, 6)", "(3, 5)"], ["(8, 2)", "(2, 7)"], ["(9, 9)"]]
    assert grouped([]) == []


def test_parts_are_views_in_shape():
    weights = [low_bit(shape, seed=i) for i, shape in enumerate(SHAPES)]
    (group,) = grouped(weights)
    flat = group.flat(weight.latent() for weight in weights)
    for part, weight in zip(group.parts(flat), weights, strict=True):
        assert torch.equal(part, weight.latent())
        part.zero_()
    assert not flat.any()


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("quantizer", [StatsQWeight, LSQWeight])
def test_cga_holds_each_matrix_as_it_would_alone(quantizer, observed):
    """Every matrix with its own mask, also where bit widths and sizes differ."""
    bits = [2, 2, 4, 3]
    weights = [
        low_bit(shape, b, quantizer, seed=i)
        for i, (shape, b) in enumerate(zip(SHAPES, bits, strict=True))
    ]
    for weight in weights:
        weight.quantizer.observed_range = observed
        weight.parameter.grad = torch.ones_like(weight.parameter)
    before = [weight.latent().clone() for weight in weights]
    free = [w.quantizer.free(w.parameter, 0.2) for w in weights]
    optimizer = torch.optim.AdamW([w.parameter for w in weights], lr=0.1, weight_decay=0.5)
    annealing = ConfidenceGuidedAnnealing(optimizer, weights, 0.2)
    annealing.step()
    for weight, old, mask in zip(weights, before, free, strict=True):
        assert torch.equal(weight.latent() != old, mask)
        assert torch.equal(weight.parameter.grad != 0, mask)
    assert int(annealing.frozen) == sum(int((~mask).sum()) for mask in free)
    assert 0 < int(annealing.frozen) < annealing.total
