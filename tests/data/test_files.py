"""Files appear complete or not at all."""

import errno
import json
import os
import stat

import pytest

from ofq_core.errors import DataError
from ofq_core.files import sha256_file, write_atomic, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_written_and_replaced(tmp_path):
    path = tmp_path / "a/b/file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["file"]


def test_mode_is_that_of_an_ordinary_file(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError()])
def test_failure_leaves_the_old_file_and_nothing_else(step, error, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*arguments):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)) as raised:
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]
    if isinstance(error, OSError):
        assert raised.value.filename == str(path), "not the temporary name"


def test_what_was_there_is_kept_on_request(tmp_path):
    path, previous = tmp_path / "file", tmp_path / "previous"
    for content in (b"one", b"two", b"three"):
        write_atomic(path, content, previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"three", b"two")
    assert names(tmp_path) == ["file", "previous"]


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": float("nan")}, "a = nan"),
        ({"a": {"b.c": [0.0, {"d": -float("inf")}]}}, "a.b.c.1.d = -inf"),
        ([[1.0], (2.0, float("inf"))], "1.1 = inf"),
    ],
)
def test_json_names_a_number_that_is_not_finite(value, where, tmp_path):
    path = tmp_path / "file"
    with pytest.raises(DataError) as error:
        write_json(path, value)
    assert str(error.value) == f"{path} is not written: {where}, expected a finite number"
    assert not path.exists()


def test_json_is_sorted(tmp_path):
    write_json(tmp_path / "file", {"b": 1, "a": [1.5, None]})
    text = (tmp_path / "file").read_text()
    assert text.index('"a"') < text.index('"b"')
    assert json.loads(text) == {"a": [1.5, None], "b": 1}


def test_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "file") == expected
