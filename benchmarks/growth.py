"""How the cost of a training step grows with tokens, width and batch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from benchmarks.interleave import interleaved
from benchmarks.steps import Options
from benchmarks.subjects import FULL_PRECISION, SIZES, Size, Step, make_model, threads

# (what is varied, its unit): changes of DeiT-T with the value on the axis. Patches are 16 pixels
# wide, and there are two more tokens; heads are 64 channels wide, as in all DeiT.
METHODS = (FULL_PRECISION, "statsq", "statsq_qkr")
# Four blocks instead of twelve: all blocks are alike, and the slope is that of the blocks.
DEPTH = 4


def _sizes() -> dict[str, list[tuple[int, Size, int]]]:
    """By axis: (value, model, batch)."""
    base = replace(SIZES["deit_tiny"], changes={"depth": DEPTH})

    def with_(**changes: int) -> Size:
        return replace(base, changes=base.changes | changes)

    return {
        "tokens": [
            ((side // 16) ** 2 + 2, with_(img_size=side), 2) for side in (112, 160, 224, 320, 448)
        ],
        "width": [
            (width, with_(embed_dim=width, num_heads=width // 64), 2)
            for width in (128, 192, 256, 384, 512)
        ],
        "batch": [(batch, base, batch) for batch in (1, 2, 4, 8, 16)],
    }


def slope(points: list[tuple[float, float]]) -> float:
    """The exponent p of cost = a value^p, by least squares on logarithms.

    Raises:
        ValueError: fewer than two different values.
    """
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x = sum(x for x, _ in logs) / len(logs)
    mean_y = sum(y for _, y in logs) / len(logs)
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    if spread == 0:
        raise ValueError("a slope needs two different values")
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread


def measure_growth(options: Options) -> dict[str, Any]:
    """Seconds per forward and backward, and the slope on logarithmic axes, by axis and method."""
    result: dict[str, Any] = {}
    rounds = max(3, options.rounds // 2)
    with threads(options.threads):
        for axis, kinds in _sizes().items():
            points: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
            for value, size, batch in kinds:
                steps = {method: Step(make_model(size, method), size, batch) for method in METHODS}
                runs = {method: step.forward_backward for method, step in steps.items()}
                times = interleaved(runs, rounds, wall=options.wall)
                for method, seconds in times.items():
                    # The least of them: an axis is no side-by-side comparison, so noise counts.
                    points[method].append((value, min(seconds)))
            result[axis] = {
                method: {"points": found, "slope": slope(found)} for method, found in points.items()
            }
    return result
