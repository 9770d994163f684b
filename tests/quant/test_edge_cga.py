"""The free band of CGA: bounds, inclusive ends, clipped weights, expected share."""

import pytest
import torch

from ofq_core.quant import free_mask, observed_code_range, statsq_codes, statsq_position
from ofq_core.quant.reference import freeze_mask_reference


@pytest.mark.parametrize("band", [0.0, -0.1, 0.51, 1.0, float("nan"), float("inf")])
def test_refused_band(band):
    with pytest.raises(ValueError, match=r"boundary_range = .*\(0, 0.5\]"):
        free_mask(torch.zeros(3), band, -2, 1)


def test_ends_are_inclusive_and_outer_thresholds_do_not_exist():
    # 2 bit: thresholds at -1.5, -0.5 and 0.5 only. 0.25 is exact in binary.
    position = torch.tensor([-2.5, -2.0, -1.75, -1.74, -1.25, -1.24, 0.5, 0.75, 0.76, 1.5])
    expected = [False, False, True, True, True, False, True, True, False, False]
    assert free_mask(position, 0.25, -2, 1).tolist() == expected


def test_widest_band_frees_the_whole_inner_grid():
    """With half a step on either side every position between the outer codes is free."""
    position = torch.tensor([-2.1, -2.0, -1.0, -0.3, 0.0, 1.0, 1.1])
    free = free_mask(position, 0.5, -2, 1)
    assert free.tolist() == [False, True, True, True, True, True, False]
    assert torch.equal(free, ~freeze_mask_reference(position, 0.5, -2, 1))


@pytest.mark.parametrize("bits", range(2, 9))
def test_clipped_weights_are_frozen(bits):
    weight = torch.full((1, 64), 0.01)
    weight[0, 0], weight[0, 1] = 50.0, -50.0
    for band in (0.005, 0.1, 0.49):
        free = free_mask(
            statsq_position(weight, bits), band, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        )
        assert not free[0, 0]
        assert not free[0, 1]


@pytest.mark.parametrize(("bits", "share"), [(2, 0.0078), (3, 0.0084), (4, 0.0087)])
def test_expected_share_for_gaussian_weights(bits, share):
    """Section 5.1: at a band of 0.005 about 0.8 % of Gaussian weights are free."""
    weight = torch.randn(1000, 768, generator=torch.Generator().manual_seed(0))
    n = 2 ** (bits - 1)
    free = free_mask(statsq_position(weight, bits), 0.005, -n, n - 1)
    assert free.float().mean().item() == pytest.approx(share, rel=0.05)


def test_observed_code_range():
    weight = torch.tensor([[0.96, 0.96, -1.04, -1.04]])
    assert observed_code_range(statsq_codes(weight, 2)) == (-2, 0)
