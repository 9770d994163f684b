"""Hugging Face's formats through timm's reader: a local Parquet set, without a network."""

import io
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ofq_core.data import Share, open_data, prepare_data
from ofq_core.errors import DataError

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture
def hub_settings(image_settings):
    return image_settings(source="hfds/zoo", test_split="test")


def test_missing_package(hub_settings, tmp_path, monkeypatch):
    """Whether or not it is installed here."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"'hfds/zoo' needs the package datasets: pip install"):
        prepare_data(hub_settings, tmp_path / "data")


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="the package datasets is not installed")


@pytest.fixture
def zoo(datasets, pictures, tmp_path):
    """The pictures as Parquet, in the folder that source hfds/zoo names."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    )
    root = tmp_path / "sets/pets/zoo"
    root.mkdir(parents=True)
    content = {}
    for split, folder in (("train", "train"), ("test", "val")):
        files = sorted((pictures / folder).rglob("*.*"))
        content[split] = [path.read_bytes() for path in files]
        columns = {
            "image": [{"bytes": data, "path": None} for data in content[split]],
            "label": [CLASSES.index(path.parent.name) for path in files],
        }
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(root / f"{split}.parquet")
    return content


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
    with pytest.raises(DataError, match=r"hfds/zoo, split 'train': not in .*data\.download=true"):
        prepare_data(hub_settings, tmp_path / "data")
    assert before == constants.HF_HUB_OFFLINE
    assert "datasets" in sys.modules
