"""Numbers that change over a run, as functions of the share of it that is done."""

from __future__ import annotations

import math


def cosine_anneal(first: float, last: float, progress: float, start: float = 0.0) -> float:
    """From `first` at `start` to `last` at 1 along half a cosine; `first` before `start`.

    progress, start: shares of the run, 0 to 1, start below 1.
    """
    share = min(max((progress - start) / (1.0 - start), 0.0), 1.0)
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * share))
