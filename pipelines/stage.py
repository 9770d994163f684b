"""What every command of the suite has in common: clear errors and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from ofq_core.errors import OFQError


def stage_main(run: Callable[[list[str]], None], argv: list[str]) -> NoReturn:
    """Run a command and exit: 0, 1 with one message on stderr, or 130 when interrupted."""
    try:
        run(argv)
    except OFQError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    # Taking torch apart costs a second per stage; everything is written and flushed by now.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
