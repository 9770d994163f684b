"""Tar shards: timm's samples, read one by one, listed only when they changed."""

import io
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from ofq_core.data import Share, open_data, prepare_data
from ofq_core.data import shards as shards_module
from ofq_core.data.shards import ShardOrigin
from ofq_core.errors import DataError

CLASSES = ("ant", "bee", "cat")


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_shards(pictures, root):
    """The pictures in three shards of training and one of test images."""
    root.mkdir(parents=True)
    for split, count in (("train", 3), ("val", 1)):
        files = sorted((pictures / split).rglob("*.*"))
        for number in range(count):
            with tarfile.open(root / f"zoo-{split}-{number:04d}.tar", "w") as tar:
                for path in files[number::count]:
                    suffix = path.suffix.lower().replace("jpeg", "jpg")
                    add(tar, f"{path.stem}{suffix}", path.read_bytes())
                    label = CLASSES.index(path.parent.name)
                    add(tar, f"{path.stem}.cls", str(label).encode())
                    add(tar, f"{path.stem}.json", b"{}")


@pytest.fixture(scope="module")
def packed(pictures, tmp_path_factory):
    root = tmp_path_factory.mktemp("packed") / "pets"
    write_shards(pictures, root)
    return root


@pytest.fixture
def zoo(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "sets" / "pets")


@pytest.fixture
def settings_of_shards(image_settings):
    return image_settings(source="wds/zoo")


@pytest.fixture
def origin(zoo, settings_of_shards):
    return ShardOrigin(settings_of_shards, zoo)


def test_shards_that_are_trained_on(zoo, image_settings, tmp_path):
    """Both prefixes name the first shard of the training images; or it was copied."""
    settings = image_settings(source="wds/zoo", test_split="train-0000")
    message = r"zoo-train-0000.tar of data.train_split = 'train' and zoo-train-0000.tar of data"
    with pytest.raises(DataError, match=message):
        prepare_data(settings, tmp_path / "data")
    shutil.copyfile(zoo / "zoo-train-0001.tar", zoo / "zoo-val-0000.tar")
    with pytest.raises(DataError, match="14 of 14 test images that were looked at are training"):
        prepare_data(image_settings(source="wds/zoo"), tmp_path / "data")


def test_list_and_pixels(origin, pictures):
    catalogue = origin.catalogue(fresh=True)
    assert catalogue.classes == ["0", "1", "2"]
    assert (len(catalogue.train), len(catalogue.test)) == (42, 15)
    rows = catalogue.train
    for i in range(len(rows)):
        shard, _, member = rows.name(i).partition(".tar/")
        stem = member.rpartition(".")[0]
        path = next((pictures / "train").rglob(f"{stem}.*"))
        assert shard.startswith("zoo-train-")
        assert CLASSES[rows.labels[i]] == path.parent.name
        assert rows.sizes[i] == path.stat().st_size
        with (
            origin.image(rows.name(i), int(rows.places[i]), int(rows.sizes[i])) as ours,
            Image.open(path) as theirs,
        ):
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_trained_on_like_any_other_images(
    zoo, settings_of_shards, recipe, tmp_path, cpu, monkeypatch
):
    """Any number of workers and any first step give the same stream, as for folders."""
    prepare_data(settings_of_shards, tmp_path / "data")
    alone = open_data(settings_of_shards, tmp_path / "data")
    whole = list(alone.train_batches(recipe(), 0, 0, 0, Share(), cpu))
    monkeypatch.setenv("OFQ_WORKERS", "2")
    helped = open_data(settings_of_shards, tmp_path / "data")
    later = list(helped.train_batches(recipe(), 0, 0, 2, Share(), cpu))
    assert len(whole) == 4
    for a, b in zip(whole[2:], later, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
    assert sum(len(b.targets) for b in alone.eval_batches("test", 4, Share(), cpu)) == 15


def test_unchanged_shards_are_not_opened(origin, zoo, monkeypatch):
    origin.catalogue(fresh=True)
    opened = []
    real = tarfile.open

    def noting(path, *arguments, **keywords):
        opened.append(os.path.basename(path))
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(shards_module.tarfile, "open", noting)
    origin.catalogue(fresh=True)
    origin.catalogue(fresh=False)
    assert opened == []
    os.utime(zoo / "zoo-train-0001.tar", (1, 1))
    assert len(origin.catalogue(fresh=False).train) == 42
    assert opened == ["zoo-train-0001.tar"]


def test_unreadable_member_is_named(origin, zoo):
    with tarfile.open(zoo / "zoo-train-0003.tar", "w") as tar:
        add(tar, "broken.jpg", b"junk")
        add(tar, "broken.cls", b"1")
    assert origin.catalogue(fresh=True).unreadable == ["zoo-train-0003.tar/broken.jpg"]
    assert origin.catalogue(fresh=True).unreadable == ["zoo-train-0003.tar/broken.jpg"]


def refused(origin):
    with pytest.raises(DataError) as error:
        origin.catalogue(fresh=True)
    return str(error.value)


def test_no_shards(origin, zoo):
    for path in zoo.glob("zoo-val*"):
        path.rename(path.with_name(path.name.replace("zoo-val", "zoo-value")))
    assert f"{zoo}/zoo-val-*.tar: no such shards" in refused(origin)
    shutil.rmtree(zoo)
    assert "no such folder; expected" in refused(origin)


def test_image_without_a_class(origin, zoo):
    with tarfile.open(zoo / "zoo-train-0003.tar", "w") as tar:
        add(tar, "lonely.jpg", b"junk")
    assert "zoo-train-0003.tar: lonely.jpg has no lonely.cls beside it" in refused(origin)


@pytest.mark.parametrize("content", [b"no tar at all" * 100, b""])
def test_damaged_shard(content, origin, zoo):
    (zoo / "zoo-train-0003.tar").write_bytes(content)
    assert "zoo-train-0003.tar: cannot be read as a shard" in refused(origin)


def test_class_that_is_no_number(origin, zoo):
    with tarfile.open(zoo / "zoo-train-0003.tar", "w") as tar:
        add(tar, "a.jpg", b"junk")
        add(tar, "a.cls", b"ant")
    assert "zoo-train-0003.tar: cannot be read as a shard" in refused(origin)


def test_class_without_images(origin, zoo):
    """Numbers with a gap would be shifted."""
    for split in ("train", "val"):
        with tarfile.open(zoo / f"zoo-{split}-0007.tar", "w") as tar:
            add(tar, "a.jpg", b"junk")
            add(tar, "a.cls", b"4")
    assert "have the classes 0, 1, 2, 4, expected every index" in refused(origin)
