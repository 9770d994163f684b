"""Checkpoints and weights: the damaged and the foreign are refused in a line, never executed."""

import errno
import io
import json
import os
import pickle
import random
import zipfile

import pytest
import torch
from torch import nn

from ofq_core import checkpoints
from ofq_core.checkpoints.io import CONTENT
from ofq_core.errors import CheckpointError
from ofq_core.training import Progress

SHA = "a" * 64
DAMAGED = "cannot be read: truncated, damaged, or no file of weights"


class Bomb:
    """A pickle that creates a file when it is loaded the unsafe way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def content(**changes):
    """What a run writes, of a model with two tensors after one step."""
    model = {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}
    value = {
        "format": checkpoints.FORMAT,
        "settings_sha256": SHA,
        "progress": Progress(step=1, best_state=dict(model)).state_dict(),
        "model": model,
        "optimizer": {
            "state": {i: {"exp_avg": 0.1 * v} for i, v in enumerate(model.values())},
            "param_groups": [{"lr": 0.1, "params": [0]}, {"lr": 0.1, "params": [1]}],
        },
        "tracker": {"state": None, "samples": {"phase": torch.zeros(1), "paths": []}, "step": 1},
        "averaged": {"n_averaged": torch.ones(()), "module.w": model["w"], "module.b": model["b"]},
    }
    return {**value, **changes}


def changed(value, where, new):
    """The nested value with one entry replaced, or without it."""
    key, *rest = where
    entry = changed(value[key], rest, new) if rest else new
    if isinstance(value, list):
        return [entry if i == key else item for i, item in enumerate(value)]
    return {k: entry if k == key else v for k, v in value.items() if k != key or entry is not None}


def same(a, b):
    """Whether two nested values agree in every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        bits = [(t.dtype, t.shape, t.requires_grad, t.detach().numpy().tobytes()) for t in (a, b)]
        return bits[0] == bits[1]
    return a == b


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
    checkpoints.save(path, content())
    assert same(checkpoints.load_checkpoint(path, SHA), content())
    assert same(torch.load(path, weights_only=True), content()), "for everybody else it is torch's"


def test_missing(path):
    assert refused(checkpoints.load, path) == f"{path}: no such file"
    message = refused(checkpoints.load, path.parent)
    assert message == f"{path.parent} is a folder: expected a file of weights"


def test_truncated_anywhere(path):
    checkpoints.save(path, content())
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        message = refused(checkpoints.load_checkpoint, path, SHA)
        assert f"{path} ({size} bytes) cannot be read: " in message
        assert message.endswith("; delete it to start afresh")


@pytest.mark.parametrize(
    ("write", "call"),
    [
        (
            lambda path: checkpoints.save(path, content()),
            lambda path: checkpoints.load_checkpoint(path, SHA),
        ),
        (lambda path: torch.save(content(), path), checkpoints.load),
    ],
    ids=["ours", "torch"],
)
def test_a_flipped_bit_is_refused_or_changes_nothing(write, call, path):
    """torch's own reader takes most of them."""
    write(path)
    whole = path.read_bytes()
    # Headers and the directory at the end are small and full of meaning: every bit of those of one
    # tensor; elsewhere some hundred bits.
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("data/0"))
    listed = whole.rindex(entry.filename.encode())
    places = [*range(entry.header_offset, entry.header_offset + 30), *range(listed - 46, listed)]
    bits = [8 * place + bit for place in places for bit in range(8)]
    bits += random.Random(0).sample(range(8 * len(whole)), 200)
    taken, causes = 0, []
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            value = call(path)
        except CheckpointError as error:
            causes.append(error.__cause__)
            continue
        taken += 1
        assert same(value, content()), f"bit {bit}"
    assert taken < len(bits) / 2
    assert not [cause for cause in causes if isinstance(cause, OSError)], "a disk was blamed"
    path.write_bytes(whole)
    assert same(call(path), content())


@pytest.mark.parametrize(
    ("where", "new"),
    [
        (("progress", "epoch"), None),
        (("progress", "step"), 2),
        (("progress", "history"), [{"val_top1": 99.0}]),
        (("model", "b"), torch.ones(2).half()),
        (("model", "b"), torch.full((2,), torch.nan)),
        (("optimizer", "state", 1, "exp_avg"), torch.ones(4)),
        (("optimizer", "param_groups", 0, "params"), None),
        (("tracker", "samples", "paths"), None),
        (("averaged",), None),
    ],
)
def test_a_checkpoint_that_was_changed_by_hand(where, new, path):
    """Missing keys, other types and shapes, and what nobody could tell from a good one."""
    torch.save(changed(content(), where, new), path)
    message = refused(checkpoints.load_checkpoint, path, SHA)
    assert "damaged checkpoint (" in message
    assert message.endswith("; delete it to start afresh")
    torch.save(content(), path)
    message = refused(checkpoints.load_checkpoint, path, SHA)
    assert "damaged checkpoint (another program wrote it)" in message


@pytest.mark.parametrize("junk", [b"text", bytes(range(256)) * 20, b"PK\x03\x04" + b"\0" * 500])
def test_random_bytes(junk, path):
    path.write_bytes(junk)
    assert DAMAGED in refused(checkpoints.load, path)


@pytest.mark.parametrize("writer", [pickle.dump, torch.save])
def test_code_in_a_file_is_not_executed(writer, path, tmp_path):
    target = tmp_path / "executed"
    with path.open("wb") as file:
        writer({**content(), "model": Bomb(target)}, file)
    message = refused(checkpoints.load_checkpoint, path, SHA)
    assert "nothing of it was executed" in message
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
    assert "no weights in this file (expected a dict of tensors, alone or under" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.double(), "weight is float64, the model float32: convert it first"),
        (lambda t: t.half(), "weight is float16, the model float32: convert it first"),
        (lambda t: t.to(torch.complex64), "weight is complex64, the model float32"),
        (lambda t: t.long(), "weight is int64, the model float32"),
        (lambda t: t / 0, "cannot be used: weight has 6 of 6 values like "),
        (lambda t: t.new_zeros(1).expand(2, 3), "a tensor of 6 entries in a storage of 1"),
    ],
)
def test_values_that_the_model_would_change(change, said, path):
    """load_state_dict converts in silence, and NaN makes a result like any other."""
    state = nn.Linear(3, 2).state_dict()
    checkpoints.save(path, {**state, "weight": change(state["weight"])})
    target = nn.Linear(3, 2)
    before = target.weight.clone()
    message = refused(checkpoints.load_weights, target, path, "teacher")
    assert said in message
    assert message.startswith(str(path))
    assert torch.equal(target.weight, before), "nothing of it was taken"


@pytest.mark.parametrize("name", ["student.pt", "teacher.pt"])
@pytest.mark.parametrize("swapped", ["weights", "settings.yaml"])
def test_files_of_two_runs(swapped, name, tmp_path):
    """Each is whole, and together they are no run."""
    places = [tmp_path / run / name for run in "ab"]
    for number, place in enumerate(places):
        checkpoints.save(place, nn.Linear(3, 2).state_dict())
        place.with_name("settings.yaml").write_text(f"seed: {number}")
        record = json.dumps({"commit": None, **checkpoints.record(place)})
        place.with_name("env.json").write_text(record)
        checkpoints.load_weights(nn.Linear(3, 2), place, "student")
    other = name if swapped == "weights" else swapped
    places[0].with_name(other).replace(places[1].with_name(other))
    message = refused(checkpoints.load_weights, nn.Linear(3, 2), places[1], "student")
    assert f"{places[1].with_name(other)} is not the file of this run: its sha256 is " in message
    places[1].with_name("env.json").write_text('{"commit": null}')  # of an earlier version
    checkpoints.load_weights(nn.Linear(3, 2), places[1], "student")


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
