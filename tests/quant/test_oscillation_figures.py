"""Distance to a threshold, why a code changed, how evenly codes are used: by hand, in general."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofq_core.quant import boundary_distance, code_entropy, flip_causes, free_mask

RANGES = st.sampled_from([(-2, 1), (-4, 3), (-8, 7), (0, 3), (-128, 127)])
# Multiples of 2^-10: sums and differences are exact, so that ends of bands can be compared.
DYADIC = st.integers(-6 * 1024, 6 * 1024).map(lambda n: n / 1024)


# Distance


@pytest.mark.parametrize(
    ("position", "distance"),
    [
        # 2 bits: thresholds at -1.5, -0.5, 0.5; codes -2 to 1
        (-1.5, 0.0),
        (0.5, 0.0),
        (0.0, 0.5),
        (-1.0, 0.5),
        (-0.75, 0.25),
        (0.75, 0.25),
        (1.0, 0.5),
        # beyond the outermost codes it grows: the next threshold does not exist
        (1.5, 1.0),
        (1.625, 1.125),
        (-2.0, 0.5),
        (-2.5, 1.0),
        (-3.0, 1.5),
    ],
)
def test_distance_by_hand(position, distance):
    for dtype in (torch.float32, torch.float64):
        found = boundary_distance(torch.tensor([position], dtype=dtype), -2, 1)
        assert found.tolist() == [distance]
        assert found.dtype == dtype


def test_distance_leaves_the_position_as_it_is():
    position = torch.tensor([[0.25, -1.75]])
    assert boundary_distance(position, -2, 1).tolist() == [[0.25, 0.25]]
    assert position.tolist() == [[0.25, -1.75]]


@given(values=st.lists(DYADIC, min_size=1, max_size=20), grid=RANGES)
def test_distance_is_that_of_the_nearest_threshold(values, grid):
    low, high = grid
    found = boundary_distance(torch.tensor(values), low, high).tolist()
    assert found == [min(abs(v - t - 0.5) for t in range(low, high)) for v in values]


@given(
    values=st.lists(DYADIC, min_size=1, max_size=20),
    grid=RANGES,
    boundary_range=st.integers(1, 512).map(lambda n: n / 1024),
)
def test_a_weight_is_free_exactly_within_the_distance(values, grid, boundary_range):
    position = torch.tensor(values)
    inside = boundary_distance(position, *grid) <= boundary_range
    assert torch.equal(inside, free_mask(position, boundary_range, *grid))


@given(
    values=st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=20),
    boundary_range=st.floats(1e-4, 0.5),
)
def test_the_same_for_any_number_off_the_ends_of_the_band(values, boundary_range):
    position = torch.tensor(values)
    distance = boundary_distance(position, -4, 3)
    clear = (distance - boundary_range).abs() > 1e-6
    inside = distance <= boundary_range
    assert torch.equal(inside[clear], free_mask(position, boundary_range, -4, 3)[clear])


# Causes


@pytest.mark.parametrize(
    ("before", "after", "weight_alone", "scale_alone", "cause"),
    [
        (0, 1, 1, 0, "weight"),
        (0, 1, 0, 1, "scale"),
        (0, 1, 1, 1, "both"),  # either would have
        (0, 1, 0, 0, "both"),  # only together
        (0, 1, 2, 0, "weight"),  # alone it goes to another code, but it goes
        (0, -1, 0, 1, "scale"),
        # No flip: one undid the other.
        (0, 0, 1, -1, None),
        (0, 0, 0, 0, None),
        (0, 0, 1, 0, None),
    ],
)
def test_cause_by_hand(before, after, weight_alone, scale_alone, cause):
    codes = [torch.tensor([[c]]) for c in (before, after, weight_alone, scale_alone)]
    found = dict(zip(("weight", "scale", "both"), flip_causes(*codes), strict=True))
    assert {name for name, mask in found.items() if mask.item()} == ({cause} - {None})
    assert all(mask.dtype == torch.bool and mask.shape == (1, 1) for mask in found.values())


@st.composite
def _four_states(draw):
    size = draw(st.integers(1, 12))
    codes = st.lists(st.integers(-2, 1), min_size=size, max_size=size)
    return [torch.tensor(draw(codes), dtype=torch.int8) for _ in range(4)]


@given(_four_states())
def test_causes_partition_the_flips(codes):
    before, after, weight_alone, scale_alone = codes
    causes = torch.stack(flip_causes(*codes))
    assert torch.equal(causes.sum(0), (before != after).long())
    swapped = flip_causes(before, after, scale_alone, weight_alone)
    assert torch.equal(causes[[1, 0, 2]], torch.stack(swapped)), "weight and scale are symmetric"


# Entropy


@pytest.mark.parametrize(
    ("codes", "bits"),
    [
        ([1, 1, 1, 1], 0.0),
        ([-2, -1, 0, 1], 2.0),
        ([-2, -2, 1, 1], 1.0),
        ([-2, -2, 0, 1], 1.5),
        ([0, 0, 0, 1], 2 - 0.75 * math.log2(3)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.float32])
def test_entropy_by_hand(codes, bits, dtype):
    found = code_entropy(torch.tensor([codes], dtype=dtype), -2, 1)
    assert found.shape == ()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(bits, abs=1e-6)


def test_entropy_of_eight_bits_has_room_for_every_code():
    codes = torch.arange(-128, 128).to(torch.int8)
    assert code_entropy(codes, -128, 127).item() == pytest.approx(8.0)


@given(codes=st.lists(st.integers(-4, 3), min_size=1, max_size=40), data=st.data())
def test_entropy_in_general(codes, data):
    """Between nothing and all codes alike; it sees counts alone, not where or which code."""
    entropy = code_entropy(torch.tensor(codes), -4, 3).item()
    assert -1e-6 <= entropy <= math.log2(min(8, len(codes))) + 1e-5
    assert (entropy < 1e-6) == (len(set(codes)) == 1)
    shuffled = data.draw(st.permutations(codes))
    assert code_entropy(torch.tensor(shuffled), -4, 3).item() == entropy
    mirrored = [-1 - code for code in codes]
    assert code_entropy(torch.tensor(mirrored), -4, 3).item() == pytest.approx(entropy, abs=1e-5)
    doubled = torch.tensor(codes).repeat(2)
    assert code_entropy(doubled, -4, 3).item() == pytest.approx(entropy, abs=1e-5)
