"""Reading prepared data: whatever is wrong with the folder is said in one line."""

import json

import numpy as np
import pytest
import torch

from ofq_core.data import load_prepared
from ofq_core.errors import DataError
from ofq_core.files import sha256_file


def refused(folder):
    with pytest.raises(DataError) as error:
        load_prepared(folder)
    message = str(error.value)
    assert "\n" not in message
    assert str(folder) in message
    assert "dvc repro" in message, "says what mends it"
    return message


def test_good_data(copy):
    data = load_prepared(copy)
    assert data.train.images.shape == (1168, 1, 8, 8)
    assert data.train.images.dtype == torch.float32
    assert data.train.labels.dtype == torch.int64
    assert (len(data.train), len(data.val), len(data.test), data.classes) == (1168, 180, 449, 10)
    assert data.manifest_sha256 == sha256_file(copy / "manifest.json")


def test_missing_folder(tmp_path):
    assert "no manifest.json there" in refused(tmp_path / "nowhere")


def test_missing_manifest(copy):
    (copy / "manifest.json").unlink()
    assert "no manifest.json there" in refused(copy)


@pytest.mark.parametrize("content", ["", "{", "\x00\x01", "[1, 2]", "null", '"text"'])
def test_damaged_manifest(content, copy):
    (copy / "manifest.json").write_text(content)
    assert "manifest.json is damaged" in refused(copy)


def test_truncated_manifest(copy):
    path = copy / "manifest.json"
    path.write_bytes(path.read_bytes()[:500])
    assert "manifest.json is damaged" in refused(copy)


def test_binary_manifest(copy):
    (copy / "manifest.json").write_bytes(bytes(range(128, 256)))
    assert "manifest.json is damaged" in refused(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", "0.3"),
        ("mean", None),
        ("mean", 0.4),
        ("std", 0),
        ("std", -0.37),
        ("classes", 11),
        ("classes", 10**9),
        ("classes", 10.5),
        ("arrays_sha256", 3),
        ("arrays_sha256", None),
    ],
)
def test_a_manifest_that_says_something_else_than_the_arrays(key, value, copy):
    """With another mean or class count the results would be others, without a word."""
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    message = refused(copy)
    if key == "arrays_sha256":
        assert f"its manifest says {value}" in message
    else:
        assert f"manifest.json is damaged ({key} = {value!r}, and the training images" in message


@pytest.mark.parametrize("key", ["arrays_sha256", "mean", "std", "classes"])
def test_manifest_without_a_key(key, copy):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[key]
    path.write_text(json.dumps(manifest))
    assert f"manifest.json is damaged (no {key})" in refused(copy)


@pytest.mark.parametrize(
    "change", [{"std": 0.0}, {"std": float("nan")}, {"mean": float("inf")}, {"mean": "0.3"}]
)
def test_manifest_with_numbers_that_cannot_be(change, copy):
    path = copy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert f"manifest.json is damaged ({next(iter(change))} = " in refused(copy)


def test_missing_arrays(copy):
    (copy / "arrays.npz").unlink()
    assert "arrays.npz is missing" in refused(copy)


def test_truncated_arrays(copy):
    path = copy / "arrays.npz"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "it was changed" in refused(copy)


def test_one_changed_bit(copy):
    path = copy / "arrays.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = refused(copy)
    assert sha256_file(path)[:12] in message
    assert json.loads((copy / "manifest.json").read_text())["arrays_sha256"][:12] in message


def images(count, kind=np.float32):
    return np.zeros((count, 1, 8, 8), kind)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"val_images": None}, "val_images"),
        ({"val_images": images(179)}, "float32 (179, 1, 8, 8) and (180,) do not fit"),
        ({"val_images": images(180, np.float64)}, "float64 (180, 1, 8, 8)"),
        ({"val_images": images(180)[:, 0]}, "(180, 8, 8)"),
        ({"test_labels": np.full(449, 10)}, "test_labels: expected classes from 0 to 9"),
        ({"test_labels": np.full(449, -1)}, "test_labels: expected classes from 0 to 9"),
        ({"test_labels": np.zeros(449)}, "test_labels: expected classes from 0 to 9"),
        ({"train_images": np.array(None)}, "an array of Python objects"),
    ],
)
def test_arrays_that_are_no_images(changes, part, copy):
    """Where manifest and arrays agree: their hash says nothing then."""
    path = copy / "arrays.npz"
    with np.load(path) as arrays:
        content = {**arrays, **changes}
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["arrays_sha256"] = sha256_file(path)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    message = refused(copy)
    assert "arrays.npz is damaged" in message
    assert part in message


def test_arrays_of_other_settings(copy, settings, tmp_path):
    """Two good folders, mixed: the manifest is not that of the arrays."""
    from ofq_core.data import prepare_digits

    other = tmp_path / "other"
    prepare_digits(settings(split_seed=1), other)
    (other / "arrays.npz").replace(copy / "arrays.npz")
    assert "it was changed" in refused(copy)
