"""What every command of the suite has in common: clear errors and exit codes."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from ofq_core.errors import LeftAloneError, OFQError, TrainingStopped
from ofq_core.output import any_output
from pipelines.unchanged import begin, check_unchanged

# So long another process waits for the main one to report the same error.
PATIENCE_SECONDS = 5.0
# And so long to say that training has stopped: all leave at once, and whoever asked is waiting.
STOP_PATIENCE_SECONDS = 1.0
STOPPED = 128 + signal.SIGTERM


def is_main() -> bool:
    """Whether this process writes, logs and tracks; the others of a launcher only compute.

    A RANK that was left over in the environment, without other processes, says nothing.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return alone or (os.environ.get("RANK") or "0") == "0"


@contextmanager
def large_imports() -> Iterator[None]:
    """For imports of torch and timm: no search for garbage in the block, nor later in what it left.

    They make half a million objects that stay, and Python would go through them again and again.
    """
    looking = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if looking:
            gc.enable()


@any_output()
def stage_main(
    run: Callable[[list[str]], None], argv: list[str], about: str | None = None
) -> NoReturn:
    """Run a command and exit.

    The status is 0, or 1 with one message on stderr, 130 when interrupted, 143 when training was
    asked to stop and has left a checkpoint, 141 when nobody reads the output any more.

    Args:
        about: what the command does, of one that takes no arguments: here they are refused, and
            --help is answered.
    """
    module = getattr(sys.modules["__main__"].__spec__, "name", "")
    status = 0
    try:
        if about is not None:
            argparse.ArgumentParser(prog=f"python -m {module}", description=about).parse_args(argv)
        if is_main():
            begin(module.rpartition(".")[2], argv)
        run(argv)
        if is_main():
            check_unchanged()
    except TrainingStopped as stopped:
        if is_main():
            print(stopped, file=sys.stderr)
        else:
            time.sleep(STOP_PATIENCE_SECONDS)
        status = STOPPED
    except OFQError as error:
        _report(str(error), late=isinstance(error, LeftAloneError))
        sys.exit(1)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _report(f"{where}{error.strerror or error}")
        sys.exit(1)
    except KeyboardInterrupt:
        if is_main():
            print("interrupted: run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    # Taking torch apart costs a second per stage, and 5 s for each process that still reads images;
    # everything is written and flushed by now.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _report(message: str, late: bool = False) -> None:
    """Say an error once: most happen in every process, and the first to end ends the others.

    late: of what another process or the launcher has more to say about.
    """
    if late or not is_main():
        time.sleep(PATIENCE_SECONDS)
    if not is_main():
        message = f"process {os.environ['RANK']}: {message}"
    print(f"error: {message}", file=sys.stderr, flush=True)
