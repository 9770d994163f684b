"""Does accuracy follow oscillation? Every run a point."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tables.figures.data import bit_widths, left_out, quantized
from tables.figures.model import Drawing, MissingData
from tables.figures.style import (
    MAIN_METHODS,
    Looks,
    in_order,
    label,
    new_canvas,
    shared_legend,
)
from tables.names import method_name
from tables.runs import Run, Study

NAME = "accuracy_oscillation"
TITLE = "Accuracy against oscillation"
PERMUTATIONS = 10_000
_WHEN = {
    "share_before_last_phase": "before the last phase",
    "share": "in the last phase",
}


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho, the p-value of a permutation test (two-sided), the number of pairs."""

    rho: float
    p: float
    n: int


def draw(study: Study) -> Drawing:
    """Test top-1 against the oscillating share, a column per bit width, a row per phase."""
    runs = quantized(study)
    found = {
        key: [(run, run.oscillation[key]) for run in runs if key in run.oscillation]
        for key in _WHEN
    }
    times = [key for key in _WHEN if found[key]]
    if not times:
        raise MissingData("no quantized run has an oscillation share in its metrics.json")
    widths = bit_widths(run for key in times for run, _ in found[key])
    looks = Looks(series(run.method) for run in runs)
    canvas = new_canvas(height=0.9 + 2.0 * len(times))
    panels = canvas.subplots(len(times), len(widths), sharey="col", squeeze=False)
    rows: list[tuple[object, ...]] = []
    told = []
    for row, key in zip(panels, times, strict=True):
        for axes, bits in zip(row, widths, strict=True):
            points = [(run, share) for run, share in found[key] if run.bits == bits]
            result = spearman([share for _, share in points], [run.top1 for run, _ in points])
            _draw_points(axes, points, looks)
            below = _leave_out_collapsed(axes, [run.top1 for run, _ in points])
            _print_result(axes, result, below)
            axes.set_title(bits.upper(), pad=15)
            axes.set_xlabel(f"Oscillating (%)\n{_WHEN[key]}")
            if result is not None:
                told.append(f"{bits.upper()} {_WHEN[key]} {words(result)}")
            rows += [
                (_WHEN[key], bits, run.method, run.seed, 100 * share, run.top1)
                for run, share in points
            ]
        row[0].set_ylabel("Test top-1 (%)")
    shared_legend(canvas, panels.flat, columns=3)
    return Drawing(
        canvas,
        "Every run is a point; runs far below all others are counted instead of drawn, but count "
        "in the correlation. Oscillating: weights whose oscillation frequency is above 0.005. "
        "Spearman's rank correlation over the runs of a bit width, p by "
        f"{PERMUTATIONS:,} random permutations: {'; '.join(told) or 'not defined'}. Runs of one "
        "seed share their data order, and methods that differ in the last phase only share their "
        "weights before it, so the runs are not independent and p is optimistic." + left_out(study),
        ("when", "bits", "method", "seed", "oscillating_percent", "top1_percent"),
        rows,
    )


def series(method: str) -> str:
    """What stands in the legend for a method: variants of the main methods share a name."""
    known = method_name(method)
    if method in MAIN_METHODS:
        return method
    if known.fidelity is not None:
        return f"main methods, {known.fidelity} code"
    if known.boundary_range is not None:
        return "OFQ, other boundary ranges"
    return "other combinations" if known.weight in ("lsq", "statsq") else method


def words(result: RankCorrelation) -> str:
    """Such as `ρ = −0.16 (p = 0.62, n = 12)`."""
    rho = f"{result.rho:.2f}".replace("-", "\N{MINUS SIGN}")
    p = f"p < {1 / PERMUTATIONS:g}" if result.p < 1 / PERMUTATIONS else f"p = {result.p:.2g}"
    return f"ρ = {rho} ({p}, n = {result.n})"


def spearman(first: Sequence[float], second: Sequence[float]) -> RankCorrelation | None:
    """Rank correlation, ties by mean ranks; None for under three pairs or a constant side.

    The test permutes ranks, so it holds for few pairs and for ties; its seed is fixed.
    """
    import numpy as np

    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    one, other = (_centred_ranks(values) for values in (first, second))
    size = float(np.sqrt((one @ one) * (other @ other)))
    observed = float(one @ other)
    shuffled = np.random.default_rng(0).permuted(np.tile(other, (PERMUTATIONS, 1)), axis=1)
    # The order of summation differs between rows and the observed pair: do not lose ties to it.
    as_extreme = np.abs(shuffled @ one) >= abs(observed) * (1 - 1e-9)
    p = (int(as_extreme.sum()) + 1) / (PERMUTATIONS + 1)
    return RankCorrelation(observed / size, p, len(first))


def _centred_ranks(values: Sequence[float]) -> Any:
    import numpy as np

    array = np.asarray(values, dtype=float)
    below = (array[:, None] > array[None, :]).sum(axis=1)
    same = (array[:, None] == array[None, :]).sum(axis=1)
    ranks = below + (same + 1) / 2
    return ranks - ranks.mean()


def _draw_points(axes: Any, points: Sequence[tuple[Run, float]], looks: Looks) -> None:
    for name in in_order(series(run.method) for run, _ in points):
        own = [(run, share) for run, share in points if series(run.method) == name]
        main = name in MAIN_METHODS
        axes.plot(
            [100 * share for _, share in own],
            [run.top1 for run, _ in own],
            linestyle="",
            marker=looks.marker(name),
            color=looks.colour(name),
            markerfacecolor=None if main else "none",
            markeredgecolor="white" if main else looks.colour(name),
            markeredgewidth=0.5 if main else 0.8,
            markersize=6 if main else 4.5,
            zorder=3 if main else 2,
            label=label(name),
        )


def _leave_out_collapsed(axes: Any, values: Sequence[float]) -> int:
    """End the axis below the bulk of the runs; returns how many are lower."""
    import numpy as np

    if len(values) < 2:
        return 0
    lower, upper = np.percentile(values, [25, 75])
    limit = lower - 5 * max(upper - lower, 1.0)
    shown = [value for value in values if value >= limit]
    if len(shown) < len(values):
        axes.set_ylim(bottom=min(shown) - 1.0)
    return len(values) - len(shown)


def _print_result(axes: Any, result: RankCorrelation | None, below: int) -> None:
    told = "ρ not defined" if result is None else words(result)
    told += f"; {below} lower" if below else ""
    axes.text(0, 1.025, told, transform=axes.transAxes, fontsize=7.5)
