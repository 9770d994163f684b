"""The one error of this room, and how its commands end."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

INTERRUPTED = 130  # as shells report a command that Ctrl-C ended
BROKEN_PIPE = 141  # and one whose reader went away


class TableError(Exception):
    """A table that cannot be rendered honestly; the message is one line, shown as it is."""


def command_main(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its status: 130 after Ctrl-C, 141 where nobody reads the output,
    as in `... | head`, 1 after one line where the system refuses a file.

    Characters that the terminal's encoding lacks are printed as '?'.
    """
    # Python has none for a stream that is closed, as by `>&-`.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - to the end of the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    status: int | str | None
    try:
        try:
            status = main()
        except KeyboardInterrupt:
            status = INTERRUPTED
        except SystemExit as end:
            status = end.code
        # Here rather than at exit, where a broken pipe can no longer be caught.
        sys.stdout.flush()
    except BrokenPipeError:
        status = BROKEN_PIPE
        _drop_output()
    except OSError as error:  # a file, or the output itself, as on a full disk
        status = 1
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
    sys.exit(status)


def _drop_output() -> None:
    """Let go of what cannot be written: Python flushes once more at exit, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
