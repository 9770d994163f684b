"""Preparing: a fixed, stratified, complete split, described by hashes; the same bytes each time."""

import hashlib
import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ofq_core.data import load_prepared, prepare_digits, read_manifest
from ofq_core.errors import DataError

SPLITS = ("train", "val", "test")
# Sizes and sha256 of the split of the embedded default. They are part of every published number:
# a change of scikit-learn, NumPy or this code that moves an image must not pass unseen.
SIZES = {"train": 1168, "val": 180, "test": 449}
HASHES = {
    "train": "4922d4df6eccbb2e6d85d7e0e0fec59d08a7b6407e00ae8776f065a8940ee77d",
    "val": "a3a79aa3dd77edb564fdbae0a5fe725fccbca6fb27183d6f40f88f1d10991230",
    "test": "fb0264f7b2ee89385959dfe2a87d857844b7ad4be64eb8b4377e69e4dd92717a",
}


@pytest.fixture(scope="module")
def manifest(pristine):
    return read_manifest(pristine)


@pytest.fixture(scope="module")
def data(pristine):
    return load_prepared(pristine)


def test_split_is_fixed(manifest):
    parts = manifest["splits"]
    assert {name: parts[name]["images"] for name in SPLITS} == SIZES
    assert {name: parts[name]["sha256"] for name in SPLITS} == HASHES


def test_split_is_complete_and_disjoint(manifest):
    """Every one of the 1,797 digits is in exactly one split."""
    indices = [i for name in SPLITS for i in manifest["splits"][name]["source_indices"]]
    assert sorted(indices) == list(range(1797))


def test_images_and_labels_are_those_of_the_source(manifest, data):
    digits = load_digits()
    for name in SPLITS:
        chosen = manifest["splits"][name]["source_indices"]
        split = getattr(data, name)
        assert np.array_equal(split.images[:, 0].numpy() * 16, digits.images[chosen])
        assert np.array_equal(split.labels.numpy(), digits.target[chosen])
        assert split.images.dtype.is_floating_point
        assert 0 <= float(split.images.min()) < float(split.images.max()) <= 1


def test_split_is_stratified(manifest):
    """In each split the share of each class is that of the whole.

    To less than two images: one for each of the two cuts, whose counts are rounded.
    """
    whole = np.bincount(load_digits().target)
    for name in SPLITS:
        part = manifest["splits"][name]
        expected = whole * part["images"] / 1797
        assert np.abs(np.array(part["per_class"]) - expected).max() < 2
        assert sum(part["per_class"]) == part["images"]


def test_hashes_are_those_of_the_files(pristine, manifest):
    content = (pristine / "arrays.npz").read_bytes()
    assert manifest["arrays_sha256"] == hashlib.sha256(content).hexdigest()
    with np.load(pristine / "arrays.npz") as arrays:
        for name in SPLITS:
            raw = arrays[f"{name}_images"].tobytes() + arrays[f"{name}_labels"].tobytes()
            assert manifest["splits"][name]["sha256"] == hashlib.sha256(raw).hexdigest()
    digits = load_digits()
    raw = digits.images.tobytes() + digits.target.tobytes()
    assert manifest["source_sha256"] == hashlib.sha256(raw).hexdigest()


def test_statistics_are_those_of_the_training_split(data):
    """Statistics of other splits would leak into training."""
    normalised = data.normalise(data.train.images)
    assert float(normalised.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(normalised.std(unbiased=False)) == pytest.approx(1.0, abs=1e-5)
    assert abs(float(data.normalise(data.test.images).mean())) > 1e-4


def test_preparing_twice_gives_the_same_bytes(pristine, settings, tmp_path):
    folder = tmp_path / "again"
    prepare_digits(settings(), folder)
    for name in ("arrays.npz", "manifest.json"):
        assert (folder / name).read_bytes() == (pristine / name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["arrays.npz", "manifest.json"]
    prepare_digits(settings(), folder)  # over what is there
    assert (folder / "manifest.json").read_bytes() == (pristine / "manifest.json").read_bytes()


def test_augmentation_settings_do_not_touch_the_prepared_data(pristine, settings, tmp_path):
    """So a changed augmentation never changes the data's hash."""
    prepare_digits(settings(noise=0.5, rotate_degrees=0.0), tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == (pristine / "manifest.json").read_bytes()


def test_another_split_seed_is_another_split_of_the_same_sizes(manifest, settings, tmp_path):
    other = prepare_digits(settings(split_seed=1), tmp_path)
    for name in SPLITS:
        mine, theirs = other["splits"][name], manifest["splits"][name]
        assert mine["images"] == theirs["images"]
        assert mine["source_indices"] != theirs["source_indices"]
    assert other["source_sha256"] == manifest["source_sha256"]


def test_subset_and_shares(settings, tmp_path):
    manifest = prepare_digits(settings(subset=300, test_share=0.5, val_share=0.1), tmp_path)
    sizes = {name: part["images"] for name, part in manifest["splits"].items()}
    assert sizes == {"train": 120, "val": 30, "test": 150}
    assert all(min(part["per_class"]) >= 1 for part in manifest["splits"].values())
    everything = [i for part in manifest["splits"].values() for i in part["source_indices"]]
    assert len(set(everything)) == 300


def test_subset_beyond_the_data(settings, tmp_path):
    with pytest.raises(DataError, match=r"data\.subset = 1798: there are only 1797 digits"):
        prepare_digits(settings(subset=1798), tmp_path / "digits")
    assert not (tmp_path / "digits").exists()
    manifest = prepare_digits(settings(subset=1797), tmp_path)
    assert {name: part["images"] for name, part in manifest["splits"].items()} == SIZES


@pytest.mark.parametrize(
    "changes",
    [
        {"subset": 5},  # fewer than classes
        {"subset": 30},  # too few for a validation image of each class
        {"test_share": 0.001},
        {"val_share": 0.001},
        {"test_share": 0.9, "val_share": 0.0999},
    ],
    ids=str,
)
def test_impossible_split(changes, settings, tmp_path):
    wanted = settings(**changes)
    with pytest.raises(DataError) as error:
        prepare_digits(wanted, tmp_path / "digits")
    message = str(error.value)
    assert f"data.test_share = {wanted.test_share:g}" in message
    assert f"data.val_share = {wanted.val_share:g}" in message
    assert f"data.subset = {wanted.subset}" in message
    assert "every split has every class" in message
    assert not (tmp_path / "digits").exists(), "nothing was written"


def test_manifest_is_readable_json_with_sorted_keys(pristine):
    text = (pristine / "manifest.json").read_text()
    value = json.loads(text)
    assert text == json.dumps(value, indent=2, sort_keys=True) + "\n"
    assert value["source"] == "sklearn.datasets.load_digits"
    assert (value["classes"], value["image_shape"]) == (10, [1, 8, 8])
    assert value["settings"] == {
        "split_seed": 0,
        "subset": None,
        "test_share": 0.25,
        "val_share": 0.1,
    }
