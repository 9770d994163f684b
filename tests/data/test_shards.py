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
from ofq_core.data.scan import DESKTOP, NO_SUFFIX
from ofq_core.data.shards import ShardOrigin
from ofq_core.errors import DataError

CLASSES = ("ant", "bee", "cat")
UNKNOWN = "no image that Pillow knows"


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
    assert origin.catalogue(fresh=True).unreadable == {"zoo-train-0003.tar/broken.jpg": UNKNOWN}
    assert origin.catalogue(fresh=True).unreadable == {"zoo-train-0003.tar/broken.jpg": UNKNOWN}


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


# Every file is read, or listed with a reason, or the shard is refused


def shard(zoo, *files):
    """A further shard of training images: pairs of a name and a content, None for a picture."""
    with tarfile.open(zoo / "zoo-train-0003.tar", "w") as tar:
        for name, content in files:
            if content is None:
                file = io.BytesIO()
                Image.new("L", (8, 8)).save(file, "PNG")
                content = file.getvalue()
            add(tar, name, content)


@pytest.mark.parametrize(
    "names",
    [
        ("n0.1/img.v2.jpg", "n0.1/img.v3.jpg", "n0.1/img.jpg"),
        ("0.1.jpg", "0.2.jpg", "0.3.png"),
        ("./a.JPG", "./b.Jpeg", "./c.WEBP"),
        ("a.ppm", "b.tif", "c.bmp"),
        (os.fsdecode(b"caf\xe9.png"), "a\nb.png", "a, b.png"),
        ("x" * 300 + ".png", "x..png", "a/b/c.d/e.png"),
    ],
    ids=ascii,
)
def test_all_samples_are_read(names, zoo, settings_of_shards, origin, tmp_path):
    labelled = [(name, None) for name in names]
    labelled += [(f"{name.rpartition('.')[0]}.cls", b"2") for name in names]
    shard(zoo, *labelled)
    catalogue = origin.catalogue(fresh=True)
    rows = catalogue.train
    assert (len(rows), catalogue.unreadable) == (45, {})
    assert catalogue.others == {"train": {}, "val": {}}
    added = {rows.name(i): rows.labels[i] for i in range(45) if "-0003" in rows.name(i)}
    assert added == {f"zoo-train-0003.tar/{name}": 2 for name in names}
    prepare_data(settings_of_shards, tmp_path / "data")
    assert len(open_data(settings_of_shards, tmp_path / "data").prepared.splits["test"]) == 15


SAMPLE = (("a.jpg", None), ("a.cls", b"0"))


@pytest.mark.parametrize(
    ("files", "others"),
    [
        ([("a.json", b"{}"), ("a.caption.txt", b"a")], {}),
        ([("b.cls", b"1")], {"b.cls": "no image beside it"}),
        ([("a.seg.png", None)], {"a.seg.png": "no a.seg.cls beside it"}),
        ([("b.json", b"{}"), ("README", b"")], {"b.json": NO_SUFFIX, "README": NO_SUFFIX}),
        ([("b.jpg.part", b""), ("b.npy", b"")], {"b.jpg.part": NO_SUFFIX, "b.npy": NO_SUFFIX}),
        ([("._a.jpg", b"Mac"), (".DS_Store", b"")], {"._a.jpg": DESKTOP, ".DS_Store": DESKTOP}),
    ],
)
def test_what_is_left_out_is_listed(files, others, zoo, origin):
    """What a sample has beside its image is no file that was left out."""
    shard(zoo, *SAMPLE, *files)
    others = {"train": {f"zoo-train-0003.tar/{k}": v for k, v in others.items()}, "val": {}}
    for fresh in (True, False, True):
        catalogue = origin.catalogue(fresh=fresh)
        assert len(catalogue.train) == 43
        assert catalogue.others == others


def test_left_out_files_count(zoo, settings_of_shards, tmp_path):
    shard(zoo, *SAMPLE, ("b.cls", b"1"))
    with pytest.raises(DataError, match=r"1 of 43 images .*/b.cls \(no image beside it\)"):
        prepare_data(settings_of_shards, tmp_path / "data")


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE])
def test_links_in_a_shard(kind, zoo, origin):
    shard(zoo, *SAMPLE)
    with tarfile.open(zoo / "zoo-train-0003.tar", "a") as tar:
        info = tarfile.TarInfo("b.jpg")
        info.type, info.linkname = kind, "a.jpg"
        tar.addfile(info)
        add(tar, "b.cls", b"1")
    assert origin.catalogue(fresh=True).others["train"] == {
        "zoo-train-0003.tar/b.jpg": "a link, or no plain file",
        "zoo-train-0003.tar/b.cls": "no image beside it",
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("a.png", None)], "a.jpg and a.png: two images under one key"),
        ([("a.JPG", None)], "a.jpg and a.JPG: two images under one key"),
        ([("a.jpg", None)], "a.jpg and a.jpg: two images under one key"),
        ([("a.cls", b"1")], "a.cls: twice"),
        ([("b.v2.jpg", None), ("b.cls", b"1")], "b.v2.jpg has no b.v2.cls beside it"),
        ([("b.1.jpg", None), ("b.2.jpg", None), ("b.cls", b"1")], "b.1.jpg has no b.1.cls"),
        ([("b.jpg", None), ("b.cls", b"cat")], "b.cls: b'cat' is no class index"),
        ([("b.jpg", None), ("b.cls", b"")], "b.cls: b'' is no class index"),
    ],
)
def test_samples_that_are_ambiguous(files, message, zoo, origin):
    shard(zoo, *SAMPLE, *files)
    told = refused(origin)
    assert "zoo-train-0003.tar: " in told
    assert message in told


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:1024], "cut off: the mark of a tar file's end is missing"),
        (lambda content: content[:1030], "cut off"),
        (lambda content: content[:700], "unexpected end of data"),
        (lambda content: content[:1024] + b"x" + content[1025:], "damaged, or two files joined"),
        (lambda content: content + content, "damaged, or two files joined, near byte 2048"),
        (lambda content: bytes(len(content)), "there is no file in it"),
        (lambda content: content + bytes(2**20), "nothing but zeros behind byte 2048"),
    ],
)
def test_shards_that_end_too_early(damage, message, zoo, origin):
    """tarfile takes each of them for the end, and lists the samples before it."""
    shard(zoo, ("a.cls", b"0"), ("a.jpg", b"junk"))
    path = zoo / "zoo-train-0003.tar"
    path.write_bytes(damage(path.read_bytes()))
    told = refused(origin)
    assert "zoo-train-0003.tar: cannot be read as a shard" in told
    assert message in told


@pytest.mark.parametrize(
    "name",
    [
        *("zoo-train-0003.tar.gz", "zoo-train-0003.TAR", "zoo-train.tgz", "zoo-train-3-of-4.tar"),
        *(
            "zoo-train_0003.tar",
            "zoo-train.0003.tar",
            "zoo-train-part3.tar",
            "zoo-train-shard-3.tar",
        ),
        *("zoo-train-0003.tar.part", "zoo-train-0003.tar.aria2", "zoo-train-0003.tar.1"),
    ],
)
def test_shards_with_another_name(name, zoo, origin):
    (zoo / "zoo-train-0002.tar").rename(zoo / name)
    assert f"{name}: perhaps a shard of split 'train'" in refused(origin)


def test_shards_of_other_splits_and_sets(zoo, origin):
    for name in ("zoo-train-extra-0000.tar", "zoo-train-0000.tar.idx", "zootrain.tar", "a.tar.gz"):
        (zoo / name).write_bytes(b"")
    assert len(origin.catalogue(fresh=True).train) == 42


def test_shard_that_is_no_file(zoo, origin):
    path = zoo / "zoo-train-0003.tar"
    os.mkfifo(path)
    assert "zoo-train-0003.tar: cannot be read as a shard (neither a file" in refused(origin)
    path.unlink()
    path.symlink_to("nowhere")
    assert "zoo-train-0003.tar: cannot be listed (No such file" in refused(origin)
