"""The stage's side of the helper process that imports mlflow while the stage trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from .messages import Handed, not_logged
from .where import enabled, repo_root, tracking_uri

WAIT_SECONDS = 60.0
TOLD = 3  # the helper's exit status when it has itself said what was not logged
_CODE_ROOT = Path(__file__).resolve().parents[2]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Background:
    """Context manager round a stage; see `background`."""

    def __init__(self, root: Path, wait_seconds: float, active: bool) -> None:
        self._root = root
        self._wait_seconds = wait_seconds
        self._active = active
        self._handed: list[Handed] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Background:
        if not self._active:
            return self
        environment = dict.fromkeys(_THREADS, "1") | {
            # A helper that stumbles over a third party's deprecation would log nothing.
            "PYTHONWARNINGS": "ignore",
        }
        try:
            # The helper is told who its parent is: asked later, the answer may be init.
            words = ["serve", "--root", str(self._root), "--parent", str(os.getpid())]
            self._process = subprocess.Popen(
                [sys.executable, "-m", __package__, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
                cwd=_CODE_ROOT,
                env=os.environ | environment,
                # Ctrl-C is for the stage; the helper ends when the pipe does.
                start_new_session=True,
            )
        except OSError:
            self._process = None  # said with the folder's name once there is a folder
        return self

    def log(self, folder: Path | str) -> None:
        """Hand over a finished result folder; returns at once and never raises."""
        path = Path(folder).resolve()
        self._handed.append(Handed(path))
        self._send({"log": str(path)})

    def rows(self, rendered: Path | str, study: str) -> None:
        """Hand over the rendered tables of a study; returns at once and never raises."""
        path = Path(rendered).resolve()
        self._handed.append(Handed(path, study))
        self._send({"rows": str(path), "study": study})

    def _send(self, message: dict[str, str]) -> None:
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            pass  # the helper is gone; its exit status tells __exit__

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._active:
            return
        if self._process is None:
            self._say("the logging process could not be started")
            return
        process = self._process
        # Said, not only closed: a forked data loader may still hold the pipe's other end.
        self._send({"end": ""})
        try:
            if process.stdin is not None:
                process.stdin.close()
        except OSError:
            pass
        if not self._handed:
            _stop(process)
            return
        try:
            status = process.wait(self._wait_seconds)
        except subprocess.TimeoutExpired:
            _stop(process)
            self._say(f"{tracking_uri(self._root)} took longer than {self._wait_seconds:g} s")
        except BaseException:
            _stop(process)
            raise
        else:
            if status not in (0, TOLD):
                self._say(f"the logging process ended with status {status}")

    def _say(self, reason: str) -> None:
        if self._handed:
            print(not_logged(reason, self._handed, self._root), file=sys.stderr, flush=True)


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def background(
    *, root: Path | None = None, wait_seconds: float = WAIT_SECONDS, active: bool | None = None
) -> Background:
    """Import mlflow on an idle core while the stage works, then log what it hands over.

        with tracking.background() as tracker:
            ...                     # train, write the result folder
            tracker.log(folder)

    The tracking store can be down, slow or broken without any effect on the stage except one
    line on standard error. If the stage dies, nothing is logged that was not handed over.

    Args:
        root: main repository; default: found from the working directory.
        wait_seconds: how long the end of the block waits for the logging.
        active: default: whatever `OFQ_TRACKING` says (`off` makes everything a no-op).
    """
    return Background(root or repo_root(), wait_seconds, enabled() if active is None else active)
