"""Weights in files of every usual shape: what is taken is said, what is not weights is named."""

import argparse
import decimal
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ofq_core import checkpoints
from ofq_core.errors import CheckpointError

torch.manual_seed(0)
STATE = nn.Linear(3, 2).state_dict()
OTHER = {key: value + 1 for key, value in STATE.items()}
SGD = {"state": {}, "param_groups": []}


def before(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


def averaged():
    model = nn.Linear(3, 2)
    model.load_state_dict(STATE)
    return AveragedModel(model).state_dict()


def read(path):
    """Fill a model; what was said."""
    model = nn.Linear(3, 2)
    says = checkpoints.load_weights(model, path, "teacher").says()
    for key, value in model.state_dict().items():
        assert torch.equal(value, STATE[key]), key
    return says


def refused(path):
    with pytest.raises(CheckpointError) as error:
        checkpoints.load_weights(nn.Linear(3, 2), path, "teacher")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


SHAPES = [
    (STATE, ""),
    (dict(nn.Linear(3, 2).named_parameters()) | STATE, ""),
    ({"model": STATE}, "weights of its key 'model'"),
    ({"model_state_dict": STATE}, "weights of its key 'model_state_dict'"),
    ({"net": STATE}, "weights of its key 'net'"),
    (
        {"state_dict": STATE, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        "weights of its key 'state_dict', left out: epoch, args",
    ),
    (
        {"state_dict": STATE, "state_dict_ema": OTHER, "optimizer": SGD},
        "weights of its key 'state_dict', left out: state_dict_ema, optimizer",
    ),
    ({"model_ema": OTHER, "model": STATE}, "weights of its key 'model', left out: model_ema"),
    ({"model_ema": STATE, "epoch": 1}, "weights of its key 'model_ema', left out: epoch"),
    ({"ema": before("module.")}, "weights of its key 'ema'"),
    (
        {"model": {"state_dict": STATE, "x": 1}, "y": 2},
        "weights of its key 'model.state_dict', left out: y, model.x",
    ),
    (before("module."), ""),
    (before("_orig_mod."), ""),
    (before("module._orig_mod.module."), ""),
    (before("model."), ""),
    ({"state_dict": before("_orig_mod.module.")}, "weights of its key 'state_dict'"),
    (averaged(), "left out: n_averaged"),
    (
        {"net": STATE, "set": {1}, "bytes": b"1", "type": torch.half, "size": torch.Size([1])},
        "weights of its key 'net', left out: set, bytes, type, size",
    ),
]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(("value", "says"), SHAPES)
def test_usual_shapes(value, says, zipped, tmp_path):
    """The suffix is nobody's business."""
    for name in ("x.pth.tar", "x.safetensors"):
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert read(tmp_path / name) == says


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors(prefix, name, tmp_path):
    save_file(before(prefix), tmp_path / name, {"format": "pt"})
    assert read(tmp_path / name) == ""


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def zipped(files, **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def repacked(change, value=STATE, **options):
    """What torch wrote, with another pickle."""
    with zipfile.ZipFile(io.BytesIO(saved(value))) as archive:
        files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    return zipped({k: change(v) if k.endswith("data.pkl") else v for k, v in files.items()})


def safetensors(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def numpy_array():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


BODY = b"\0" * 600


def within_itself():
    value = {}
    value["model"] = value
    return value


FOREIGN = [
    (b"", "(0 bytes) cannot be read: it is empty"),
    (b"<!DOCTYPE html><html>Sign in", "is a web page"),
    (b"\n  <html>404", "is a web page"),
    (b'<?xml version="1.0"?><Error>AccessDenied', "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a pointer of git LFS"),
    (b'{"metadata": {}, "weight_map": {}}', "is a JSON text"),
    (b"\x89HDF\r\n\x1a\n" + BODY, "is an HDF5 file, as Keras writes it"),
    (b"GGUF" + BODY, "is a GGUF file"),
    (b"\x1c\0\0\0TFL3" + BODY, "is a TensorFlow Lite model"),
    (b"\x08\x07\x12\x07pytorch" + BODY, "is an ONNX model"),
    (b"\x1f\x8b\x08" + BODY, "is a packed archive: unpack it first"),
    (b"x" * 257 + b"ustar" + BODY, "is a packed archive"),
    (numpy_array(), "is a single NumPy array"),
    (zipped({"a/constants.pkl": b"", "a/data.pkl": b""}), "is a TorchScript archive"),
    (zipped({"config.json": b"", "model.weights.h5": b""}), "zip archive of other files (config"),
    (zipped({"state/a.npy": b""}), "is a NumPy archive"),
    (pickle.dumps({"a": 1}), "is a plain pickle, and nothing of it was executed"),
    (pickle.dumps(STATE, protocol=2), "is a plain pickle, and nothing"),
    (pickle.dumps({"a": decimal.Decimal(1)}, protocol=2), "wants to load decimal.Decimal"),
    (saved(STATE, pickle_protocol=4), "cannot be read"),
    (saved({"model": STATE, "net": STATE}), "weights under 'model' and 'net'"),
    (saved({"student": OTHER, "teacher": OTHER}), "found 'student' of type dict, 'teacher'"),
    (saved({**STATE, "epoch": 3}), "found 'epoch' of type int"),
    (saved(within_itself()), "no weights in this file within 4 dicts (model.model.model.model)"),
    (saved({**STATE, "bias": torch.zeros(2).to(torch.float8_e4m3fn)}), "wants to load torch._ut"),
    (saved({"model": STATE, "x": torch.zeros(2).untyped_storage()}), "load torch.storage.Unty"),
    (saved({**before("module."), **STATE}), "has the prefix 'module.' and weight has not"),
    (saved({**STATE, "_orig_mod.bias": STATE["bias"]}), "names that differ in '_orig_mod.' alone"),
    (saved(nn.Linear(3, 2)), "It is a pickled model: where its code is, save torch.save(model."),
    (saved({"model": nn.Linear(3, 2)}), "It is a pickled model"),
    (
        saved({"state_dict": STATE, "best": decimal.Decimal(1), "out": PurePosixPath("a")}),
        "wants to load decimal.Decimal, pathlib.PurePosixPath, which is not plain data: refused, "
        "and nothing of it was executed. It is more than weights",
    ),
    (saved({"best": np.float64(1)}), "scalar"),
    (
        saved({"vit.embeddings.patch_embeddings.projection.weight": torch.zeros(1)}),
        "(these are the names of Hugging Face transformers: take timm's file",
    ),
    (
        saved({"deit.encoder.layer.0.attention.attention.query.weight": torch.zeros(1)}),
        "Hugging Face transformers",
    ),
    (
        saved({"features.1.0.attn.qkv.weight": torch.zeros(1)}),
        "(these are the names of torchvision: set teacher.pretrained = 'torchvision')",
    ),
    (safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}), "cannot be read"),
]


@pytest.mark.parametrize(("content", "said"), FOREIGN, ids=[said[:30] for _, said in FOREIGN])
def test_other_files(content, said, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    assert said in refused(path)


def test_other_places(tmp_path):
    assert refused(tmp_path / "none") == f"{tmp_path / 'none'}: no such file"
    (tmp_path / "saved_model.pb").write_bytes(b"\x0a")
    assert "is a folder (a TensorFlow SavedModel)" in refused(tmp_path)
    assert "a TensorFlow graph" in refused(tmp_path / "saved_model.pb")
    assert refused(tmp_path / ("x" * 300)).endswith("x: File name too long")
    os.mkfifo(tmp_path / "pipe")
    assert "no such file" in refused(tmp_path / "pipe")


class Huge:
    """A pickle that makes room for 100 GB and more, with classes that torch lets it use."""

    def __init__(self, build, size):
        self.build, self.size = build, size

    def __reduce__(self):
        return (self.build, (self.size,))


def larger(content):
    """A storage of 2^30 entries for the 6 of `weight`."""
    assert b"cpuq\x07K\x06" in content
    return content.replace(b"cpuq\x07K\x06", b"cpuq\x07J\x00\x00\x00\x40", 1)


def wider(content):
    """2^30 rows instead of 2."""
    assert b"K\x02K\x03\x86" in content
    return content.replace(b"K\x02K\x03\x86", b"J\x00\x00\x00\x40K\x03\x86", 1)


TERABYTES = {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
BOMBS = [
    (saved({"w": Huge(bytearray, 2**37)}), "wants to load builtins.bytearray"),
    (saved({"w": Huge(torch.FloatTensor, 2**35)}), "wants to load torch.FloatTensor"),
    (saved({"w": torch.zeros(1).expand(2**15, 2**20)}), "tensor of 34359738368 entries in a"),
    (saved({"w": torch.zeros(2**20).to_sparse()}), "wants to load torch._utils._rebuild_sparse"),
    (saved({"w": torch.zeros(2**30, device="meta")}), "_rebuild_meta_tensor_no_storage"),
    (repacked(larger), "claims 4294967296 bytes and holds 24"),
    (repacked(wider), "a tensor of 3221225472 entries in a storage of 6"),
    (larger(saved(STATE, _use_new_zipfile_serialization=False)), "tensors claim 4294967304 bytes"),
    (repacked(lambda pickled: pickled.replace(b"q\x00", b"r\xff\xff\xff\x7f", 1)), "mark 214748"),
    (zipped({"a/data.pkl": bytes(2**24)}, compression=zipfile.ZIP_DEFLATED), "its entries are not"),
    (safetensors(TERABYTES, b"1234"), "cannot be read: truncated, damaged"),
]


@pytest.mark.parametrize(("content", "said"), BOMBS, ids=[said[:40] for _, said in BOMBS])
def test_small_files_that_claim_much(content, said, tmp_path):
    """Refused before room is made for it, which no test machine has."""
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    assert len(content) < 2**16
    assert said in refused(path)
