"""Mixup and CutMix: timm's, and the same for any number of processes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data.mixup import Mixup

from ofq_core.data import ArrayData, Share, load_prepared, positions
from ofq_core.data.mixing import mix
from ofq_core.data.order import mix_group
from ofq_core.data.random_state import seeded
from ofq_core.seeds import derive_seed
from ofq_core.settings import RecipeSettings

KINDS = {
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "both": {"mixup": 0.8, "cutmix": 1.0},
    "seldom": {"mixup": 0.8, "cutmix": 1.0, "mix_prob": 0.3},
}


def make(kind, batch=8, group=None):
    return RecipeSettings(
        epochs=1, cga_epochs=0, batch_size=batch, lr=1e-3, mix_group=group, **KINDS[kind]
    )


def batch(size, seed=0):
    draws = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 9, 7, generator=draws)
    return images, torch.randint(0, 5, (size,), generator=draws)


def mixed(recipe, share, step=0, epoch=0, seed=0):
    images, labels = batch(recipe.batch_size)
    mine = positions(recipe.batch_size, share, mix_group(recipe))
    return mine, *mix(images[mine].clone(), labels[mine], mine, recipe, 5, seed, epoch, step)


@given(
    kind=st.sampled_from(list(KINDS)),
    world=st.integers(2, 5),
    groups=st.integers(1, 3),
    pairs=st.integers(2, 5),
    step=st.integers(0, 20),
)
def test_processes_together_compute_what_one_computes(kind, world, groups, pairs, step):
    """Bit by bit, images and targets."""
    recipe = make(kind, 2 * pairs * groups, 2 * pairs)
    if pairs * groups < world:
        return
    _, images, targets = mixed(recipe, Share(), step)
    for rank in range(world):
        mine, my_images, my_targets = mixed(recipe, Share(rank, world), step)
        assert torch.equal(my_images, images[mine])
        assert torch.equal(my_targets, targets[mine])


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_timms_mixing(kind):
    """The whole batch at once, from the same state of NumPy."""
    recipe = make(kind)
    arguments = {"mixup_alpha": recipe.mixup, "cutmix_alpha": recipe.cutmix}
    mixup = Mixup(
        **arguments, prob=recipe.mix_prob, switch_prob=0.5, label_smoothing=0.1, num_classes=5
    )
    different = 0
    for step in range(12):
        images, labels = batch(8)
        with seeded(derive_seed(0, "mix", 0, step, 0)):
            expected, targets = mixup(images.clone(), labels)
        _, found, found_targets = mixed(recipe, Share(), step)
        assert torch.equal(found, expected)
        assert torch.equal(found_targets, targets)
        different += not torch.equal(expected, images)
    assert 12 >= different >= (1 if kind == "seldom" else 10), "most steps do mix"
    assert kind != "seldom" or different < 12


def test_targets_are_probabilities_with_smoothing():
    _, _, targets = mixed(make("both"), Share())
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    assert float(targets.min()) == pytest.approx(0.1 / 5)


def test_every_group_has_a_draw_of_its_own():
    """Equal groups would be mixed alike if they shared the draw."""
    recipe = make("mixup", 16, 4)
    images, labels = batch(4)
    mine = positions(16, Share(), 4)
    result, _ = mix(images.repeat(4, 1, 1, 1), labels.repeat(4), mine, recipe, 5, 0, 0, 0)
    groups = result.split(4)
    assert all(not torch.equal(groups[0], other) for other in groups[1:])


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"step": 1}])
def test_draws_depend_on_seed_epoch_and_step(change):
    recipe = make("mixup")
    same, other = (mixed(recipe, Share(), **c)[1] for c in ({}, change))
    assert torch.equal(same, mixed(recipe, Share())[1])
    assert not torch.equal(same, other)


def test_global_generators_are_left_alone():
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    mixed(make("both"), Share())
    assert np.random.rand() == expected


def test_digits_mix_too(pristine, settings, cpu):
    """Two processes together see what one sees, and targets become probabilities."""
    data = ArrayData(load_prepared(pristine), settings())
    recipe = make("both", 64, 32)
    whole = next(data.train_batches(recipe, 0, 0, 0, Share(), cpu))
    assert whole.targets.shape == (64, 10)
    for rank in range(2):
        mine = positions(64, Share(rank, 2), 32)
        part = next(data.train_batches(recipe, 0, 0, 0, Share(rank, 2), cpu))
        assert torch.equal(part.images, whole.images[mine])
        assert torch.equal(part.targets, whole.targets[mine])
