"""SIGTERM while a run trains: save and stop after the step, as a cluster asks before it kills."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ofq_core.data import worker_deaths
from ofq_core.errors import DataError, OFQError, TrainingStopped

# A signal to all processes of a job may reach those that read images before it reaches this one.
SPREAD_SECONDS = 0.5


@contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Inside the block SIGTERM does not end this process; the value tells whether it came.

    Only the main thread may decide about signals: elsewhere nothing changes.

    Raises:
        TrainingStopped: the block failed after SIGTERM had come. Mostly the processes that read
            images died of the same signal; then the checkpoint before is still good.
    """
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True

    able = threading.current_thread() is threading.main_thread()
    earlier = signal.signal(signal.SIGTERM, ask) if able else None
    try:
        with worker_deaths():
            yield lambda: asked
    except TrainingStopped:
        raise
    except OFQError as error:
        if isinstance(error, DataError) and not asked:
            time.sleep(SPREAD_SECONDS)
        if not asked:
            raise
        reason = "" if isinstance(error, DataError) else f" ({error})"
        raise TrainingStopped(
            f"stopped on request{reason}; run the same command again to go on from the last "
            "checkpoint"
        ) from error
    finally:
        if able:
            # None: a handler that Python does not know and cannot put back.
            signal.signal(signal.SIGTERM, earlier or signal.SIG_DFL)
