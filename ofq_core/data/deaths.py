"""Explain the death of a process that reads images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ofq_core.data.environment import WORKERS
from ofq_core.errors import DataError

# How PyTorch 2.13 reports a worker that died.
_DEATH = re.compile(r"DataLoader worker \(pid.*?\) (is killed by signal|exited unexpectedly)")


@contextmanager
def worker_deaths() -> Iterator[None]:
    """Report a worker process that died inside the block as a DataError.

    PyTorch notices a death while it waits for a batch, or by a signal whose handler raises wherever
    the main thread happens to be: so the training loop stands in such a block as well.
    """
    try:
        yield
    except RuntimeError as error:
        if not _DEATH.search(str(error)):
            raise
        reason = str(error).splitlines()[0]
        raise DataError(
            f"a process that reads images died ({reason}). Most often memory ran out: set the "
            f"environment variable {WORKERS} to fewer processes. Then run the same command again; "
            "it goes on from the last checkpoint"
        ) from error
