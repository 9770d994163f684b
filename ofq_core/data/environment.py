"""What the machine decides about data: where images lie, where caches go, how many workers read."""

from __future__ import annotations

import os
from pathlib import Path

from ofq_core.errors import DataError

DATA_DIR, WORKERS, WORKSPACE = "OFQ_DATA_DIR", "OFQ_WORKERS", "OFQ_WORKSPACE"
# DVC's own: the workspace, also in a copy.
DVC_ROOT = "DVC_ROOT"
MOST_WORKERS = 8


def workspace() -> Path:
    """What a user's relative paths are relative to: $OFQ_WORKSPACE, by default the current folder.

    A job on a cluster runs in a folder of its own and is told where it was started. So does what
    `dvc exp run` runs with --temp or --queue: in a copy of the tracked files below .dvc/tmp.
    """
    told = os.environ.get(WORKSPACE)
    root = Path(os.environ.get(DVC_ROOT) or ".").resolve()
    if not told and Path.cwd().resolve().is_relative_to(root / ".dvc" / "tmp"):
        return root
    return Path(told or ".")


def user_file(path: Path) -> Path:
    """A file that a user names: as it stands, or else below the workspace."""
    return path if path.exists() else workspace() / path


def data_root(name: str) -> Path:
    """Folder of a data set's images: $OFQ_DATA_DIR/<name>, by default datasets/<name>.

    A relative one is below the workspace.
    """
    return workspace() / (os.environ.get(DATA_DIR) or "datasets") / name


def cache_root() -> Path:
    """Folder for what can be found out again: $XDG_CACHE_HOME/ofq, by default ~/.cache/ofq.

    Not under data/, which DVC empties before `prepare` runs.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ofq"


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def worker_count() -> int:
    """Processes that read images: $OFQ_WORKERS, by default one a core and at most 8.

    Raises:
        DataError: $OFQ_WORKERS is not a whole number from 0 on.
    """
    text = os.environ.get(WORKERS)
    if not text:
        return min(MOST_WORKERS, available_cores())
    if not text.isdecimal():
        raise DataError(
            f"environment variable {WORKERS} = {text!r}: expected a whole number of processes that "
            "read images, 0 or more (0: the training process reads them itself)"
        )
    return int(text)
