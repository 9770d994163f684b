"""Files that appear complete or not at all: write under a temporary name, then rename."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from ofq_core.errors import DataError, shortened

# Far above any result file, far below what Python's own stack holds.
MAX_DEPTH = 50
# And so of a whole number; one that no float holds stops whoever calculates with it.
LARGEST = 10**300


def write_atomic(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write `content` to `path` through a temporary file beside it.

    Args:
        previous: where the file that is at `path` goes once the new one is whole.

    Raises:
        OSError: the folder cannot be written or the disk is full. What was at `path` before is
            untouched, and the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; give it the mode a plain open would.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        if previous is not None and path.exists():
            os.rename(path, previous)
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            # A failed write does not know its file; the message should name the one meant.
            error.filename, error.filename2 = str(path), None
        raise


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write JSON with sorted keys, atomically; see `write_atomic`. indent None: on one line.

    Raises:
        DataError: a number is NaN or infinite, which JSON cannot hold and no result may be.
    """
    try:
        text = json.dumps(value, indent=indent, sort_keys=True, allow_nan=False) + "\n"
    except ValueError as error:
        raise DataError(f"{path} is not written: {_not_finite(value) or error}") from error
    write_atomic(path, text.encode())


def parse_json(text: str | bytes) -> Any:
    """The value in a JSON text that may be damaged.

    Raises:
        ValueError: it is none, it is nested too deeply, or a number in it is NaN, infinite, or more
            than a float can hold.
    """
    too_deep = ValueError("nested too deeply")
    try:
        value = json.loads(text)
    except RecursionError:
        raise too_deep from None
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = [item.values() if isinstance(item, dict) else item for item in level]
        level = [part for items in inside if not _plain(items) for part in items]
        if not level:
            break
    else:
        raise too_deep
    wrong = _not_finite(value)
    if wrong is not None:
        raise ValueError(wrong)
    return value


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _not_finite(value: Any, where: str = "") -> str | None:
    """The first number in plain data that is NaN or infinite, as `key.key = value`; None: none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{where} = {value}, expected a finite number"
    if isinstance(value, int):
        return None if abs(value) < LARGEST else f"{where} = {shortened(value)}, expected a number"
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    found = (_not_finite(each, f"{where}.{key}" if where else str(key)) for key, each in items)
    return next((text for text in found if text is not None), None)


def private_folder(path: Path) -> None:
    """Make a folder for code that will be executed, or check the one that is there.

    Raises:
        OSError: it cannot be made, or somebody else owns it or may write into it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _only_mine(path.stat()):
        raise PermissionError(f"{path} is another user's, or others may write into it (chmod go-w)")


def is_private_file(path: Path) -> bool:
    """Whether this is a regular file of this user that nobody else may write."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and _only_mine(status)


def _only_mine(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
