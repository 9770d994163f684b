"""Validation accuracy and oscillation, epoch by epoch."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tables.figures.data import bit_widths, by_method, history, main_or_all, quantized
from tables.figures.model import Drawing, MissingData
from tables.figures.style import Looks, label, new_canvas, shared_legend
from tables.runs import Run, Study
from tables.seeds import mean, spread

NAME = "learning_curves"
TITLE = "Learning curves"
_ROWS = (
    ("val_top1", "Validation top-1 (%)", 1.0),
    ("oscillation_share", "Oscillating weights (%)", 100.0),
)

# One line of a curve: epoch, mean, spread over seeds, their number.
_Point = tuple[int, float, float | None, int]


def draw(study: Study) -> Drawing:
    """Accuracy above, oscillation below, a column per bit width."""
    from matplotlib.ticker import MaxNLocator

    runs = main_or_all(quantized(study))
    kept = [(key, unit, scale) for key, unit, scale in _ROWS if any(_has(run, key) for run in runs)]
    if not kept:
        raise MissingData("no quantized run has val_top1 or oscillation_share in its history.csv")
    widths = bit_widths(runs)
    looks = Looks(run.method for run in quantized(study))
    canvas = new_canvas(height=0.9 + 1.9 * len(kept))
    panels = canvas.subplots(len(kept), len(widths), sharex="col", squeeze=False)
    rows: list[tuple[object, ...]] = []
    for row, (key, unit, scale) in zip(panels, kept, strict=True):
        for axes, bits in zip(row, widths, strict=True):
            there = [run for run in runs if run.bits == bits]
            for method, group in by_method(there).items():
                points = _points(group, key, scale)
                cuts = _last_phases(group) if key == "oscillation_share" else []
                for part in _parts(points, cuts):
                    _draw_curve(axes, part, method, looks)
                rows += [(bits, method, key, *point) for point in points]
            for epoch in _last_phases(there):
                axes.axvline(epoch, color="#888888", linewidth=2, alpha=0.6)
            axes.set_title(bits.upper())
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            if key == "oscillation_share":
                # Before and in the last phase it differs by powers of ten, and it may be zero.
                axes.set_yscale("symlog", linthresh=0.1, linscale=0.3)
                axes.set_ylim(bottom=0)
                axes.yaxis.set_major_formatter("{x:g}")
        row[0].set_ylabel(unit)
    for axes in panels[-1]:
        axes.set_xlabel("Epoch")
    shared_legend(canvas, panels.flat)
    return Drawing(
        canvas,
        "Mean over seeds with a band of one sample standard deviation; the last phase begins at "
        "the grey line, where the oscillation frequency starts from zero again. Oscillation on a "
        "logarithmic axis, linear below 0.1 %.",
        ("bits", "method", "quantity", "epoch", "mean", "sd", "n"),
        rows,
    )


def _has(run: Run, key: str) -> bool:
    return any(value is not None for value in history(run)[0].get(key, ()))


def _points(runs: Sequence[Run], key: str, scale: float) -> list[_Point]:
    values: dict[int, list[float]] = {}
    for run in runs:
        columns, _ = history(run)
        for epoch, value in zip(columns.get("epoch", ()), columns.get(key, ()), strict=False):
            if epoch is not None and value is not None:
                values.setdefault(int(epoch), []).append(scale * value)
    return [
        (epoch, mean(found), spread(found), len(found)) for epoch, found in sorted(values.items())
    ]


def _parts(points: Sequence[_Point], starts: Sequence[float]) -> list[list[_Point]]:
    """Cut a curve where the last phase begins: the frequency starts anew, so no line joins them."""
    bounds = [float("-inf"), *starts, float("inf")]
    return [[point for point in points if low <= point[0] < high] for low, high in pairwise(bounds)]


def _draw_curve(axes: Any, points: Sequence[_Point], method: str, looks: Looks) -> None:
    if not points:
        return
    epochs = [point[0] for point in points]
    means = [point[1] for point in points]
    spreads = [point[2] or 0.0 for point in points]
    if any(spreads):
        axes.fill_between(
            epochs,
            [max(0.0, middle - wide) for middle, wide in zip(means, spreads, strict=True)],
            [middle + wide for middle, wide in zip(means, spreads, strict=True)],
            color=looks.colour(method),
            alpha=0.15,
            linewidth=0,
        )
    axes.plot(
        epochs,
        means,
        color=looks.colour(method),
        linestyle=looks.line(method),
        marker=looks.marker(method),
        markersize=3.5,
        markevery=max(1, len(epochs) // 6),
        label=label(method),
    )


def _last_phases(runs: Sequence[Run]) -> list[float]:
    """Half an epoch before the first one of another phase than the one before it, by run."""
    starts = set()
    for run in runs:
        columns, phases = history(run)
        changes = [place for place in range(1, len(phases)) if phases[place] != phases[place - 1]]
        epochs = columns.get("epoch", ())
        if changes and epochs[changes[-1]] is not None:
            starts.add(float(epochs[changes[-1]] or 0) - 0.5)
    return sorted(starts)
