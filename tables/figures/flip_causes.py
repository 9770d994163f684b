"""Why codes change: the weight moved, the scale moved, or it took both."""

from collections.abc import Sequence
from typing import Any

from tables.figures.data import PHASES, bit_widths, by_method, left_out, quantized
from tables.figures.model import Drawing, MissingData
from tables.figures.style import COLOURS, HATCHES, label, new_canvas, shared_legend
from tables.names import method_name
from tables.runs import Run, Study
from tables.seeds import mean, spread

NAME = "flip_causes"
TITLE = "What made codes change"
STEPS = 1000
_CAUSES = {
    "flips_weight": ("weight", COLOURS[1]),
    "flips_scale": ("scale", COLOURS[4]),
    "flips_both": ("both", COLOURS[2]),
}


def draw(study: Study) -> Drawing:
    """Stacked bars, one per method; a column per bit width, a row per phase."""
    runs = [run for run in quantized(study) if method_name(run.method).plain]
    found = {
        when: [run for run in runs if _flips(run, prefix) is not None]
        for prefix, when in PHASES.items()
    }
    phases = [(prefix, when) for prefix, when in PHASES.items() if found[when]]
    if not phases:
        raise MissingData(
            "no run has oscillation.flips_weight, flips_scale and flips_both in its metrics.json"
        )
    shown = [run for group in found.values() for run in group]
    widths, methods = bit_widths(shown), list(by_method(shown))
    canvas = new_canvas(height=0.7 + (0.7 + 0.22 * len(methods)) * len(phases))
    panels = canvas.subplots(len(phases), len(widths), sharey=True, sharex="row", squeeze=False)
    rows: list[tuple[object, ...]] = []
    for row, (prefix, when) in zip(panels, phases, strict=True):
        for axes, bits in zip(row, widths, strict=True):
            groups = by_method(run for run in found[when] if run.bits == bits)
            for method, group in groups.items():
                flips = [known for run in group if (known := _flips(run, prefix)) is not None]
                parts = _draw_bar(axes, methods.index(method), flips)
                rows += [(when, bits, method, *part) for part in parts]
            axes.set_title(bits.upper())
            axes.grid(visible=True, axis="x")
            axes.grid(visible=False, axis="y")
        row[0].set_ylabel(when.capitalize())
    for axes in panels[-1]:
        axes.set_xlabel(f"Flips per weight\nand {STEPS} steps")
    panels[0][0].set_yticks(range(len(methods)), [label(method) for method in methods])
    panels[0][0].set_ylim(len(methods) - 0.4, -0.6)
    shared_legend(canvas, panels.flat)
    return Drawing(
        canvas,
        "Code changes of low-bit weights by cause, mean over seeds, from a sample of the steps. "
        "Weight: its move alone changes the code, and that of the scale alone does not; scale: the "
        "other way round; both: either would, or only the two together do." + left_out(study),
        ("phase", "bits", "method", "cause", "mean_per_weight_and_1000_steps", "sd", "n"),
        rows,
    )


def _flips(run: Run, prefix: str) -> tuple[float, ...] | None:
    keys = [prefix + cause for cause in _CAUSES]
    if not all(key in run.oscillation for key in keys):
        return None
    return tuple(STEPS * run.oscillation[key] for key in keys)


def _draw_bar(
    axes: Any, place: int, flips: Sequence[Sequence[float]]
) -> list[tuple[str, float, float | None, int]]:
    """One bar; returns cause, mean, spread over seeds and their number of each part."""
    rows = []
    left = 0.0
    for (cause, (name, colour)), hatch, values in zip(
        _CAUSES.items(), HATCHES, zip(*flips, strict=True), strict=True
    ):
        middle = mean(values)
        axes.barh(
            place,
            middle,
            left=left,
            height=0.7,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.5,
            label=name,
        )
        left += middle
        rows.append((cause.removeprefix("flips_"), middle, spread(values), len(values)))
    return rows
