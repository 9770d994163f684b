"""The one error of this room, and how its commands end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from ofq_core.output import any_output

INTERRUPTED = 130  # as shells report a command that Ctrl-C ended


class TableError(Exception):
    """A table that cannot be rendered honestly; the message is one line, shown as it is."""


def command_main(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its status: 130 after Ctrl-C; see also `any_output`."""
    with any_output():
        try:
            status = main()
        except KeyboardInterrupt:
            status = INTERRUPTED
    sys.exit(status)
