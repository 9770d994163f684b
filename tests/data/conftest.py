"""Digits, prepared once for reading and afresh for damaging; and small folders of images."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ofq_core.data import open_data, prepare_data, prepare_digits
from ofq_core.models.torchvision_compat import import_torchvision
from ofq_core.settings import DigitsSettings, ImageSettings, RecipeSettings

# Before any test module imports timm.
import_torchvision()

CLASSES = ("ant", "bee", "cat")
TRAIN, TEST = 14, 5


@pytest.fixture(scope="session")
def settings():
    """The settings of the embedded default, overridden by keywords."""

    def make(**changes):
        return DigitsSettings(name="digits", **changes)

    return make


@pytest.fixture(scope="session")
def pristine(tmp_path_factory, settings):
    """All digits, as `dvc repro prepare` leaves them; not to be changed."""
    folder = tmp_path_factory.mktemp("pristine") / "digits"
    prepare_digits(settings(), folder)
    return folder


@pytest.fixture
def copy(pristine, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(pristine, tmp_path / "digits")


@pytest.fixture(autouse=True)
def own_machine(tmp_path, monkeypatch):
    """Images, caches and the number of workers of a test are its own."""
    monkeypatch.setenv("OFQ_DATA_DIR", str(tmp_path / "sets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OFQ_WORKERS", "0")


def picture(seed, width=24, height=20):
    """A smooth random image, every one different."""
    pixels = np.random.RandomState(seed).randint(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """<split>/<class>/<image>: 3 classes, 14 and 5 images each, PNG and JPEG; not to be changed."""
    root = tmp_path_factory.mktemp("pictures")
    seed = 0
    for split, count in (("train", TRAIN), ("val", TEST)):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                suffix = "png" if number % 2 else "JPEG"
                picture(seed).save(folder / f"{name}_{number}.{suffix}")
                seed += 1
    return root


@pytest.fixture
def pets(pictures, tmp_path):
    """A copy of the pictures that a test may damage, where data set `pets` is looked for."""
    return shutil.copytree(pictures, tmp_path / "sets" / "pets")


@pytest.fixture(scope="session")
def image_settings():
    """Settings of data set `pets`, as in the paper but 16 pixels wide, overridden by keywords."""

    def make(**changes):
        base = {
            "name": "pets",
            "source": "folder",
            "test_split": "val",
            "val_share": 0.2,
            "size": 16,
            "auto_augment": "rand-m9-mstd0.5-inc1",
            "erase_prob": 0.25,
        }
        return ImageSettings(**{**base, **changes})

    return make


@pytest.fixture(scope="session")
def recipe():
    """A recipe with batches of eight, overridden by keywords."""

    def make(**changes):
        base = {"epochs": 1, "cga_epochs": 0, "batch_size": 8, "lr": 1e-3}
        return RecipeSettings(**{**base, **changes})

    return make


@pytest.fixture
def opened(tmp_path, image_settings):
    """Prepare data set `pets` with these settings and open it."""

    def open_with(**changes):
        chosen = image_settings(**changes)
        prepare_data(chosen, tmp_path / "data" / "pets")
        return open_data(chosen, tmp_path / "data" / "pets")

    return open_with


@pytest.fixture(scope="session")
def cpu():
    return torch.device("cpu")
