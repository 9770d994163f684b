"""The order of an epoch, and the parts of a batch: complete, disjoint, in whole pairs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data.distributed_sampler import RepeatAugSampler

from ofq_core.data.order import Share, epoch_images, epoch_order, mix_group, positions
from ofq_core.errors import DataError
from ofq_core.seeds import derive_seed, generator
from ofq_core.settings import RecipeSettings


def make(**changes):
    return RecipeSettings(**{"epochs": 1, "cga_epochs": 0, "batch_size": 8, "lr": 1e-3, **changes})


def parts(batch, world, group=None):
    return [positions(batch, Share(rank, world), group) for rank in range(world)]


@given(world=st.integers(1, 9), extra=st.integers(0, 40))
def test_parts_are_a_partition_in_order(world, extra):
    split = parts(world + extra, world)
    assert torch.cat(split).tolist() == list(range(world + extra))
    sizes = [len(part) for part in split]
    assert max(sizes) - min(sizes) <= 1


@given(world=st.integers(1, 7), groups=st.integers(1, 4), pairs=st.integers(1, 12))
def test_mixed_parts_hold_whole_pairs(world, groups, pairs):
    """Flipping a process's part of a group brings the partners of the whole group together."""
    group = 2 * pairs
    batch = groups * group
    if batch // 2 < world:
        return
    split = parts(batch, world, group)
    assert sorted(torch.cat(split).tolist()) == list(range(batch))
    sizes = [len(part) for part in split]
    assert max(sizes) - min(sizes) <= 2
    for part in split:
        number = part // group
        assert number.tolist() == sorted(number.tolist()), "group after group"
        for g in number.unique():
            inside = part[number == g] - g * group
            assert (inside + inside.flip(0) == group - 1).all()


def test_parts_by_hand():
    assert positions(6, Share(0, 2)).tolist() == [0, 1, 2]
    assert positions(8, Share(0, 2), 8).tolist() == [0, 1, 6, 7]
    assert positions(8, Share(1, 2), 8).tolist() == [2, 3, 4, 5]
    assert positions(8, Share(0, 1), 4).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    # Six pairs over two processes: the middle group is divided.
    assert positions(12, Share(0, 2), 4).tolist() == [0, 1, 2, 3, 4, 7]
    assert positions(12, Share(1, 2), 4).tolist() == [5, 6, 8, 9, 10, 11]


def test_more_processes_than_images():
    with pytest.raises(DataError, match=r"recipe\.batch_size = 3: 3 images .* over 4 processes"):
        positions(3, Share(0, 4))
    with pytest.raises(DataError, match=r"4: 2 pairs of images to mix .* expected at least 3"):
        positions(4, Share(0, 3), 4)


def test_what_is_mixed_by_one_draw():
    assert mix_group(make()) is None
    assert mix_group(make(mixup=0.8)) == 8
    assert mix_group(make(cutmix=1.0, mix_group=4)) == 4
    assert mix_group(make(mix_group=4)) is None, "nothing is mixed"


def test_plain_order_is_a_permutation_of_seed_and_epoch():
    order = epoch_order(100, make(), 3, 5)
    assert torch.equal(order, torch.randperm(100, generator=generator(3, "order", 5)))
    assert not torch.equal(order, epoch_order(100, make(), 3, 6))
    assert not torch.equal(order, epoch_order(100, make(), 4, 5))


@pytest.mark.parametrize("size", [40, 255, 256, 700, 1025])
def test_repeated_augmentation_is_what_four_processes_of_timm_see(size):
    """Step by step: the union of the processes' batches is the batch of the whole."""
    recipe = make(repeated_augmentation=3, batch_size=8)
    order = epoch_order(size, recipe, 1, 2)
    assert len(order) == epoch_images(size, recipe)
    samplers = []
    for rank in range(4):
        sampler = RepeatAugSampler(range(size), num_replicas=4, rank=rank, num_repeats=3)
        sampler.set_epoch(derive_seed(1, "order", 2))
        samplers.append(list(sampler))
    for step in range(len(order) // 8):
        together = [samplers[i % 4][2 * step + i // 4] for i in range(8)]
        assert order[8 * step : 8 * step + 8].tolist() == together


def test_views_of_an_image_follow_each_other():
    order = epoch_order(300, make(repeated_augmentation=3), 0, 0)
    assert len(order) == 256, "a multiple of 256, as timm has it"
    assert (order[:255].view(-1, 3) == order[:255:3, None]).all()
    assert len(order.unique()) == 86


@pytest.mark.parametrize(
    ("images", "batch", "repeats", "steps"),
    [(1281167, 560, 1, 2287), (1281167, 800, 3, 1601), (1281167, 512, 1, 2502)],
)
def test_steps_are_those_of_the_released_runs(images, batch, repeats, steps):
    """Spec 7.2, from the number of ImageNet's training images."""
    recipe = make(batch_size=batch, repeated_augmentation=repeats)
    assert epoch_images(images, recipe) // batch == steps
