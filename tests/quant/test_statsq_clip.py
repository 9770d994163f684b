"""StatsQ with another clip than 1, as a released checkpoint may hold ("clip_val" is twice it)."""

import pytest
import torch

from ofq_core.methods.statsq import StatsQWeight
from ofq_core.quant import statsq


def quantizer(clip, bits=2):
    module = StatsQWeight(torch.zeros(1, 4), bits)
    module.set_clip(torch.tensor([clip]))
    return module


def test_codes_by_hand():
    """s = 1: u = clamp(W, -c, c - 1e-6) * 2 - 0.5, rounded, without a second clamp."""
    weight = torch.tensor([[1.3, -0.3, 0.1, -0.3]])
    assert StatsQWeight(weight, 2).codes(weight).tolist() == [[1, -1, 0, -1]]
    # c = 1.3: u = 2.1, a code above the grid. c = 0.7: u = 0.9. c = 0.2: u is -0.1 or -0.9.
    assert quantizer(1.3).codes(weight).tolist() == [[2, -1, 0, -1]]
    assert quantizer(0.7).codes(weight).tolist() == [[1, -1, 0, -1]]
    assert quantizer(0.2).codes(weight).tolist() == [[0, -1, 0, -1]]


@pytest.mark.parametrize(("clip", "low", "high"), [(1.3, -3, 2), (1.0, -2, 1), (0.7, -2, 1)])
def test_range_of_codes(clip, low, high):
    module = quantizer(clip)
    assert (module.low, module.high) == (low, high)
    extreme = torch.tensor([[9.0, -9.0] + 6 * [0.1]])
    assert module.codes(extreme).tolist()[0][:2] == [high, low]
    output = module(extreme)
    scale = 2 * extreme.abs().mean()
    torch.testing.assert_close(output[0, :2], scale * (torch.tensor([high, low]) + 0.5) / 2)


def test_outer_codes_of_eight_bits_fit():
    """Code 128 would be -128 as int8."""
    module = quantizer(1.01, bits=8)
    assert module.codes(torch.tensor([[9.0, -9.0] + 6 * [0.1]])).tolist()[0][:2] == [129, -130]
    assert quantizer(1.0, bits=8).codes(torch.zeros(1, 4)).dtype == torch.int8


def test_a_clip_of_one_changes_nothing():
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    for bits in (2, 3, 4):
        assert torch.equal(quantizer(1.0, bits)(weight), statsq(weight, bits))


def test_it_is_saved_only_where_it_was_set():
    assert StatsQWeight(torch.zeros(1, 4), 2).state_dict() == {}
    assert quantizer(1.3).state_dict()["clip"].tolist() == pytest.approx([1.3])
