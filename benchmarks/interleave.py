"""Time variants side by side, so that what else the machine does changes no ratio.

A round runs every variant once, in a fixed order; what is compared is the ratio within a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True)
class Ratio:
    """A ratio of two variants over the rounds: median, extremes, quartiles, number of rounds."""

    median: float
    low: float
    quarter: float
    three_quarters: float
    high: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> Ratio:
        """From one value per round.

        Raises:
            ValueError: there is none.
        """
        if not values:
            raise ValueError("no rounds: nothing to summarise")
        quarter, median, three = (
            statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        )
        return cls(median, min(values), quarter, three, max(values), len(values))

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def clock(wall: bool) -> Callable[[], float]:
    """Seconds: of the wall, or of this process on all its cores.

    Processor time is what other work on the machine moves least, and on one thread it is what a
    step costs; on several threads, which wait for each other, and on a GPU only the wall tells.
    """
    return time.perf_counter if wall else time.process_time


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    repeats: int = 1,
    warm_up: int = 1,
    wall: bool = False,
) -> dict[str, list[float]]:
    """Seconds per call of every variant, one value per round.

    Args:
        repeats: calls in a row that give one value (their mean).
        warm_up: rounds before the first that counts; compiled variants compile in them.
        wall: see `clock`.
    """
    seconds = clock(wall)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warm_up + rounds):
        for name, run in variants.items():
            _wait()
            began = seconds()
            for _ in range(repeats):
                run()
            _wait()
            if number >= warm_up:
                times[name].append((seconds() - began) / repeats)
    return times


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def paired(times: Mapping[str, list[float]], name: str, base: str) -> Ratio:
    """One variant over another, round by round."""
    return Ratio.of([a / b for a, b in zip(times[name], times[base], strict=True)])
