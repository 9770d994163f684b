"""Progress of a training stage: a bar on a terminal, plain lines elsewhere, and a file for others.

The file is written where the environment variable OFQ_PROGRESS names one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from ofq_core.training import StepEvent

PATH = "OFQ_PROGRESS"
LINE_SECONDS = 10.0
FILE_SECONDS = 1.0


class ProgressFile:
    """Where training stands, as a JSON object: at most once a second, at the first and last step.

    It only informs: what cannot be written is left out, without a word.

    Args:
        path: None writes nothing.
    """

    def __init__(self, stage: str, path: Path | None) -> None:
        self.stage, self.path = stage, path
        self._written: float | None = None
        self._waiting: dict[str, object] | None = None

    def tell(self, event: StepEvent, seconds_left: float) -> None:
        """Take one more step; the last before `finish` is never lost."""
        if self.path is None:
            return
        self._waiting = {
            "stage": self.stage,
            "epoch": event.epoch + 1,
            "epochs": event.epochs,
            "step": event.step + 1,
            "steps": event.steps,
            "loss": event.loss,
            "val_top1": event.val_top1,
            "images_per_second": event.images_per_second,
            "seconds_left": seconds_left,
            "time": time.time(),
        }
        now = time.monotonic()
        if self._written is None or now - self._written >= FILE_SECONDS:
            self._written = now
            self.finish()

    def finish(self) -> None:
        """Write what has not been written yet."""
        if self.path is None or self._waiting is None:
            return
        try:
            # Not `write_atomic`: waiting for a disk every second would slow the training down.
            draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            draft.write_text(json.dumps(self._waiting, allow_nan=False) + "\n")
            draft.replace(self.path)
        except (OSError, ValueError):
            pass
        self._waiting = None


class ProgressBar:
    """Shows stage, epoch, images per second and the time that is left, and keeps the file.

    Use as a context manager and call it with every `StepEvent`.
    """

    def __init__(self, stage: str, stream: TextIO | None = None) -> None:
        self.stage = stage
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty()
        self.began = time.monotonic()
        self.printed = self.began
        self.first: int | None = None
        self.bar: object | None = None
        path = os.environ.get(PATH)
        self.file = ProgressFile(stage, Path(path) if path else None)

    def __enter__(self) -> ProgressBar:
        print(f"{self.stage}: training", file=self.stream, flush=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.finish()
        if self.bar is not None:
            self.bar.close()  # type: ignore[attr-defined]
        if kind is None:
            seconds = time.monotonic() - self.began
            print(f"{self.stage}: trained in {seconds:.0f} s", file=self.stream, flush=True)

    def __call__(self, event: StepEvent) -> None:
        """Show one more step."""
        done = event.epoch * event.steps + event.step + 1
        total = event.epochs * event.steps
        if self.first is None:
            self.first = done - 1
        left = (time.monotonic() - self.began) / (done - self.first) * (total - done)
        self.file.tell(event, left)
        if self.terminal:
            self._update_bar(event, done, total)
        elif time.monotonic() - self.printed >= LINE_SECONDS:
            self._print_line(event, left)

    def _print_line(self, event: StepEvent, left: float) -> None:
        print(
            f"{self.stage}: epoch {event.epoch + 1}/{event.epochs}, loss {event.loss:.3f}, "
            f"{event.images_per_second:.0f} images/s, {left:.0f} s left",
            file=self.stream,
            flush=True,
        )
        self.printed = time.monotonic()

    def _update_bar(self, event: StepEvent, done: int, total: int) -> None:
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(
                total=total,
                initial=done - 1,
                desc=self.stage,
                file=self.stream,
                leave=False,
                bar_format="{desc} |{bar}| {percentage:3.0f}%{postfix} [{elapsed}<{remaining}]",
            )
        bar: tqdm[None] = self.bar  # type: ignore[assignment]
        bar.set_postfix_str(
            f"epoch {event.epoch + 1}/{event.epochs}, {event.images_per_second:.0f} images/s, "
            f"loss {event.loss:.3f}",
            refresh=False,
        )
        bar.update(done - bar.n)
