"""Foreign, damaged and malicious files: refused in one line, and never executed."""

import argparse
import json
import os
import pathlib
import warnings
import zipfile

import numpy as np
import pytest
import torch

from ofq_core.checkpoints import export_released, load_released, read_released, save_released
from ofq_core.errors import CheckpointError


class Bomb:
    """A pickle that creates a folder when it is loaded the unsafe way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def refused(path, **arguments):
    """The message; nothing but one line."""
    with pytest.raises(CheckpointError) as error:
        load_released(path, **arguments)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def test_missing(tmp_path):
    assert refused(tmp_path / "x.pth") == f"{tmp_path / 'x.pth'}: no such file"
    assert refused(tmp_path) == f"{tmp_path} is a folder: expected a file of weights"


JUNK = [b"", b"text", bytes(range(256)) * 20, b"PK\x03\x04" + b"\0" * 9]


@pytest.mark.parametrize("content", JUNK)
def test_no_checkpoint(content, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    assert f"({len(content)} bytes) cannot be read: " in refused(path)


def test_truncated_checkpoint(written):
    path = written()
    whole = path.read_bytes()
    for size in (100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert f"({size} bytes) cannot be read: " in refused(path)


def test_truncated_npz(converted, tmp_path):
    path = tmp_path / "x.npz"
    state = export_released(converted())
    np.savez(path, **{f"state/{key}": value.numpy() for key, value in state.items()})
    whole = path.read_bytes()
    for size in (100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert f"({size} bytes) cannot be read: truncated" in refused(path)


def test_damaged_array_in_npz(converted, tmp_path):
    """The archive's own checksums notice."""
    path = tmp_path / "x.npz"
    state = export_released(converted())
    np.savez(path, **{f"state/{key}": value.numpy() for key, value in state.items()})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "cannot be read" in refused(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["args", "state_dict", "optimizer"])
def test_code_in_a_file_is_named_and_not_executed(place, zipped, written, tmp_path):
    path, target = written(), tmp_path / "executed"
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, weights_only=True)
    content[place] = {"x": Bomb(target)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = refused(path)
    assert f"wants to load {os.mkdir.__module__}.mkdir, which is not plain data" in message
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the bomb is real"


def test_code_hidden_in_the_arguments(written, tmp_path):
    """The one class that is allowed opens no door for others inside it."""
    path, target = written(), tmp_path / "executed"
    torch.save({"args": argparse.Namespace(x=Bomb(target)), "state_dict": {}}, path)
    assert "mkdir" in refused(path)
    assert not target.exists()


def test_harmless_classes_are_refused_too(tmp_path):
    """Only what a released checkpoint needs is allowed."""
    path = tmp_path / "x.pth"
    torch.save({"args": argparse.Namespace(output=pathlib.PurePosixPath("a"))}, path)
    message = refused(path)
    assert "wants to load pathlib.PurePosixPath" in message
    assert "save them alone" in message
    torch.save(torch.nn.Linear(2, 2), path)
    message = refused(path)
    assert "torch.nn.modules.linear.Linear" in message
    assert "It is a pickled model: where its code is, save torch.save(model.state_dict()" in message


def test_allowing_a_class_is_not_for_ever(written):
    """Reading a released checkpoint changes nothing for other reads in the same process."""
    path = written()
    load_released(path)
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        torch.load(path, weights_only=True)


def header(shape, kind="<f4"):
    """An array's header, without the array."""
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def pack(path, content, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("state/a.npy", content)


TERABYTES = 2_500_000_000_000
NPZ = {
    "10 TB in a header": (header((TERABYTES,)), "shape (2500000000000,) is 10000000000000 bytes"),
    "in two sizes": (header((TERABYTES, TERABYTES)), "bytes, the file holds 0"),
    "more than there is": (header((3,)) + bytes(8), "shape (3,) is 12 bytes, the file holds 8"),
    "less than there is": (header((1,)) + bytes(8), "shape (1,) is 4 bytes, the file holds 8"),
    "below zero": (header((-2, -1)) + bytes(8), "shape (-2, -1)"),
    "long texts": (header((), "<U250000000"), "is 1000000000 bytes, the file holds 0"),
    "objects": (header((1,), "|O") + bytes(8), "an array of Python objects"),
    "no header": (b"text", "magic string"),
    "nothing": (b"", "EOF"),
    "a header that is deep": (header((1,)).replace(b"(1,)", b"(" * 3000), "EOF"),
    "a header that is long": (
        b"\x93NUMPY\x02\x00" + (10**6).to_bytes(4, "little") + b" " * 10**6,
        "Header info length (1000000) is large",
    ),
    "a bomb": (header((2**23,)) + bytes(2**25), "more than such a file can hold"),
}


@pytest.mark.parametrize(("content", "part"), NPZ.values(), ids=NPZ)
def test_npz_that_claims_what_it_does_not_hold(content, part, tmp_path):
    """At once, and without the memory."""
    path = tmp_path / "x.npz"
    pack(path, content)
    message = refused(path)
    assert f"{path} ({path.stat().st_size} bytes) cannot be read: truncated or damaged" in message
    assert part in message
    assert "\n" not in message


def test_npz_with_two_arrays_of_one_name(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for value in (b"\0" * 4, b"\1" * 4):
            archive.writestr("state/a.npy", header((1,)) + value)
    assert "two arrays have the same name" in refused(path)


def test_numbers_of_another_machine(tmp_path):
    np.savez(tmp_path / "x.npz", **{"state/a": np.arange(3, dtype=">f4")})
    assert read_released(tmp_path / "x.npz").state["a"].tolist() == [0, 1, 2]


def test_objects_in_an_npz_are_not_unpickled(tmp_path):
    path, target = tmp_path / "x.npz", tmp_path / "executed"
    np.savez(path, **{"state/a": np.array([Bomb(target)], dtype=object)})
    assert "cannot be read" in refused(path)
    assert not target.exists()
    with np.load(path, allow_pickle=True) as arrays:
        arrays["state/a"]
    assert target.exists(), "the bomb is real"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "found a list"),
        (torch.zeros(2), "found a Tensor"),
        ({}, "found nothing"),
        ({"state_dict": {}}, "found 'state_dict' of type dict"),
        ({"state_dict": 3, "epoch": 1}, "found 'state_dict' of type int, 'epoch' of type int"),
        ({"state_dict": {"a": 1}}, "found 'a' of type int"),
        ({"a": "text"}, "found 'a' of type str"),
    ],
)
def test_other_content(content, found, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(content, path)
    message = refused(path)
    assert "no weights in this file" in message
    assert found in message


def test_npz_of_another_kind(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, train_images=np.zeros(3), train_labels=np.zeros(3))
    assert "expected arrays state/<key>" in refused(path)
    assert "found train_images, train_labels" in refused(path)
    np.savez(path, **{"state/a": np.zeros(1), "state/b": np.array(["text"]), "x": np.zeros(1)})
    assert read_released(path).left == ("state/b", "x")
    np.savez(path, meta="{", **{"state/a": np.zeros(1)})
    assert "meta is no JSON" in refused(path)


def test_what_nobody_reads_is_named(written):
    """An average of the weights beside them is a choice, and the report says which was made."""
    path = written(epoch=3)
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, weights_only=True)
    content["state_dict_ema"] = {key: 2 * v for key, v in content["state_dict"].items()}
    torch.save({**content, "optimizer": {"state": {}}}, path)
    report = load_released(path).report
    assert report.left_over == ("state_dict_ema", "optimizer")
    assert report.taken == "state_dict"
    assert "constants checked, state_dict_ema, optimizer left over" in report.summary()
    assert report.as_dict()["left_over"] == ["state_dict_ema", "optimizer"]


def test_a_small_file_of_a_giant(written):
    """40 blocks of one tensor each, as wide as the first."""

    def change(state):
        state.clear()
        state |= {f"blocks.{n}.norm1.weight": torch.ones(1) for n in range(400)}
        state["pos_embed"] = torch.zeros(1, 2, 400)
        state["patch_embed.proj.weight"] = torch.zeros(400, 3, 1, 1)
        state["patch_embed.proj.move_b4.bias"] = torch.zeros(1)
        state["head.weight"] = torch.zeros(5, 400)
        state["blocks.0.attn.q.weight"] = torch.zeros(1)
        state["blocks.0.attn.move_qkx_b4.bias"] = torch.zeros(400)
        state["blocks.0.mlp.fc1.weight"] = torch.zeros(1600, 400)

    message = refused(written(change))
    assert "MiB, and the weights for it are 2.5 MiB: expected sizes that fit" in message


def test_prefix_before_some_keys_only(written):
    def change(state):
        state["module.pos_embed"] = state.pop("pos_embed")

    message = refused(written(change))
    assert "module.pos_embed has the prefix 'module.' and patch_embed.proj.weight has" in message


def test_only_plain_values_are_written(converted, tmp_path):
    """What is written can always be read again."""
    state, path = export_released(converted()), tmp_path / "x.pth"
    with pytest.raises(CheckpointError, match=r"meta\.output = .*expected a plain value"):
        save_released(path, state, {"output": pathlib.PurePosixPath("a")})
    assert not path.exists()
    meta = {"wq_bitw": 2, "aq_bitw": 2, "deep": {"list": [1, None, "x", (2.0, True)]}}
    save_released(path, state, meta)
    assert read_released(path).facts == meta


def test_meta_of_an_npz(converted, tmp_path):
    path = tmp_path / "x.npz"
    arrays = {f"state/{key}": v.numpy() for key, v in export_released(converted()).items()}
    np.savez(path, meta=json.dumps({"arch": "DeiT", "wbits": 2}), input=np.zeros(2), **arrays)
    file = read_released(path)
    assert file.arch == "DeiT"
    assert file.facts == {"arch": "DeiT", "wbits": 2}
    assert set(file.arrays) == {"input"}
