"""The helper process: import mlflow early, then log the folders that arrive on a pipe."""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

from .background import TOLD
from .errors import TrackingError
from .messages import Handed, not_logged
from .record import read_folder
from .rows import attach_rows
from .store import Store
from .where import check_reachable, tracking_uri

_POLL_SECONDS = 2.0
_IMPORT_AFTER_SECONDS = 5.0


def serve(root: Path, parent: int) -> int:
    """Log what the parent process with this id sends until it says `end` or dies.

    Returns:
        0, or `TOLD` when something was not logged (said on standard error).
    """
    os.nice(10)
    uri = tracking_uri(root)
    store: Store | None = None
    status = 0
    try:
        check_reachable(uri)
        # The stage is importing torch now; mlflow at the same time would slow both. A message, or
        # the end of the pipe, ends the wait.
        select.select([sys.stdin.fileno()], [], [], _IMPORT_AFTER_SECONDS)
        store = Store(uri)
    except TrackingError as error:
        _say(f"tracking: {error}. The run goes on; its result files do not need MLflow.")
    for line in _lines(sys.stdin.fileno(), parent):
        message = json.loads(line)
        if "end" in message:
            break
        handed = Handed(Path(message.get("log") or message["rows"]), message.get("study"))
        try:
            store = store or Store(uri)
            if handed.study is None:
                store.log(read_folder(handed.folder))
            else:
                attach_rows(store, handed.folder, handed.study)
        except TrackingError as error:
            status = TOLD
            _say(not_logged(str(error), [handed], root))
    return status


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _lines(descriptor: int, parent: int) -> Iterator[str]:
    """Lines from the pipe until its end, or until the parent process is gone.

    The end of the pipe is not enough: a process forked by a killed stage keeps it open.
    """
    rest = b""
    while os.getppid() == parent or select.select([descriptor], [], [], 0)[0]:
        if not select.select([descriptor], [], [], _POLL_SECONDS)[0]:
            continue
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode()
