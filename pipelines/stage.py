"""What every command of the suite has in common: clear errors and exit codes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from ofq_core.errors import OFQError

# So long another process waits for the main one to report the same error.
PATIENCE_SECONDS = 5.0


def is_main() -> bool:
    """Whether this process writes, logs and tracks; the others of a launcher only compute."""
    return os.environ.get("RANK", "0") == "0"


def stage_main(run: Callable[[list[str]], None], argv: list[str]) -> NoReturn:
    """Run a command and exit: 0, 1 with one message on stderr, or 130 when interrupted."""
    try:
        run(argv)
    except OFQError as error:
        _report(str(error))
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _report(f"{where}{error.strerror or error}")
        sys.exit(1)
    except KeyboardInterrupt:
        if is_main():
            print("interrupted: run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    # Taking torch apart costs a second per stage; everything is written and flushed by now.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _report(message: str) -> None:
    """Say an error once: most happen in every process, and the first to end ends the others."""
    if not is_main():
        time.sleep(PATIENCE_SECONDS)
        message = f"process {os.environ['RANK']}: {message}"
    print(f"error: {message}", file=sys.stderr, flush=True)
