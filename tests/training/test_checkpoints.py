"""Checkpoints and weights: the damaged and the foreign are refused in a line, never executed."""

import errno
import os
import pickle

import pytest
import torch
from torch import nn

from ofq_core import checkpoints
from ofq_core.checkpoints.io import CONTENT
from ofq_core.errors import CheckpointError

SHA = "a" * 64


class Bomb:
    """A pickle that creates a file when it is loaded the unsafe way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def content(**changes):
    value = {"format": checkpoints.FORMAT, **dict.fromkeys(CONTENT, 0), "settings_sha256": SHA}
    return {**value, **changes}


def refused(call, *arguments):
    with pytest.raises(CheckpointError) as error:
        call(*arguments)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


def test_round_trip(path):
    value = content(model={"w": torch.arange(3)}, progress={"history": [{"epoch": 0}], "x": None})
    checkpoints.save(path, value)
    loaded = checkpoints.load_checkpoint(path, SHA)
    assert torch.equal(loaded.pop("model")["w"], value.pop("model")["w"])
    assert loaded == value


def test_missing(path):
    assert refused(checkpoints.load, path) == f"{path}: no such file"
    assert refused(checkpoints.load, path.parent) == f"{path.parent}: no such file"


def test_truncated_anywhere(path):
    checkpoints.save(path, content(model={"w": torch.zeros(1000)}))
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        message = refused(checkpoints.load_checkpoint, path, SHA)
        assert f"{path} ({size} bytes) cannot be read: truncated, or not a file of this" in message
        assert message.endswith("; delete it to start afresh")


@pytest.mark.parametrize("junk", [b"text", bytes(range(256)) * 20, b"PK\x03\x04" + b"\0" * 500])
def test_random_bytes(junk, path):
    path.write_bytes(junk)
    assert "cannot be read" in refused(checkpoints.load, path)


@pytest.mark.parametrize("writer", [pickle.dump, torch.save])
def test_code_in_a_file_is_not_executed(writer, path, tmp_path):
    target = tmp_path / "executed"
    with path.open("wb") as file:
        writer({**content(), "model": Bomb(target)}, file)
    assert "cannot be read" in refused(checkpoints.load_checkpoint, path, SHA)
    assert not target.exists()
    with path.open("rb") as file:  # the bomb is real
        if writer is pickle.dump:
            pickle.load(file)
        else:
            torch.load(file, weights_only=False)
    assert target.exists()


@pytest.mark.parametrize("value", [[1, 2], {"state_dict": {}}, torch.zeros(2), {"format": "ofq-9"}])
def test_foreign_kind(value, path):
    checkpoints.save(path, value)
    message = refused(checkpoints.load_checkpoint, path, SHA)
    assert "not a training checkpoint of this suite" in message


@pytest.mark.parametrize("key", CONTENT)
def test_a_part_is_missing(key, path):
    value = content()
    del value[key]
    checkpoints.save(path, value)
    assert f"damaged checkpoint (no {key})" in refused(checkpoints.load_checkpoint, path, SHA)


def test_other_settings(path):
    checkpoints.save(path, content(settings_sha256="b" * 64))
    message = refused(checkpoints.load_checkpoint, path, SHA)
    assert "a run with other settings" in message
    assert "b" * 12 in message
    assert "a" * 12 in message
    assert "delete it to start afresh" in message


def test_weights_that_do_not_fit(path):
    checkpoints.save(path, nn.Linear(3, 2).state_dict())
    other = nn.Linear(4, 2)
    before = other.weight.clone()
    message = refused(checkpoints.load_weights, other, path, "teacher")
    assert "this teacher does not fit the model" in message
    assert "weight has shape (2, 3), the model (2, 4)" in message
    assert torch.equal(other.weight, before), "nothing of it was taken"
    message = refused(checkpoints.load_weights, nn.Linear(3, 2, bias=False), path, "teacher")
    assert "bias is not part of the model" in message
    checkpoints.save(path, nn.Linear(3, 2, bias=False).state_dict())
    assert "bias is missing" in refused(checkpoints.load_weights, nn.Linear(3, 2), path, "x")


def test_weights_that_fit(path):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    checkpoints.save(path, source.state_dict())
    checkpoints.load_weights(target, path, "teacher")
    assert torch.equal(source.weight, target.weight)


def test_many_differences_are_counted_not_listed(path):
    checkpoints.save(path, {f"x{i}": torch.zeros(1) for i in range(9)})
    message = refused(checkpoints.load_weights, nn.Linear(3, 2), path, "teacher")
    assert "; and 8 more" in message


@pytest.mark.parametrize("value", [[torch.zeros(1)], {"a": 1}, "text"])
def test_weights_of_another_kind(value, path):
    checkpoints.save(path, value)
    message = refused(checkpoints.load_weights, nn.Linear(3, 2), path, "teacher")
    assert "not a teacher of this suite (expected a dict of tensors)" in message


def test_full_disk(path, monkeypatch):
    """The one before stays, nothing half-written is left; see also the stages' own test."""
    checkpoints.save(path, content())
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = refused(checkpoints.save, path, content(progress=1))
    assert message == (
        f"cannot write {path}: No space left on device. "
        "The file that was there before is untouched."
    )
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    path.unlink()
    message = refused(checkpoints.save, path, content())
    assert message == f"cannot write {path}: No space left on device."
    assert not list(path.parent.iterdir())
