"""torchvision's sets through timm's factory; Fashion-MNIST from Debian's package."""

import numpy as np
import pytest
import torch
from timm.data import create_dataset

from ofq_core.data import Share, open_data, prepare_data, torch_sets
from ofq_core.errors import DataError
from ofq_core.settings import ImageSettings


def fashion(**changes):
    base = {
        "name": "fashion_mnist",
        "source": "torch/fashion_mnist",
        "test_split": "test",
        "val_share": 0.1,
        "size": 28,
        "channels": 1,
        "mean": (0.2860,),
        "std": (0.3530,),
        "crop_scale": None,
        "crop_pct": 1.0,
    }
    return ImageSettings(**{**base, **changes})


@pytest.fixture
def package():
    if not torch_sets.DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")


@pytest.mark.usefixtures("package")
def test_fashion_mnist_without_a_network(tmp_path, recipe, cpu):
    """All 70,000 images, their classes, and their pixels, unchanged by the plain transforms."""
    manifest = prepare_data(fashion(), tmp_path / "data")
    counts = {name: part["images"] for name, part in manifest["splits"].items()}
    assert counts == {"train": 54000, "val": 6000, "test": 10000}
    assert manifest["splits"]["train"]["per_class"] == [5400] * 10
    assert manifest["splits"]["test"]["per_class"] == [1000] * 10
    assert manifest["class_names"][:2] == ["T-shirt/top", "Trouser"]
    data = open_data(fashion(), tmp_path / "data")
    theirs = create_dataset(
        "torch/fashion_mnist", root=str(tmp_path / "sets/fashion_mnist"), split="test"
    )
    batch = next(data.eval_batches("test", 50, Share(), cpu))
    pixels = theirs.data[:50, None].float() / 255
    torch.testing.assert_close(batch.images * 0.3530 + 0.2860, pixels, rtol=0, atol=1e-6)
    assert torch.equal(batch.targets, theirs.targets[:50])
    assert next(data.train_batches(recipe(), 0, 0, 0, Share(), cpu)).images.shape == (8, 1, 28, 28)


@pytest.mark.usefixtures("package")
def test_unpacked_once(tmp_path):
    prepare_data(fashion(subset=100), tmp_path / "one")
    raw = tmp_path / "sets/fashion_mnist/FashionMNIST/raw"
    times = {path: path.stat().st_mtime_ns for path in raw.iterdir()}
    assert len(times) == 4
    prepare_data(fashion(subset=100), tmp_path / "two")
    assert {path: path.stat().st_mtime_ns for path in raw.iterdir()} == times
    for name in ("manifest.json", "files.csv.gz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def idx(array):
    """The format of MNIST: magic, sizes, bytes."""
    head = [0, 0, 8, array.ndim]
    return bytes(head) + np.array(array.shape, dtype=">i4").tobytes() + array.tobytes()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Twenty images in the place and format of Fashion-MNIST."""
    monkeypatch.setattr(torch_sets, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    raw = tmp_path / "sets/fashion_mnist/FashionMNIST/raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        images = np.random.RandomState(len(split)).randint(0, 256, (20, 28, 28), dtype=np.uint8)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        labels = np.repeat(np.arange(10, dtype=np.uint8), 2)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    return raw


def test_files_that_are_there_are_taken(tiny, tmp_path):
    manifest = prepare_data(fashion(val_share=0.0), tmp_path / "data")
    assert manifest["splits"]["train"]["images"] == 20


def test_changed_pixels_are_noticed(tiny, tmp_path):
    """Same files, sizes and classes, one pixel different."""
    prepare_data(fashion(val_share=0.0), tmp_path / "data")
    path = tiny / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="the content or the classes differ"):
        open_data(fashion(val_share=0.0), tmp_path / "data")


def test_class_without_images(tiny, tmp_path):
    (tiny / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(20, dtype=np.uint8)))
    with pytest.raises(DataError, match=r"data\.train_split has no images of class 'Trouser'"):
        prepare_data(fashion(val_share=0.0), tmp_path / "data")


LABELS = np.repeat(np.arange(10, dtype=np.uint8), 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images-idx3", b"", "cannot be read from .*invalid literal"),
        ("images-idx3", b"junk" * 100, "cannot be read from .*AssertionError"),
        ("images-idx3", idx(np.zeros((0, 28, 28), np.uint8)), "cannot be read from"),
        ("labels-idx1", idx(np.zeros((2, 2, 2), np.uint8)), "cannot be read from"),
        ("labels-idx1", idx(LABELS[:10]), "20 images and 10 labels in .*do not belong together"),
        ("labels-idx1", idx(LABELS.repeat(2)), "20 images and 40 labels in"),
    ],
)
def test_damaged_files(name, content, message, tiny, tmp_path):
    (tiny / f"train-{name}-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare_data(fashion(val_share=0.0), tmp_path / "data")


def test_test_files_that_are_copies(tiny, tmp_path):
    for kind in ("images-idx3", "labels-idx1"):
        (tiny / f"train-{kind}-ubyte").replace(tiny / f"t10k-{kind}-ubyte")
        (tiny / f"train-{kind}-ubyte").write_bytes((tiny / f"t10k-{kind}-ubyte").read_bytes())
    with pytest.raises(DataError, match="the files of 'test' are copies of those of 'train'"):
        prepare_data(fashion(val_share=0.0), tmp_path / "data")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "imagenette"])
def test_missing_set(name, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_sets, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    splits = {"test_split": "val" if name == "imagenette" else "test"}
    with pytest.raises(DataError) as error:
        prepare_data(fashion(name=name, source=f"torch/{name}", **splits), tmp_path / "data")
    message = str(error.value)
    assert f"torch/{name} cannot be read from {tmp_path}/sets/{name}" in message
    assert "data.download=true" in message
    assert "OFQ_DATA_DIR" in message
    assert ("dataset-fashion-mnist" in message) == (name == "fashion_mnist")


@pytest.mark.parametrize(
    "change", [{"train_split": "tarin"}, {"test_split": "training"}, {"test_split": "tset"}]
)
def test_unknown_split(change, tmp_path):
    """timm takes a name that it does not know for the test images."""
    key, value = next(iter(change.items()))
    with pytest.raises(DataError, match=rf"data\.{key} = '{value}': torch/fashion_mnist knows"):
        prepare_data(fashion(**change), tmp_path / "data")


def test_imagenette_is_a_folder_after_its_download(pictures, tmp_path, image_settings, cpu):
    """As torchvision unpacks it; its classes have names of their own there, folders here."""
    root = tmp_path / "sets/pets/imagenette2-320"
    wnids = {"ant": "n01440764", "bee": "n02102040", "cat": "n02979186"}
    for split in ("train", "val"):
        for name, wnid in wnids.items():
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for path in (pictures / split / name).glob("*.JPEG"):
                (folder / path.name).write_bytes(path.read_bytes())
    chosen = image_settings(source="torch/imagenette")
    manifest = prepare_data(chosen, tmp_path / "data")
    assert manifest["class_names"] == sorted(wnids.values())
    data = open_data(chosen, tmp_path / "data")
    assert sum(len(b.targets) for b in data.eval_batches("test", 4, Share(), cpu)) == 9
