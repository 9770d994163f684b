"""Folders of images: timm's list, a cache that looks only at what changed, and what is refused."""

import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from timm.data import create_dataset

from ofq_core.data import folder as folder_module
from ofq_core.data import prepare_data
from ofq_core.data.folder import FolderOrigin
from ofq_core.data.scan import ScanCache
from ofq_core.errors import DataError


@pytest.fixture
def origin(pets, image_settings):
    return FolderOrigin(image_settings(), pets)


@pytest.fixture
def opens(monkeypatch):
    """Names of the files whose header was read."""
    names = []
    read = folder_module.header_readable

    def counting(path):
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(folder_module, "header_readable", counting)
    return names


@pytest.fixture
def refused(image_settings, tmp_path):
    """The one-line message with which preparing stops."""

    def message(**changes):
        with pytest.raises(DataError) as error:
            prepare_data(image_settings(**changes), tmp_path / "data")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "data").exists(), "nothing half done"
        return str(error.value)

    return message


@pytest.mark.parametrize("split", ["train", "val"])
def test_list_is_timms(split, origin, pets):
    """The same files, classes and pixels as timm's folder reader; names that sort by number."""
    for number in (2, 10):
        for part in ("train", "val"):
            shutil.copytree(pets / part / "ant", pets / part / f"class{number}")
    catalogue = origin.catalogue(fresh=True)
    rows = catalogue.train if split == "train" else catalogue.test
    theirs = create_dataset("", root=str(pets), split=split)
    assert catalogue.classes == list(theirs.reader.class_to_idx) == [
        "ant", "bee", "cat", "class2", "class10",
    ]  # fmt: skip
    names = [f"{split}/{name}" for name in theirs.filenames()]
    index = {name: i for i, name in enumerate(names)}
    assert sorted(names) == [rows.name(i) for i in range(len(rows))]
    for i in range(len(rows)):
        stream, label = theirs.reader[index[rows.name(i)]]
        assert label == rows.labels[i]
        assert rows.sizes[i] == (pets / rows.name(i)).stat().st_size
        with stream, Image.open(stream) as image, origin.image(rows.name(i), -1, 0) as ours:
            assert np.array_equal(np.asarray(ours), np.asarray(image))


def test_other_files_are_no_images(origin, pets):
    (pets / "train/ant/notes.txt").write_text("no image")
    (pets / "train/README").write_text("no class")
    assert len(origin.catalogue(fresh=True).train) == 42


def test_second_listing_reads_nothing(origin, opens):
    first = origin.catalogue(fresh=True)
    assert len(opens) == 57
    opens.clear()
    second = origin.catalogue(fresh=True)
    assert opens == []
    assert [second.train.name(i) for i in range(42)] == [first.train.name(i) for i in range(42)]


def test_only_what_changed_is_read_again(origin, pets, opens):
    """A new file, an overwritten one, one with another time; and one that went."""
    origin.catalogue(fresh=True)
    opens.clear()
    Image.new("RGB", (9, 9)).save(pets / "train/ant/new.png")
    Image.new("RGB", (30, 31)).save(pets / "train/bee/bee_1.png")
    os.utime(pets / "val/cat/cat_1.png", (time.time() + 5, time.time() + 5))
    (pets / "train/cat/cat_2.JPEG").unlink()
    catalogue = origin.catalogue(fresh=True)
    assert sorted(opens) == ["bee_1.png", "cat_1.png", "new.png"]
    assert len(catalogue.train) == 42


def test_what_was_unreadable_is_remembered(origin, pets, opens):
    (pets / "train/ant/ant_1.png").write_bytes(b"junk")
    assert origin.catalogue(fresh=True).unreadable == ["train/ant/ant_1.png"]
    opens.clear()
    assert origin.catalogue(fresh=True).unreadable == ["train/ant/ant_1.png"]
    assert opens == []


def test_listing_to_open_trusts_unchanged_folders(origin, pets, opens, monkeypatch):
    """No file is opened, and none but those of changed class folders are looked at."""
    origin.catalogue(fresh=True)
    (pets / "train/bee/bee_1.png").unlink()
    opens.clear()
    looked = []
    scan = FolderOrigin.scan

    def noting(self, unit, *arguments):
        looked.append(unit)
        return scan(self, unit, *arguments)

    monkeypatch.setattr(FolderOrigin, "scan", noting)
    assert len(origin.catalogue(fresh=False).train) == 41
    assert (looked, opens) == (["train/bee"], [])


def test_headers_are_read_when_they_were_not_before(origin, opens):
    """Opening on a machine without a cache leaves them for the next prepare."""
    origin.catalogue(fresh=False)
    assert opens == []
    origin.catalogue(fresh=True)
    assert len(opens) == 57


@pytest.mark.parametrize("content", [b"", b"junk", b"\x1f\x8b\x08\x00damaged"])
def test_damaged_cache_is_made_again(content, origin, pets, opens):
    origin.catalogue(fresh=True)
    path = ScanCache(pets).path
    assert path.is_file()
    path.write_bytes(content)
    opens.clear()
    assert len(origin.catalogue(fresh=True).train) == 42
    assert len(opens) == 57


def test_cache_that_cannot_be_written(origin, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(origin.catalogue(fresh=True).train) == 42


def test_cache_is_not_in_the_repository(origin, pets, tmp_path):
    origin.catalogue(fresh=True)
    assert ScanCache(pets).path.is_relative_to(tmp_path / "cache" / "ofq")


# Bad input


def test_no_images_at_all(refused, tmp_path):
    message = refused()
    assert f"{tmp_path}/sets/pets: no such folder" in message
    assert "expected" in message
    assert "/pets/train/<class>/<image>" in message
    assert f"OFQ_DATA_DIR names the folder above pets, now {tmp_path}/sets" in message


def test_default_place_of_the_images(refused, monkeypatch):
    monkeypatch.delenv("OFQ_DATA_DIR")
    message = refused()
    assert message.startswith("datasets/pets: no such folder")
    assert "now unset" in message


def test_no_such_split(pets, refused):
    assert "pets/test: no such folder; expected" in refused(test_split="test")


def test_split_without_class_folders(pets, refused):
    shutil.rmtree(pets / "val")
    (pets / "val").mkdir()
    assert "pets/val: no class folders; expected" in refused()


def test_split_with_one_class(pets, refused):
    for split in ("train", "val"):
        for name in ("bee", "cat"):
            shutil.rmtree(pets / split / name)
    assert "split 'train' has one class only (ant), expected at least two" in refused()


def test_classes_that_differ(pets, refused):
    (pets / "val/cat").rename(pets / "val/dog")
    message = refused()
    assert "the classes of the splits differ" in message
    assert "1 only in 'train' (cat); 1 only in 'val' (dog)" in message


def test_empty_class(pets, refused):
    (pets / "train/dog").mkdir()
    (pets / "train/dog/notes.txt").write_text("no image")
    assert "pets/train/dog: no images; timm reads" in refused()


def test_no_images_in_any_class(pets, refused):
    for path in (pets / "train").rglob("*.*"):
        path.unlink()
    assert "pets/train/ant: no images in any class folder" in refused()


def test_images_outside_of_classes(pets, refused):
    shutil.copy(pets / "train/ant/ant_1.png", pets / "train/lost.png")
    assert "pets/train/lost.png: an image outside of a class folder" in refused()


def test_images_too_deep(pets, refused):
    (pets / "train/ant/more").mkdir()
    shutil.copy(pets / "train/ant/ant_1.png", pets / "train/ant/more/x.png")
    assert "pets/train/ant/more/x.png: an image too deep" in refused()


@pytest.mark.parametrize("source", ["torch/no_such_set", "torch/imagenet", "other"])
def test_unknown_source(source, image_settings, tmp_path):
    chosen = image_settings().model_copy(update={"source": source})
    with pytest.raises(DataError, match=f"data.source = '{source}': known are .*torch/cifar10"):
        prepare_data(chosen, tmp_path / "data")
