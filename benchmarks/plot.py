"""The figure of growing cost, in the look of the study's figures."""

from __future__ import annotations

from typing import Any

from tables.figures.style import COLOURS, LINES, MARKERS, image_bytes, new_canvas, shared_legend
from tables.figures.style import style as figure_style

LABELS = {
    "full_precision": "full precision",
    "statsq": "W2A2, StatsQ + LSQ",
    "statsq_qkr": "W2A2, with QKR",
}
UNITS = {"tokens": "tokens per image", "width": "channels", "batch": "images per batch"}


def growth_svg(growth: dict[str, Any]) -> bytes:
    """Seconds per step against tokens, width and batch, slopes in the titles; SVG.

    Args:
        growth: as `measure_growth` returns it.
    """
    with figure_style():
        canvas = new_canvas(2.6)
        panels = canvas.subplots(1, len(growth))
        for axes, (axis, methods) in zip(panels, growth.items(), strict=True):
            slopes = []
            for place, (method, row) in enumerate(methods.items()):
                values, seconds = zip(*row["points"], strict=True)
                axes.plot(
                    values,
                    [1e3 * s for s in seconds],
                    color=COLOURS[place],
                    marker=MARKERS[place],
                    linestyle=LINES[place],
                    label=LABELS[method],
                )
                slopes.append(f"{row['slope']:.2f}")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.minorticks_off()
            axes.set_xlabel(UNITS[axis])
            axes.set_title(f"slopes {' / '.join(slopes)}")
        panels[0].set_ylabel("forward and backward (ms)")
        shared_legend(canvas, panels)
        svg, _ = image_bytes(canvas)
    return svg
