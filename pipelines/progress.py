"""Progress of a training stage: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from ofq_core.training import StepEvent

LINE_SECONDS = 10.0


class ProgressBar:
    """Shows stage, epoch, images per second and the time that is left.

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

    def __enter__(self) -> ProgressBar:
        print(f"{self.stage}: training", file=self.stream, flush=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        if self.terminal:
            self._update_bar(event, done, total)
        elif time.monotonic() - self.printed >= LINE_SECONDS:
            self._print_line(event, done, total)

    def _print_line(self, event: StepEvent, done: int, total: int) -> None:
        now = time.monotonic()
        fresh = done - (self.first or 0)
        left = (now - self.began) / fresh * (total - done)
        print(
            f"{self.stage}: epoch {event.epoch + 1}/{event.epochs}, loss {event.loss:.3f}, "
            f"{event.images_per_second:.0f} images/s, {left:.0f} s left",
            file=self.stream,
            flush=True,
        )
        self.printed = now

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
