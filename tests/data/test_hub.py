"""Hugging Face's formats through its package: a local Parquet set, without a network."""

import io
import pickle
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ofq_core.data import Share, open_data, prepare_data
from ofq_core.data.hub import HubOrigin
from ofq_core.errors import DataError

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture
def hub_settings(image_settings):
    return image_settings(source="hfds/zoo", test_split="test")


@pytest.mark.parametrize(
    ("file", "found"),
    [(None, "work/datasets"), ("__init__.py", "work/datasets/__init__.py")],
    ids=["folder", "package"],
)
def test_folder_called_as_the_package(file, found, hub_settings, tmp_path, monkeypatch):
    """The folder of the images has this name by default. Whether or not it is installed here."""
    (tmp_path / "work/datasets").mkdir(parents=True)
    if file is not None:
        (tmp_path / "work/datasets" / file).touch()
    for name in [name for name in sys.modules if name.partition(".")[0] == "datasets"]:
        monkeypatch.delitem(sys.modules, name)
    # As where nothing is installed but what is in the working folder.
    monkeypatch.setattr(sys, "path", [str(tmp_path / "work")])
    with pytest.raises(DataError) as error:
        HubOrigin(hub_settings, tmp_path)
    assert "'hfds/zoo' needs the package datasets: pip install datasets (" in str(error.value)
    assert f"{found} is something else of that name)" in str(error.value)
    sys.modules.pop("datasets", None)


def test_missing_package(hub_settings, tmp_path, monkeypatch):
    """Whether or not it is installed here."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"'hfds/zoo' needs the package datasets: pip install"):
        prepare_data(hub_settings, tmp_path / "data")


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="the package datasets is not installed")


@pytest.fixture
def write_zoo(datasets, pictures, tmp_path):
    """Write the pictures as Parquet, in the folder that source hfds/zoo names."""

    def write(image="image", label="label", more=None, kind=None):
        """more: type and value of further columns, by name. kind: type of the labels."""
        features = {image: datasets.Image(), label: kind or datasets.ClassLabel(names=CLASSES)}
        features |= {name: feature for name, (feature, _) in (more or {}).items()}
        root = tmp_path / "sets/pets/zoo"
        root.mkdir(parents=True, exist_ok=True)
        content = {}
        for split, folder in (("train", "train"), ("test", "val")):
            # So that a slice has all classes.
            files = sorted((pictures / folder).rglob("*.*"), key=lambda p: (p.stem[3:], p.name))
            content[split] = [path.read_bytes() for path in files]
            columns = {
                image: [{"bytes": data, "path": None} for data in content[split]],
                label: [CLASSES.index(path.parent.name) for path in files],
                **{name: [value] * len(files) for name, (_, value) in (more or {}).items()},
            }
            table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
            table.to_parquet(root / f"{split}.parquet")
        return content

    return write


@pytest.fixture
def zoo(write_zoo):
    return write_zoo()


def test_list_and_stream(zoo, hub_settings, recipe, tmp_path, cpu, monkeypatch):
    """Sizes are those of the encoded images; workers do not change the stream."""
    manifest = prepare_data(hub_settings, tmp_path / "data")
    assert manifest["class_names"] == CLASSES
    assert manifest["splits"]["test"]["per_class"] == [5, 5, 5]
    alone = open_data(hub_settings, tmp_path / "data")
    rows = alone.prepared.splits["test"]
    assert rows.sizes.tolist() == [len(data) for data in zoo["test"]]
    for i, data in enumerate(zoo["test"]):
        with alone.prepared.origin.image(rows.name(i), i, 0) as ours:
            theirs = Image.open(io.BytesIO(data))
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    monkeypatch.setenv("OFQ_WORKERS", "1")
    helped = open_data(hub_settings, tmp_path / "data")
    streams = [list(d.train_batches(recipe(), 0, 0, 0, Share(), cpu)) for d in (alone, helped)]
    # As sent to readers that are not forked.
    alone.prepared = pickle.loads(pickle.dumps(alone.prepared))
    alone._images["train"].origin = alone.prepared.origin
    streams.append(list(alone.train_batches(recipe(), 0, 0, 0, Share(), cpu)))
    assert len(streams[0]) == 4
    for a, b, c in zip(*streams, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.images, c.images)


def test_no_such_set(datasets, hub_settings, tmp_path):
    """Nothing is fetched unless data.download says so."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    with pytest.raises(DataError, match=r"hfds/zoo, split 'train': cannot .*data\.download=true"):
        prepare_data(hub_settings, tmp_path / "data")
    assert before == constants.HF_HUB_OFFLINE
    assert "datasets" in sys.modules


def coarse(datasets):
    return {"coarse": (datasets.ClassLabel(names=["x"]), 0), "id": (datasets.Value("int64"), 7)}


@pytest.mark.parametrize(
    "columns", [{"image": "img", "label": "fine_label"}, {"image": "img", "more": coarse}]
)
def test_columns_are_known_by_their_types(columns, datasets, write_zoo, hub_settings, tmp_path):
    """Of several kinds of classes the one is taken that is called `label`."""
    more = columns.get("more", lambda package: None)(datasets)
    write_zoo(**{**columns, "more": more})
    manifest = prepare_data(hub_settings, tmp_path / "data")
    assert manifest["class_names"] == CLASSES
    assert manifest["splits"]["test"]["per_class"] == [5, 5, 5]


def test_columns_that_cannot_be_told_apart(datasets, write_zoo, hub_settings, tmp_path):
    write_zoo("img", "fine", coarse(datasets))
    with pytest.raises(DataError) as error:
        prepare_data(hub_settings, tmp_path / "data")
    assert str(error.value) == (
        "hfds/zoo, split 'train': its columns are img (Image), fine (ClassLabel), coarse "
        "(ClassLabel), id (int64); expected one column of type ClassLabel, or one of several that "
        "is called label"
    )


def test_labels_without_class_names(datasets, write_zoo, hub_settings, tmp_path):
    write_zoo(kind=datasets.Value("int64"))
    with pytest.raises(
        DataError, match=r"image \(Image\), label \(int64\); expected one column of"
    ):
        prepare_data(hub_settings, tmp_path / "data")


def test_class_names_in_another_order(zoo, datasets, hub_settings, tmp_path):
    """The package gives the names of the first file to all of them, and says nothing."""
    path = tmp_path / "sets/pets/zoo/test.parquet"
    table = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "hub"))
    names = datasets.ClassLabel(names=["bee", "ant", "cat"])
    table.cast_column("label", names).to_parquet(path)
    with pytest.raises(DataError, match=r"test.parquet: its class names .*'bee' instead of 'ant'"):
        prepare_data(hub_settings, tmp_path / "data")


@pytest.mark.parametrize("kind", ["imagefolder", "json"])
def test_folders_of_other_formats(kind, datasets, pictures, hub_settings, tmp_path):
    """The package drops files whose suffix it does not know, and says nothing."""
    root = tmp_path / "sets/pets/zoo"
    if kind == "imagefolder":
        shutil.copytree(pictures, root)
        (root / "val").rename(root / "test")
    else:
        table = datasets.Dataset.from_dict({"label": [0]})
        datasets.DatasetDict(train=table, test=table).save_to_disk(root)
    with pytest.raises(DataError, match=f"zoo: .*kind '{kind}'; expected Parquet or Arrow files"):
        prepare_data(hub_settings, tmp_path / "data")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            ("trian", "test"),
            r"split 'trian': cannot be read from .*Unknown split .*data.train_split",
        ),
        (
            ("train[:5", "test"),
            r"split 'train\[:5': cannot be read from .*Unrecognized instruction",
        ),
        (("train", "test[:0]"), "corresponds to no data"),
        (("train", "train[:50%]"), "share 21 rows: expected test images"),
        (("train[:80%]", "train[70%:]"), "share 5 rows"),
        (("train+test", "test"), "share 15 rows"),
        (("all", "test"), "share 15 rows"),
        (("train", "train[:100%]"), "share 42 rows"),
    ],
)
def test_splits_that_cannot_be(splits, message, zoo, image_settings, tmp_path):
    settings = image_settings(source="hfds/zoo", train_split=splits[0], test_split=splits[1])
    with pytest.raises(DataError, match=message) as error:
        prepare_data(settings, tmp_path / "data")
    assert "\n" not in str(error.value)


def test_slices_without_a_common_row(zoo, image_settings, tmp_path):
    """What the hub has in one split may be cut in two."""
    settings = image_settings(source="hfds/zoo", train_split="train[:30]", test_split="train[30:]")
    manifest = prepare_data(settings, tmp_path / "data")
    assert manifest["splits"]["test"]["per_class"] == [4, 4, 4]


def test_damaged_parquet(zoo, hub_settings, tmp_path, caplog):
    (tmp_path / "sets/pets/zoo/train.parquet").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"split 'train': cannot be read from .*Parquet") as error:
        prepare_data(hub_settings, tmp_path / "data")
    assert "\n" not in str(error.value)
    assert not caplog.records, "nothing beside the one message"
