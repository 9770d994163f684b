"""The stream of training images: the same for any number of workers and processes, and resumed."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from ofq_core.data import Share, open_data, positions
from ofq_core.data.random_state import seeded
from ofq_core.errors import DataError
from tests.patience import PATIENCE

# Two workers on a machine with one core make PyTorch warn; the tests need two all the same.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

MIXING = {"mixup": 0.8, "cutmix": 1.0, "mix_group": 4}


def stream(data, recipe, seed=0, epoch=0, first=0, share=None):
    device = torch.device("cpu")
    return list(data.train_batches(recipe, seed, epoch, first, share or Share(), device))


def same(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)


@pytest.mark.usefixtures("pets")
def test_shapes_and_numbers(opened, recipe, cpu):
    data = opened()
    assert (data.classes, data.shape, data.train_size) == (3, (3, 16, 16), 34)
    assert (data.split_size("val"), data.split_size("test")) == (8, 15)
    batches = stream(data, recipe())
    assert len(batches) == data.steps(recipe()) == 4, "34 images in batches of 8"
    assert batches[0].images.shape == (8, 3, 16, 16)
    assert batches[0].images.dtype == torch.float32
    assert batches[0].targets.dtype == torch.int64
    assert stream(data, recipe(**MIXING))[0].targets.shape == (8, 3)
    assert data.unreadable() == []


@pytest.mark.usefixtures("pets")
def test_labels_are_those_of_the_images(opened, recipe):
    """Over an epoch every training image is seen once, with its class."""
    data = opened()
    labels = torch.cat([batch.targets for batch in stream(data, recipe(batch_size=1))])
    assert torch.bincount(labels).tolist() == data.prepared.splits["train"].per_class(3)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.usefixtures("pets")
def test_workers_do_not_change_the_stream(workers, opened, recipe, monkeypatch, cpu):
    """Over two epochs of kept workers, with mixing and repeated augmentation, and in evaluation."""
    chosen = recipe(**MIXING, repeated_augmentation=3)
    alone = opened()
    monkeypatch.setenv("OFQ_WORKERS", workers)
    helped = opened()
    for epoch in range(2):
        same(stream(helped, chosen, epoch=epoch), stream(alone, chosen, epoch=epoch))
    pairs = zip(
        helped.eval_batches("test", 4, Share(), cpu),
        alone.eval_batches("test", 4, Share(), cpu),
        strict=True,
    )
    assert all(torch.equal(a.images, b.images) for a, b in pairs)


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.usefixtures("pets")
def test_resume_in_the_middle_of_an_epoch(workers, opened, recipe, monkeypatch, cpu):
    """Also after an epoch that was broken off with batches under way."""
    monkeypatch.setenv("OFQ_WORKERS", workers)
    data, chosen = opened(), recipe(**MIXING)
    whole = stream(data, chosen, epoch=3)
    broken = data.train_batches(chosen, 0, 3, 0, Share(), cpu)
    same([next(broken)], whole[:1])
    broken.close()
    for first in (1, 3):
        same(stream(data, chosen, epoch=3, first=first), whole[first:])
    assert stream(data, chosen, epoch=3, first=4) == []


@pytest.mark.parametrize("mixing", [{}, MIXING, {"mixup": 0.8}], ids=["plain", "groups", "batch"])
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.usefixtures("pets")
def test_processes_together_see_what_one_sees(world, mixing, opened, recipe):
    data, chosen = opened(), recipe(**mixing)
    group = mixing and (mixing.get("mix_group") or 8)
    whole = stream(data, chosen)
    for rank in range(world):
        mine = positions(8, Share(rank, world), group or None)
        for part, all_of_it in zip(
            stream(data, chosen, share=Share(rank, world)), whole, strict=True
        ):
            assert torch.equal(part.images, all_of_it.images[mine])
            assert torch.equal(part.targets, all_of_it.targets[mine])


@pytest.mark.usefixtures("pets")
def test_views_depend_on_seed_epoch_and_position(opened, recipe):
    data = opened(val_share=0.0)
    first = stream(data, recipe())
    assert not torch.equal(stream(data, recipe(), seed=1)[0].images, first[0].images)
    assert not torch.equal(stream(data, recipe(), epoch=1)[0].images, first[0].images)
    repeated = stream(data, recipe(repeated_augmentation=3))[0]
    assert len(repeated.targets[:3].unique()) == 1
    assert len(repeated.images[:3].flatten(1).unique(dim=0)) == 3, "three views of one image"


@pytest.mark.usefixtures("pets")
def test_global_generators_are_left_alone(opened, recipe, cpu):
    """Training draws the same numbers whether this process reads images or others do."""
    data = opened()

    def draws():
        return random.random(), np.random.rand(), float(torch.rand(()))

    with seeded(5):
        expected = draws()
    with seeded(5):
        stream(data, recipe(**MIXING))
        list(data.eval_batches("val", 3, Share(), cpu))
        data.calibration_images(0, 4)
        assert draws() == expected


def test_seeded_restores_after_an_error():
    before = random.getstate(), torch.get_rng_state()

    def fail():
        with seeded(1):
            random.random()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 4, 64])
@pytest.mark.usefixtures("pets")
def test_evaluation_takes_every_image_once(world, batch, opened, cpu):
    """In exactly one process, no padding, whatever the batch."""
    data = opened()
    whole = next(data.eval_batches("test", 64, Share(), cpu))
    for rank in range(world):
        part = list(data.eval_batches("test", batch, Share(rank, world), cpu))
        assert torch.equal(torch.cat([b.images for b in part]), whole.images[rank::world])
        assert torch.equal(torch.cat([b.targets for b in part]), whole.targets[rank::world])


@pytest.mark.usefixtures("pets")
def test_calibration_images_are_plain_and_chosen_by_the_seed(opened, cpu):
    data = opened()
    chosen = data.calibration_images(7, 5)
    assert chosen.shape == (5, 3, 16, 16)
    assert torch.equal(chosen, data.calibration_images(7, 5))
    assert torch.equal(chosen[:3], data.calibration_images(7, 3))
    assert not torch.equal(chosen, data.calibration_images(8, 5))
    assert len(data.calibration_images(7, 1000)) == data.train_size
    plain = opened(auto_augment=None, hflip=0.0, erase_prob=0.0)
    assert torch.equal(chosen, plain.calibration_images(7, 5))


@pytest.mark.usefixtures("pets")
def test_no_validation_split(opened, cpu):
    data = opened(val_share=0.0)
    assert (data.split_size("val"), data.train_size) == (0, 42)
    assert list(data.eval_batches("val", 4, Share(), cpu)) == []


@pytest.mark.usefixtures("pets")
def test_grey_images(opened, recipe, cpu):
    data = opened(channels=1, mean=(0.5,), std=(0.5,))
    assert data.shape == (1, 16, 16)
    assert stream(data, recipe())[0].images.shape == (8, 1, 16, 16)


@pytest.mark.usefixtures("pets")
def test_batch_larger_than_the_split(opened, recipe):
    with pytest.raises(DataError, match=r"recipe\.batch_size = 35, .* only 34 training images"):
        opened().steps(recipe(batch_size=35))


@pytest.mark.parametrize("value", ["-1", "two", "1.5", " "])
@pytest.mark.usefixtures("pets")
def test_number_of_workers_is_checked(value, opened, monkeypatch):
    monkeypatch.setenv("OFQ_WORKERS", value)
    with pytest.raises(DataError, match=rf"OFQ_WORKERS = '{value}': expected a whole number"):
        opened()


def test_default_number_of_workers(monkeypatch):
    from ofq_core.data import environment

    monkeypatch.delenv("OFQ_WORKERS")
    for cores, expected in ((1, 1), (3, 3), (64, 8)):
        monkeypatch.setattr(environment, "available_cores", lambda cores=cores: cores)
        assert environment.worker_count() == expected


def test_another_process_sees_the_same(pets, opened, recipe, image_settings, tmp_path):
    """Nothing hangs on this process: not on its hash seed, its imports or what ran before."""
    images = stream(opened(), recipe(**MIXING))[2].images
    program = f"""
import torch
from pathlib import Path
from ofq_core.data import Share, open_data
from ofq_core.settings import ImageSettings, RecipeSettings
data = open_data(
    ImageSettings.model_validate_json({image_settings().model_dump_json()!r}),
    Path({str(tmp_path / "data" / "pets")!r}),
)
recipe = RecipeSettings.model_validate_json({recipe(**MIXING).model_dump_json()!r})
for batch in data.train_batches(recipe, 0, 0, 2, Share(), torch.device("cpu")):
    torch.save(batch.images, {str(tmp_path / "batch.pt")!r})
    break
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)
    assert torch.equal(torch.load(tmp_path / "batch.pt", weights_only=True), images)


def test_order_of_two_readers_of_kept_workers(pets, opened, recipe, monkeypatch, cpu):
    """An older run of the same loader stops rather than hand out batches of the newer one."""
    monkeypatch.setenv("OFQ_WORKERS", "1")
    data = opened()
    older = data.train_batches(recipe(), 0, 0, 0, Share(), cpu)
    next(older)
    next(data.train_batches(recipe(), 0, 1, 0, Share(), cpu))
    with pytest.raises(RuntimeError, match="overtaken"):
        list(older)


def test_open_data_serves_digits_too(pristine, settings):
    assert open_data(settings(), pristine).shape == (1, 8, 8)
