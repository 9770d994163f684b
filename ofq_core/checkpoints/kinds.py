"""What kind of file this is, by its content; the suffix decides nothing."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path
from typing import Literal

from ofq_core.errors import CheckpointError

Kind = Literal["zip", "pickle", "safetensors", "npz"]

_PACKED = "a packed archive: unpack it first"
# Where, which bytes, and what that is.
_STARTS = (
    (0, b"version https://git-lfs", "a pointer of git LFS: `git lfs pull` gets the file itself"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes it: expected PyTorch weights"),
    (0, b"GGUF", "a GGUF file: expected PyTorch weights"),
    (4, b"TFL3", "a TensorFlow Lite model: expected PyTorch weights"),
    (0, b"\x93NUMPY", "a single NumPy array: expected a dict of tensors"),
    (0, b"\x1f\x8b", _PACKED),
    (0, b"BZh", _PACKED),
    (0, b"\xfd7zXZ", _PACKED),
    (0, b"7z\xbc\xaf", _PACKED),
    (0, b"\x28\xb5\x2f\xfd", _PACKED),
    (257, b"ustar", _PACKED),
)
_LONGEST = 100
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<error", b"<!--")
_SUFFIXES = {
    ".onnx": "an ONNX model: expected PyTorch weights",
    ".pb": "a TensorFlow graph: expected PyTorch weights",
    ".index": "the index of a TensorFlow checkpoint: expected PyTorch weights",
}


def kind_of(path: Path) -> Kind:
    """What a file of weights is written in.

    Returns:
        zip: torch's format. pickle: torch's format before 1.6, or another pickle. safetensors. npz.

    Raises:
        CheckpointError: there is no file, or it is none of these; the message says what it is.
    """
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder{_folder(path)}: expected a file of weights")
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} (0 bytes) cannot be read: it is empty")
    if head.startswith(b"PK"):
        return _archive(path)
    if head.startswith(b"\x80"):
        return "pickle"
    # The length of the header, then a JSON object.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "safetensors"
    other = _other(path, head)
    if other is not None:
        raise CheckpointError(f"{path} is {other}")
    raise unreadable(path, "no known beginning")


def unreadable(path: Path, why: object) -> CheckpointError:
    """What to raise for a file that is cut off, damaged, or of no known kind."""
    reason = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else str(why)
    return CheckpointError(
        f"{path} ({path.stat().st_size} bytes) cannot be read: truncated, damaged, or no file of "
        f"weights ({reason.splitlines()[0][:_LONGEST]})"
    )


def cause(error: Exception) -> Exception | None:
    """What to raise `unreadable` from; a place that only a damaged directory names is no cause."""
    return None if isinstance(error, OSError) and error.errno == errno.EINVAL else error


def _folder(path: Path) -> str:
    if (path / "saved_model.pb").is_file():
        return " (a TensorFlow SavedModel)"
    return ""


def _archive(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:
        raise unreadable(path, error) from cause(error)
    ends = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in ends:
        raise CheckpointError(
            f"{path} is a TorchScript archive, a program with weights, and programs are not run: "
            "save the weights alone where it is trusted, "
            "torch.save(torch.jit.load(PATH).state_dict(), NEW)"
        )
    if "data.pkl" in ends:
        return "zip"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    found = ", ".join(names[:3]) or "nothing"
    raise CheckpointError(f"{path} is a zip archive of other files ({found}): unpack it first")


def _other(path: Path, head: bytes) -> str | None:
    for place, mark, what in _STARTS:
        if head[place : place + len(mark)] == mark:
            return what
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_PAGES):
        return "a web page, such as an error or a login: load the file itself once more"
    if text.startswith((b"{", b"[")):
        return "a JSON text, such as an index of weights or an error: expected the weights"
    # Protocol buffers: the version of the format, then the name of the program that wrote it.
    if head[0] == 8 and head[2:3] == b"\x12":
        return _SUFFIXES[".onnx"]
    return _SUFFIXES.get(path.suffix.lower())
