"""The manifest of images: fixed stratified splits, the same bytes each time, checked on opening."""

import gzip
import json
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ofq_core.data import open_data, prepare_data
from ofq_core.data.rows import Rows, read_rows, rows_sha256, write_rows
from ofq_core.data.stratify import stratified
from ofq_core.errors import DataError
from ofq_core.files import sha256_file


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data" / "pets"


@pytest.fixture
def prepared(pets, image_settings, folder):
    return prepare_data(image_settings(), folder)


def names(rows):
    return [rows.name(i) for i in range(len(rows))]


def test_content(prepared, folder):
    assert prepared["source"] == "folder"
    assert (prepared["classes"], prepared["class_names"]) == (3, ["ant", "bee", "cat"])
    assert prepared["unreadable"] == []
    splits = prepared["splits"]
    assert {name: part["images"] for name, part in splits.items()} == {
        "train": 34,
        "val": 8,
        "test": 15,
    }
    assert splits["test"]["per_class"] == [5, 5, 5]
    assert splits["val"]["per_class"] == [3, 3, 2], "8 of 42 over three equal classes"
    assert prepared["files_sha256"] == sha256_file(folder / "files.csv.gz")
    assert sorted(path.name for path in folder.iterdir()) == ["files.csv.gz", "manifest.json"]


def test_splits_are_complete_and_disjoint(prepared, pets, folder):
    splits = read_rows(folder / "files.csv.gz", prepared["class_names"])
    listed = [name for rows in splits.values() for name in names(rows)]
    assert sorted(listed) == sorted(
        str(path.relative_to(pets)) for path in pets.rglob("*.*") if path.is_file()
    )
    assert all(name.startswith("val/") for name in names(splits["test"]))


def test_same_bytes_elsewhere_and_again(prepared, pets, image_settings, folder, monkeypatch):
    """Neither the place of the images, nor their times, nor the time of day are in the files."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    elsewhere = folder.parents[1] / "elsewhere"
    shutil.copytree(pets, elsewhere / "pets", copy_function=shutil.copyfile)
    shutil.rmtree(pets)
    monkeypatch.setenv("OFQ_DATA_DIR", str(elsewhere))
    prepare_data(image_settings(), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    text = before["manifest.json"] + gzip.decompress(before["files.csv.gz"])
    assert str(folder.parents[1]).encode() not in text


def test_split_seed_decides_the_validation_split(pets, image_settings, folder):
    chosen = []
    for seed in (0, 0, 1):
        manifest = prepare_data(image_settings(split_seed=seed), folder)
        chosen.append(names(read_rows(folder / "files.csv.gz", manifest["class_names"])["val"]))
    assert chosen[0] == chosen[1] != chosen[2]


def test_hash_of_the_list_covers_path_size_and_class():
    base = [("train/a/1.png", 10, 0, -1), ("train/b/2.png", 20, 1, -1)]
    classes = ["a", "b"]
    first = rows_sha256(Rows.of(base), classes)
    assert rows_sha256(Rows.of(base[::-1]), classes) == first, "the order does not count"
    for changed in (
        [("train/a/3.png", 10, 0, -1), base[1]],
        [("train/a/1.png", 11, 0, -1), base[1]],
        [("train/a/1.png", 10, 1, -1), base[1]],
        base[:1],
    ):
        assert rows_sha256(Rows.of(changed), classes) != first
    assert rows_sha256(Rows.of(base), ["a", "c"]) != first


def test_rows_are_read_as_they_were_written(tmp_path):
    """Also with commas, quotes, newlines and bytes that are no UTF-8 in a file's name."""
    odd = [
        'a,"b"\n.png',
        "a\rb.png",
        "\r\n\x85\u2028.png",
        b"caf\xe9.png".decode(errors="surrogateescape"),
        "\u00e9.png",
    ]
    rows = Rows.of([(f"train/x/{name}", i, i % 2, 7 * i) for i, name in enumerate(odd)])
    path = tmp_path / "files.csv.gz"
    path.write_bytes(write_rows({"train": rows, "val": Rows.of([])}, ["x", "y\r"]))
    found = read_rows(path, ["x", "y\r"])
    assert list(found) == ["train"]
    for column in ("names", "sizes", "labels", "places"):
        assert np.array_equal(getattr(found["train"], column), getattr(rows, column))


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    share=st.integers(0, 100),
    seed=st.integers(0, 1000),
)
def test_stratified_choice(sizes, share, seed):
    """Exactly so many, and of each class its share to less than one image."""
    labels = np.random.RandomState(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    count = len(labels) * share // 100
    chosen = stratified(labels, count, torch.Generator().manual_seed(seed))
    assert chosen.sum() == count
    part = np.bincount(labels[chosen], minlength=len(sizes))
    assert (np.abs(part - np.array(sizes) * count / len(labels)) < 1).all()


def test_stratified_choice_is_by_chance():
    labels = np.zeros(1000, dtype=np.int64)
    one, two = (stratified(labels, 500, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert 200 < (one & two).sum() < 300, "a quarter of them are in both"
    assert 200 < one[:500].sum() < 300


def test_subset_is_stratified_and_leaves_the_test_split_alone(pets, image_settings, folder):
    manifest = prepare_data(image_settings(subset=21, val_share=0.3), folder)
    counts = {name: part["images"] for name, part in manifest["splits"].items()}
    assert counts == {"train": 15, "val": 6, "test": 15, "unused": 21}
    assert manifest["splits"]["unused"]["per_class"] == [7, 7, 7]
    data = open_data(image_settings(subset=21, val_share=0.3), folder)
    assert (data.train_size, data.split_size("val"), data.split_size("test")) == (15, 6, 15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subset": 43}, "data.subset = 43: there are only 42 training images"),
        ({"subset": 2, "val_share": 0.0}, "data.subset = 2: no training image of class 'cat'"),
        ({"val_share": 0.98}, "data.val_share = 0.98, data.subset = None: no training image"),
    ],
)
def test_splits_that_leave_a_class_empty(changes, message, pets, image_settings, folder):
    with pytest.raises(DataError) as error:
        prepare_data(image_settings(**changes), folder)
    assert message in str(error.value)


# Test images that are trained on


def linked_split(pets):
    (pets / "val").symlink_to("train")


def linked_classes(pets):
    for folder in (pets / "train").iterdir():
        (pets / "val").mkdir(exist_ok=True)
        (pets / "val" / folder.name).symlink_to(folder)


def copied(pets, place=shutil.copyfile, keep=lambda number: True, rename=lambda name: name):
    for path in sorted((pets / "train").rglob("*.*")):
        if keep(int(path.stem.rpartition("_")[2])):
            target = pets / "val" / path.parent.name / rename(path.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            place(path, target)


SAME_IMAGES = {
    "the split is a link": (linked_split, r"train/ant of .* and val/ant of .*: expected test"),
    "class folders are links": (linked_classes, r"train/ant of .* and val/ant of .*: expected"),
    "a copy": (copied, r"42 of 42 test .* such as val/ant/ant_0.JPEG is train/ant/ant_0.JPEG"),
    "hard links": (lambda pets: copied(pets, os.link), "42 of 42 test"),
    "links to files": (lambda pets: copied(pets, os.symlink), "42 of 42 test"),
    "part of it": (lambda pets: copied(pets, keep=lambda number: number < 3), "9 of 9 test"),
    "renamed": (lambda pets: copied(pets, rename=lambda name: f"x{name}"), "42 of 42 test"),
}


@pytest.mark.parametrize("case", SAME_IMAGES)
def test_test_images_that_are_training_images(case, pets, image_settings, folder):
    make, message = SAME_IMAGES[case]
    shutil.rmtree(pets / "val")
    make(pets)
    with pytest.raises(DataError, match=message):
        prepare_data(image_settings(), folder)
    assert not folder.exists()


def test_training_folder_by_its_whole_path(pets, image_settings, folder):
    with pytest.raises(DataError, match=r"train/ant of data.train_split = 'train' and /.*/train/a"):
        prepare_data(image_settings(test_split=str(pets / "train")), folder)


def test_some_equal_images_are_no_reason(pets, image_settings, folder):
    """They are in many published sets. So are images of one size in bytes, and damaged ones."""
    for number in (0, 1):
        for name in ("ant", "bee", "cat"):
            for path in (pets / "train" / name).glob(f"{name}_{number}.*"):
                shutil.copyfile(path, pets / "val" / name / path.name)
    for path in pets.rglob("*.*"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".png"), compress_level=0)
        if path.suffix != ".png":
            path.unlink()
    for path in (pets / "train/ant/ant_2.png", pets / "val/ant/ant_2.png"):
        content = path.read_bytes()
        half = len(content) // 2
        path.write_bytes(content[:half] + bytes(len(content) - half))
    assert len({path.stat().st_size for path in pets.rglob("*.*")}) == 1
    manifest = prepare_data(image_settings(), folder)
    assert manifest["splits"]["test"]["images"] == 15


# Opening


def refused(settings, folder):
    with pytest.raises(DataError) as error:
        open_data(settings, folder)
    message = str(error.value)
    assert "\n" not in message
    assert "dvc repro" in message, "says what mends it"
    return message


def test_images_that_went_came_and_grew(prepared, pets, image_settings, folder):
    (pets / "train/ant/ant_1.png").unlink()
    Image.new("RGB", (5, 5)).save(pets / "train/bee/new.png")
    message = refused(image_settings(), folder)
    assert f"{pets}: the images are not those that {folder}/manifest.json lists" in message
    assert "1 missing (train/ant/ant_1.png), 1 new (train/bee/new.png)" in message
    (pets / "train/bee/new.png").rename(pets / "train/ant/ant_1.png")
    assert "1 of another size (train/ant/ant_1.png)" in refused(image_settings(), folder)


def test_images_put_back_are_the_same(prepared, pets, image_settings, folder):
    away = pets / "train/ant/ant_1.png"
    away.rename(pets / "kept.png")
    refused(image_settings(), folder)
    (pets / "kept.png").rename(away)
    assert open_data(image_settings(), folder).train_size == 34


def test_images_of_another_class(prepared, pets, image_settings, folder):
    (pets / "train/ant/ant_1.png").rename(pets / "train/bee/ant_1.png")
    assert "1 missing (train/ant/ant_1.png)" in refused(image_settings(), folder)


@pytest.mark.parametrize("change", [{"val_share": 0.1}, {"split_seed": 1}, {"subset": 30}])
def test_manifest_of_other_settings(change, prepared, image_settings, folder):
    key = next(iter(change))
    message = refused(image_settings(**change), folder)
    assert f"data.{key} = {change[key]!r}, but {folder}/manifest.json was prepared with" in message


def test_manifest_with_damaged_settings(prepared, image_settings, folder):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "settings": []}))
    assert "was prepared with None" in refused(image_settings(), folder)


def test_transforms_may_change_without_preparing_again(prepared, image_settings, folder):
    assert open_data(image_settings(size=8, hflip=0.0), folder).shape == (3, 8, 8)


def test_not_prepared(pets, image_settings, folder):
    assert "no manifest.json there" in refused(image_settings(), folder)


def test_manifest_of_digits(pristine, image_settings):
    assert "is damaged (no class_names)" in refused(image_settings(), pristine)


def test_damaged_list(prepared, image_settings, folder):
    path = folder / "files.csv.gz"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    assert "files.csv.gz was changed" in refused(image_settings(), folder)
    path.unlink()
    assert "files.csv.gz is missing" in refused(image_settings(), folder)


@pytest.mark.parametrize(
    "content",
    [b"junk", gzip.compress(b"a,b\n", mtime=0), gzip.compress(b"", mtime=0)],
    ids=["no-gzip", "no-list", "empty"],
)
def test_list_that_cannot_be_read(content, tmp_path):
    (tmp_path / "files.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"files\.csv\.gz is damaged"):
        read_rows(tmp_path / "files.csv.gz", ["a"])


def test_hash_of_the_manifest(prepared, image_settings, folder):
    assert open_data(image_settings(), folder).manifest_sha256 == sha256_file(
        folder / "manifest.json"
    )
    assert json.loads((folder / "manifest.json").read_text()) == prepared
