"""Explain the death or the silence of a process that reads images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ofq_core.data.environment import WORKERS
from ofq_core.errors import DataError

_ADVICE = (
    f"Most often memory ran out: set the environment variable {WORKERS} to fewer processes. Then "
    "run the same command again; it goes on from the last checkpoint"
)
# How PyTorch 2.13 reports a worker that died.
_DEATH = re.compile(r"DataLoader worker \(pid.*?\) (is killed by signal|exited unexpectedly)")
# And one that gives nothing within the loader's time.
_SILENCE = re.compile(r"DataLoader timed out after")


def is_silence(error: RuntimeError) -> bool:
    """Whether PyTorch says so of a worker that is alive."""
    return _SILENCE.match(str(error)) is not None


@contextmanager
def worker_deaths() -> Iterator[None]:
    """Report a worker process that died, or that was given up, in the block as a DataError.

    PyTorch notices a death while it waits for a batch, or by a signal whose handler raises wherever
    the main thread happens to be: so the training loop stands in such a block as well.
    """
    try:
        yield
    except RuntimeError as error:
        if is_silence(error):
            raise DataError(
                "the processes that read images are alive and gave no batch for a long time. "
                "Perhaps the disk or file server of the images does not answer, or a process "
                "hangs: run the same command again, it goes on from the last checkpoint; with the "
                f"environment variable {WORKERS}=0 the training process reads the images itself"
            ) from error
        if not _DEATH.search(str(error)):
            raise
        reason = str(error).splitlines()[0]
        raise DataError(f"a process that reads images died ({reason}). {_ADVICE}") from error


def not_started(error: Exception) -> str:
    """The message for readers that the system did not start."""
    reason = f"{type(error).__name__}: {error}"
    return f"a process that reads images could not be started ({reason}). {_ADVICE}"
