"""Folders of images: timm's list, a cache that looks only at what changed, and what is refused."""

import json
import os
import shutil
import socket
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_dataset
from timm.utils.misc import natural_key as timms_key
from torchvision.datasets.folder import IMG_EXTENSIONS

from ofq_core.data import Share, prepare_data
from ofq_core.data.folder import FolderOrigin
from ofq_core.data.manifest import load_images
from ofq_core.data.scan import NO_FILE, ScanCache, image_suffixes, natural_key
from ofq_core.errors import DataError
from ofq_core.settings import RecipeSettings

UNKNOWN = "no image that Pillow knows"
RECIPE = RecipeSettings(epochs=1, cga_epochs=0, batch_size=8, lr=1e-3)


@pytest.fixture
def origin(pets, image_settings):
    return FolderOrigin(image_settings(), pets)


@pytest.fixture
def opens(monkeypatch):
    """Names of the files whose header was read."""
    names = []
    read = FolderOrigin.image

    def counting(self, name, *arguments):
        names.append(name.rpartition("/")[2])
        return read(self, name, *arguments)

    monkeypatch.setattr(FolderOrigin, "image", counting)
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
    assert origin.catalogue(fresh=True).unreadable == {"train/ant/ant_1.png": UNKNOWN}
    opens.clear()
    assert origin.catalogue(fresh=True).unreadable == {"train/ant/ant_1.png": UNKNOWN}
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


# Every file is read, or listed with a reason


@pytest.mark.parametrize(
    "suffix",
    ["webp", "WebP", "ppm", "pgm", "PNM", "bmp", "tif", "TIFF", "gif", "jp2", "jfif", "JPG", "tga"],
)
def test_all_that_pillow_reads(suffix, pets, opened, cpu):
    """Saved in another format, whatever the case of its suffix, an image is the same image."""
    chosen = {"val_share": 0.0, "channels": 1, "mean": (0.5,), "std": (0.5,)}
    before = next(iter(opened(**chosen).eval_batches("test", 15, Share(), cpu))).images
    for path in pets.rglob("*_1.png"):
        with Image.open(path) as image:
            image.convert("L").save(path.with_suffix(f".{suffix}"), lossless=True, quality=100)
        path.unlink()
    data = opened(**chosen)
    assert (data.train_size, data.split_size("test")) == (42, 15)
    after = next(iter(data.eval_batches("test", 15, Share(), cpu))).images
    assert (after - before).abs().max() < (0.2 if suffix in ("jfif", "JPG") else 0.02)
    assert data.unreadable() == []


def test_suffixes_are_torchvisions_and_pillows():
    known = set(image_suffixes())
    assert known.issuperset(IMG_EXTENSIONS)
    assert known.isdisjoint({".pdf", ".eps", ".h5", ".mpg", ".txt", ".npy", ""})


def left(path, kind):
    """Put something that is no readable image at a path."""
    if kind == "text":
        path.write_text("no image")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made, pytest.MonkeyPatch.context() as patch:
            patch.chdir(path.parent)
            made.bind(path.name)
    elif kind == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("no image")


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("ant/notes.txt", "text", "no suffix of an image"),
        ("ant/ant_1", "text", "no suffix of an image"),
        ("ant/ant_1.png.part", "text", "no suffix of an image"),
        ("ant/x.png", "text", "no image that Pillow knows"),
        ("ant/x.webp", "text", "no image that Pillow knows"),
        ("ant/x.png", "dangling", "a link to nothing"),
        ("ant/more", "dangling", "a link to nothing"),
        ("ant/x.jpg", "loop", "Too many levels of symbolic links"),
        ("ant/x.png", "fifo", "neither a file nor a folder"),
        ("ant/x.png", "socket", "neither a file nor a folder"),
        ("README", "text", "no suffix of an image"),
        ("classes.csv", "fifo", "no suffix of an image"),
        ("ant/more", "folder", "no suffix of an image"),
        (os.fsdecode(b"ant/caf\xe9.png"), "text", "no image that Pillow knows"),
        ("ant/a\nb.txt", "text", "no suffix of an image"),
    ],
)
def test_what_is_left_out_is_counted_and_named(name, kind, reason, pets, refused, opened, tmp_path):
    """One file of 42 is more than the share, unless the share is larger; the rest is trained on."""
    left(pets / "train" / name, kind)
    listed = f"train/{name}/notes.txt" if kind == "folder" else f"train/{name}"
    message = refused()
    assert "1 of 42 images of split 'train' cannot be read" in message or "1 of 43" in message
    assert f"{ascii(listed)[1:-1]} ({reason})" in message
    data = opened(max_unreadable=0.05, val_share=0.0)
    manifest = json.loads((tmp_path / "data/pets/manifest.json").read_text())
    assert manifest["unreadable"] == [listed]
    assert data.train_size == 42 + (name.endswith(("g", ".webp")) and reason != NO_FILE)
    assert len(list(data.train_batches(RECIPE, 0, 0, 0, Share(), torch.device("cpu")))) == 5


@pytest.mark.parametrize(
    "name", [".DS_Store", "ant/.DS_Store", "ant/Thumbs.db", "bee/desktop.ini", "ant/._ant_1.png"]
)
def test_files_of_the_desktop_stop_nothing(name, pets, opened, tmp_path):
    """They are named all the same."""
    (pets / "train" / name).write_bytes(b"Mac OS X")
    data = opened(max_unreadable=0.0, val_share=0.0)
    manifest = json.loads((tmp_path / "data/pets/manifest.json").read_text())
    assert manifest["unreadable"] == [f"train/{name}"]
    assert data.train_size == 42


def test_hidden_images_are_images(origin, pets):
    (pets / "train/ant/ant_1.png").rename(pets / "train/ant/.ant_1.png")
    catalogue = origin.catalogue(fresh=True)
    assert (len(catalogue.train), catalogue.others) == (42, {"train": {}, "val": {}})


def test_links_to_folders_are_class_folders(pets, opened):
    for split in ("train", "val"):
        (pets / split / "cat").rename(pets / f"cats of {split}")
        (pets / split / "cat").symlink_to(pets / f"cats of {split}")
    assert opened(val_share=0.0).train_size == 42


def test_what_is_left_out_is_remembered(origin, pets):
    """Also by the listing that trusts unchanged folders."""
    (pets / "train/ant/notes.txt").write_text("no image")
    found = [origin.catalogue(fresh=fresh).others for fresh in (True, False, True)]
    assert found == [{"train": {"train/ant/notes.txt": "no suffix of an image"}, "val": {}}] * 3


def test_another_pillow_looks_again(origin, opens, monkeypatch):
    """Perhaps it reads more formats."""
    origin.catalogue(fresh=True)
    opens.clear()
    monkeypatch.setattr(ScanCache, "FORMAT", "2, Pillow 99")
    origin.catalogue(fresh=True)
    assert len(opens) == 57


# Names


@pytest.mark.parametrize(
    "names",
    [
        ("\u2460", "\u2461", "\u2462"),
        ("x\u00b2", "x\u00b3", "\u0663"),
        (os.fsdecode(b"\xe9"), os.fsdecode(b"\xff"), "e"),
        ("a, b", 'a "b"', "a\nb"),
        ("\u2215", "\uff0f", "\\"),
        ("a" * 255, "a" * 254 + "b", "\u00e9" * 127),
        ("caf\u00e9", "cafe", "caf\u00e8"),
        (" ", "- ", "#"),
    ],
    ids=ascii,
)
def test_names_of_classes(names, pets, opened, tmp_path):
    for split in ("train", "val"):
        for old, new in zip(("ant", "bee", "cat"), names, strict=True):
            (pets / split / old).rename(pets / split / new)
    data = opened(val_share=0.0)
    manifest = json.loads((tmp_path / "data/pets/manifest.json").read_text())
    assert data.train_size == 42
    assert sorted(manifest["class_names"]) == sorted(names) == sorted(data.prepared.classes)


@given(st.lists(st.text(alphabet="aB09\u0663\u00e9 _-", max_size=6), max_size=5))
def test_classes_are_ordered_as_timm_does(names):
    assert sorted(names, key=natural_key) == sorted(names, key=timms_key)


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_one_class_in_two_spellings(pets, opened, tmp_path):
    """Composed in one split and decomposed in the other, as after a copy from a Mac."""
    (pets / "train/ant").rename(pets / "train" / COMPOSED)
    (pets / "val/ant").rename(pets / "val" / DECOMPOSED)
    data = opened(val_share=0.0)
    assert data.prepared.classes == ["bee", COMPOSED, "cat"]
    assert data.prepared.splits["test"].per_class(3) == [5, 5, 5]


def test_two_classes_that_look_the_same(pets, refused):
    for split in ("train", "val"):
        (pets / split / "ant").rename(pets / split / COMPOSED)
        (pets / split / "bee").rename(pets / split / DECOMPOSED)
    assert r"has the classes 'cafe\u0301' and 'caf\xe9', one name in two spellings" in refused()


def test_images_in_another_spelling_than_the_manifests(pets, opened):
    for split in ("train", "val"):
        (pets / split / "ant").rename(pets / split / COMPOSED)
    data = opened()
    for split in ("train", "val"):
        (pets / split / COMPOSED).rename(pets / split / DECOMPOSED)
    with pytest.raises(DataError, match=r"19 missing .*19 new .*another spelling of Unicode"):
        load_images(data.settings, pets.parents[1] / "data" / "pets")


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
    assert "pets/train/dog: no images, but train/dog/notes.txt (no suffix of an" in refused()


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


def test_class_folder_that_is_a_dangling_link(pets, refused):
    """In both splits it would be a class fewer, and nobody would know."""
    for split in ("train", "val"):
        (pets / split / "dog").symlink_to("/nowhere/dog")
    assert "pets/train/dog: a link to nothing; expected" in refused()


def test_link_to_a_folder_inside_a_class(pets, refused):
    (pets / "train/ant/more").mkdir()
    (pets / "train/ant/more/bees").symlink_to(pets / "train/bee")
    assert "pets/train/ant/more/bees: a link to a folder too deep" in refused()


def test_folder_that_may_not_be_listed(pets, refused, monkeypatch):
    """Root may list all, so the system's refusal is imitated."""
    real = os.scandir

    def denied(path):
        if str(path).endswith("train/bee"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert "pets/train/bee: cannot be listed (Permission denied)" in refused()


def test_dangling_link_of_a_split(pets, refused):
    shutil.rmtree(pets / "val")
    (pets / "val").symlink_to("/nowhere")
    assert "pets/val: no such folder; expected" in refused()


@pytest.mark.parametrize("name", ["n01440764.tar", "ant/images.ZIP", "ant/more.tar.gz"])
def test_archives_beside_images(name, pets, refused):
    """One file, but nobody knows how many images."""
    (pets / "train" / name).write_bytes(b"")
    assert f"pets/train/{name}: an archive, perhaps of images" in refused(max_unreadable=0.9)
