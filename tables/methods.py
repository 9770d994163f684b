"""The comparison of all methods of a study: accuracy, and what their weights did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tables import text
from tables.build import provenance, subject
from tables.measured import (
    FULL_PRECISION,
    Measured,
    bit_widths,
    measured,
    refuse_unlike_methods,
)
from tables.names import MethodName, method_name
from tables.notes import not_counted
from tables.runs import Study
from tables.sheet import Grid, Sheet, grid, known, line, number
from tables.spec import TableSpec

NAME = "methods"


class _Figure(NamedTuple):
    """A column on oscillation: key below `oscillation` in metrics.json, heading, factor."""

    key: str
    heading: str
    factor: float
    what: str


_FIGURES = (
    _Figure("share", "Oscillating %", 100, "share of weights whose frequency is above 0.005"),
    _Figure("share_before_last_phase", "before %", 100, "the same when the last phase (CGA) began"),
    _Figure(
        "flip_rate_last_phase",
        "Flips / 1000",
        1000,
        "code changes per weight and 1000 steps in the last phase",
    ),
    _Figure("in_band_0.005", "Near %", 100, "weights within 0.005 steps of a threshold at the end"),
    _Figure(
        "gradient_flips.0.005",
        "Gradient flips %",
        100,
        "weights within 0.005 steps whose gradient changed its sign from one step to the next",
    ),
    _Figure(
        "path_ratio", "Path ratio", 1, "way of the quantized weights over that of the latent ones"
    ),
    _Figure("clipped_share", "Clipped %", 100, "weights beyond the outermost codes"),
    _Figure("scale_drift", "Scale drift %", 100, "mean change of a scale since the start"),
)


def methods_sheet(study: Study, spec: TableSpec) -> Sheet:
    """One line per method of the study; TableError if they were not made alike.

    Rows at another fidelity or boundary range belong to other tables.
    """
    names = sorted({run.method for run in study.runs}, key=lambda name: method_name(name).rank)
    shown = [study.method(name) for name in names if method_name(name).plain]
    runs = [run for run in study.runs if method_name(run.method).plain]
    refuse_unlike_methods(runs, spec)
    bits = bit_widths(runs)
    cells = {
        (method.name, width): measured(study, method.name, width)
        for method in shown
        for width in ([32] if method.name == FULL_PRECISION else bits)
    }
    baseline = {width: cells.get((spec.baseline, width), Measured()) for width in bits}
    elsewhere = [name for name in names if not method_name(name).plain]
    first = (runs or list(study.runs))[0]
    return Sheet(
        name=NAME,
        title="Comparison of methods",
        subject=subject(first),
        caption=(
            "Test top-1 (%), mean ± sample standard deviation (n seeds); difference to LSQ in "
            "points, paired by seed; then, per bit width, what the low-bit weights did in training."
        ),
        grids=(
            _accuracy(shown, bits, cells, baseline, spec.baseline),
            *_oscillation(shown, bits, cells),
        ),
        notes=tuple(_notes(study, shown, elsewhere, any(b.n for b in baseline.values()))),
        provenance=provenance(runs) if runs else "",
        records=tuple(_records(shown, cells, baseline)),
        summary=_summary(shown, cells, baseline),
    )


Cells = Mapping[tuple[str, int], Measured]


def _at(method: MethodName, width: int, cells: Cells) -> Measured:
    """Full precision has one value for all columns."""
    return cells[method.name, 32 if method.name == FULL_PRECISION else width]


def _accuracy(
    shown: list[MethodName],
    bits: list[int],
    cells: Cells,
    baseline: Mapping[int, Measured],
    baseline_name: str,
) -> Grid:
    def difference(method: MethodName, width: int) -> str:
        cell = cells.get((method.name, width), Measured())
        if method.name == baseline_name and cell.n:
            return "baseline"
        return text.paired(cell.difference(baseline[width]), cell.n)

    widths = [f"W{width}A{width}" for width in bits]
    return grid(
        "Accuracy",
        ["Method", *widths, *(f"Δ LSQ {width}" for width in widths)],
        [
            line(
                method.label,
                *(_at(method, width, cells).top1() for width in bits),
                *(difference(method, width) for width in bits),
            )
            for method in shown
        ],
    )


def _oscillation(shown: list[MethodName], bits: list[int], cells: Cells) -> list[Grid]:
    def figure(cell: Measured, one: _Figure) -> str:
        value = cell.oscillation(one.key)
        return number(None if value is None else one.factor * value)

    return [
        grid(
            f"Low-bit weights in training, W{width}A{width}",
            ["Method", *(one.heading for one in _FIGURES)],
            [
                line(method.label, *(figure(cells[method.name, width], one) for one in _FIGURES))
                for method in shown
                if method.name != FULL_PRECISION and cells[method.name, width].n
            ],
        )
        for width in bits
    ]


def _records(
    shown: list[MethodName], cells: Cells, baseline: Mapping[int, Measured]
) -> list[dict[str, Any]]:
    figures = sorted(
        {key for cell in cells.values() for run in cell.runs for key in run.oscillation}
    )
    records = []
    for method in shown:
        for (name, width), cell in cells.items():
            if name != method.name:
                continue
            difference = cell.difference(baseline.get(width, Measured()))
            records.append(
                {
                    "method": name,
                    "label": method.label,
                    "weight": method.weight,
                    "qkr": method.qkr,
                    "cga": method.cga,
                    "wbits": width,
                    "abits": width,
                    **cell.record(),
                    "difference_mean": difference.mean if difference else None,
                    "difference_sd": difference.spread if difference else None,
                    "difference_pairs": difference.pairs if difference else None,
                    **{f"oscillation.{key}": cell.oscillation(key) for key in figures},
                }
            )
    return records


def _summary(
    shown: list[MethodName], cells: Cells, baseline: Mapping[int, Measured]
) -> dict[str, Any]:
    outdated = {method.name for method in shown if method.outdated}
    summary: dict[str, Any] = {}
    for (name, width), cell in cells.items():
        if not cell.n:
            continue
        difference = cell.difference(baseline.get(width, Measured()))
        part = summary.setdefault("outdated", {}) if name in outdated else summary
        part.setdefault(name, {})[f"w{width}a{width}"] = known(
            {
                "top1_mean": cell.mean,
                "top1_sd": cell.spread,
                "n": cell.n,
                "diff_to_lsq": difference.mean if difference else None,
                **{one.key: cell.oscillation(one.key) for one in _FIGURES},
            }
        )
    return summary


def _notes(
    study: Study, shown: list[MethodName], elsewhere: list[str], has_baseline: bool
) -> list[str]:
    told = {key for run in study.runs for key in run.oscillation}
    notes = [
        "All methods start from the same full-precision weights and share recipe, teacher, data "
        "order and the treatment of activations, unless a method has its own; so they are compared "
        "as ways to quantize weights, not as the complete pipelines of their papers.",
        "Columns: "
        + "; ".join(f"{one.heading}: {one.what}" for one in _FIGURES if one.key in told)
        + ". Means over seeds; methods.csv has every figure that the runs tell.",
    ]
    untrained = [method.label for method in shown if not method.trains]
    if untrained:
        notes.append(f"Not trained, so nothing happens to their weights: {', '.join(untrained)}.")
    if not has_baseline:
        notes.append("The study has no run of LSQ, so there are no differences to it.")
    if elsewhere:
        notes.append(
            "At another fidelity or boundary range, so in the tables ablation and boundary: "
            f"{', '.join(elsewhere)}."
        )
    return notes + not_counted(study)
