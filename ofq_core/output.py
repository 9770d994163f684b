"""Print to any terminal, and to a reader that goes away."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

BROKEN_PIPE = 141  # as shells report a command whose reader went away


@contextmanager
def any_output() -> Iterator[None]:
    """Round a whole command: what it prints neither fails nor ends in a stack trace.

    Characters that the terminal's encoding lacks are printed as '?'. Where nobody reads the output
    any more, as in `... | head`, the command ends with the status 141 and without a word; where the
    system refuses to write it, or a file, with the status 1 and one line.
    """
    # Python has none for a stream that is closed, as by `>&-`.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - to the end of the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            yield
        except SystemExit:
            # Here rather than at exit, where a broken pipe can no longer be caught.
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError as error:
        _end(error)
    except OSError as error:  # a file, or the output itself, as on a full disk
        where = f"{error.filename}: " if error.filename else ""
        try:
            sys.stdout.flush()
        except OSError:
            _drop(sys.stdout)
        sys.exit(f"error: {where}{error.strerror or error}")


def _end(error: BrokenPipeError) -> NoReturn:
    unread = [stream for stream in (sys.stdout, sys.stderr) if _unread(stream)]
    if not unread:
        # Another pipe, such as one to a process that reads images.
        sys.exit(f"error: {error.strerror}")
    for stream in unread:
        _drop(stream)
    sys.exit(BROKEN_PIPE)


def _drop(stream: TextIO) -> None:
    """Let go of what cannot be written: Python flushes once more at exit, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _unread(stream: TextIO) -> bool:
    """Whether the stream is a pipe whose reader has gone."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):
        return False
    return bool(poll.poll(0))
