"""How often a weight's gradient changes its sign, near a threshold and away from one."""

from collections.abc import Sequence
from typing import Any

from tables.figures.data import (
    PHASES,
    bit_widths,
    by_method,
    main_or_all,
    mean_and_spread,
    quantized,
)
from tables.figures.model import Drawing, MissingData
from tables.figures.style import Looks, label, new_canvas, shared_legend
from tables.runs import Run, Study

NAME = "gradient_flips"
TITLE = "Sign changes of gradients near a threshold"

# Boundary range -> mean and spread over seeds, and their number, in percent.
_Series = dict[float, tuple[float, float | None, int]]


def draw(study: Study) -> Drawing:
    """Share of sign changes against the boundary range, a column per bit width, a row per phase."""
    runs = main_or_all(quantized(study))
    found = {when: [run for run in runs if _shares(run, prefix)] for prefix, when in PHASES.items()}
    phases = [(prefix, when) for prefix, when in PHASES.items() if found[when]]
    if not phases:
        raise MissingData("no run has oscillation.gradient_flips in its metrics.json")
    widths = bit_widths(run for group in found.values() for run in group)
    looks = Looks(run.method for run in quantized(study))
    canvas = new_canvas(height=0.8 + 1.9 * len(phases))
    panels = canvas.subplots(len(phases), len(widths), sharex=True, sharey=True, squeeze=False)
    rows: list[tuple[object, ...]] = []
    for row, (prefix, when) in zip(panels, phases, strict=True):
        for axes, bits in zip(row, widths, strict=True):
            there = [run for run in found[when] if run.bits == bits]
            for method, group in by_method(there).items():
                series = _series(group, prefix)
                _draw_series(axes, looks, method, series)
                rows += [(when, bits, method, band, *values) for band, values in series.items()]
            axes.set_xscale("log")
            axes.set_title(bits.upper())
        row[0].set_ylabel(f"Sign changes (%)\n{when}")
    for axes in panels[-1]:
        axes.set_xlabel("Boundary range (steps)")
    shared_legend(canvas, panels.flat)
    return Drawing(
        canvas,
        "Share of consecutive pairs of gradients of a weight whose sign differs, over the weights "
        "within the boundary range of a threshold (0.5 quantization steps: all that lie between "
        "the outermost grid values); mean and sample standard deviation over seeds.",
        ("phase", "bits", "method", "boundary_range_steps", "mean_percent", "sd_percent", "n"),
        rows,
    )


def _shares(run: Run, prefix: str) -> dict[float, float]:
    """Half width of the band in steps -> share of pairs, without those that no weight was in."""
    start = f"{prefix}gradient_flips."
    return {
        float(key.removeprefix(start)): share
        for key, share in run.oscillation.items()
        if key.startswith(start)
    }


def _series(runs: Sequence[Run], prefix: str) -> _Series:
    shares = [_shares(run, prefix) for run in runs]
    series: _Series = {}
    for band in sorted({band for found in shares for band in found}):
        values = [100 * found[band] for found in shares if band in found]
        series[band] = (*mean_and_spread(values), len(values))
    return series


def _draw_series(axes: Any, looks: Looks, method: str, series: _Series) -> None:
    spreads = [spread or 0 for _, spread, _ in series.values()]
    axes.errorbar(
        list(series),
        [mean for mean, _, _ in series.values()],
        yerr=spreads if any(spreads) else None,
        color=looks.colour(method),
        marker=looks.marker(method),
        linestyle=looks.line(method),
        capsize=2,
        elinewidth=0.8,
        label=label(method),
    )
