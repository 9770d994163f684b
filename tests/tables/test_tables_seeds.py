"""Mean, spread and paired differences against values worked out by hand."""

import math

import pytest

from tables import seeds


def test_mean_and_sample_standard_deviation() -> None:
    # Deviations from 92 are -2, 0, 2, so the variance is 8 / (3 - 1) = 4.
    assert seeds.mean([90.0, 92.0, 94.0]) == 92.0
    assert seeds.spread([90.0, 92.0, 94.0]) == 2.0


def test_one_value_has_no_spread() -> None:
    assert seeds.spread([90.0]) is None


def test_order_moves_no_digit() -> None:
    values = [0.1, 0.2, 0.3, 1e10, -1e10]
    assert seeds.mean(values) == seeds.mean(values[::-1])


def test_paired_difference_uses_seeds_not_ranks() -> None:
    # Per seed 3, 1 and 2: mean 2, deviations 1, -1, 0, variance 2 / 2. Unpaired: far larger.
    ofq = {0: 93.0, 1: 81.0, 2: 72.0}
    lsq = {2: 70.0, 1: 80.0, 0: 90.0}
    assert seeds.paired(ofq, lsq) == seeds.Difference(mean=2.0, spread=1.0, pairs=3)


def test_paired_difference_over_the_common_seeds_only() -> None:
    difference = seeds.paired({0: 93.0, 1: 81.0, 7: 10.0}, {0: 90.0, 1: 80.0, 2: 70.0})
    assert difference is not None
    assert (difference.mean, difference.pairs) == (2.0, 2)
    assert difference.spread == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("baseline", [{}, {5: 90.0}])
def test_no_common_seed_no_difference(baseline: dict[int, float]) -> None:
    assert seeds.paired({0: 93.0}, baseline) is None
