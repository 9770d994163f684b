"""One process at a time for each result: an orphan and its successor would mix their files."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ofq_core.errors import OFQError
from pipelines.stage import is_main

FOLDER = Path(".partial")
# A process that was told to end a moment ago may still be about it.
PATIENCE_SECONDS = 5.0
TICK_SECONDS = 0.1


class BusyError(OFQError):
    """Another process works on the same result."""


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Keep other processes from working on `target`, a result or its folder, meanwhile.

    The lock is the kernel's, which lets go of it when this process ends, however it ends. It is
    POSIX's, which the processes that read images do not inherit, as they would filelock's, and
    which holds among the machines of a network file system. Jobs on a cluster have folders of
    their own, and slurm.job ends an earlier attempt. Of several processes the main one locks.

    Raises:
        BusyError: another process holds it.
    """
    if not is_main() or "OFQ_ATTEMPTS" in os.environ:
        yield
        return
    path = FOLDER / f"{target.as_posix().replace('/', '-')}.lock"
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+", errors="replace") as file:
            if not _lock(file):
                file.seek(0)
                holder = file.read() or path
            # Whoever held it may have removed it since it was opened here.
            elif _is_at(file, path):
                file.truncate(0)
                since = time.strftime("%Y-%m-%d %H:%M:%S")
                file.write(f"process {os.getpid()} on {platform.node()} since {since}")
                file.flush()
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
            else:
                continue
        if time.monotonic() > end:
            raise BusyError(
                f"another process works on {target} ({holder}): end it, and the same command goes "
                "on from its last checkpoint, or wait until it has ended"
            )
        time.sleep(TICK_SECONDS)


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        # A file system without locks, as some clusters have: as safe as it can be there.
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
