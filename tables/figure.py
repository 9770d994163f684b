"""Accuracy and oscillation against bits: every seed a dot, the means joined."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tables.figures.style import COLOURS, MARKERS, image_bytes
from tables.model import Cell, Row, Table

_COLOURS, _MARKERS = COLOURS, MARKERS[:6]
_FULL_PRECISION = "#444444"
_STEP = 0.16
# Of a bit width's place, which many methods share.
_WIDTH = 0.85
# Seeds stand a little left of their mean, which would otherwise hide them.
_ASIDE = 0.045


def figure_bytes(table: Table) -> tuple[bytes, bytes]:
    """The figure as SVG and PNG; the same table gives the same bytes (no date, no random ids)."""
    with _style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        accuracy, oscillation = figure.subplots(1, 2)
        _draw_accuracy(accuracy, table)
        _draw_oscillation(oscillation, table)
        handles, labels = accuracy.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        return image_bytes(figure)


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    # Start from the library's defaults, so that a user's matplotlibrc changes no byte.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.hashsalt": "tables",
                "svg.fonttype": "path",
                "font.size": 10,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.grid.axis": "y",
                "grid.color": "#DDDDDD",
                "axes.axisbelow": True,
            }
        )
        yield


def _draw_accuracy(axes: Any, table: Table) -> None:
    for row in table.rows:
        if row.spans and row.cells[0].mean is not None:
            _draw_level(axes, row.label, row.cells[0])
    for index, row in _quantized(table):
        points = [
            (place, [seed.top1 for seed in cell.seeds], cell.mean, cell.spread)
            for place, cell in _places(table, index, row)
            if cell.mean is not None
        ]
        _draw_series(axes, index, row.label, points)
    _finish(axes, table, "Test top-1 (%)", "Accuracy")


def _draw_oscillation(axes: Any, table: Table) -> None:
    for index, row in _quantized(table):
        points = []
        for place, cell in _places(table, index, row):
            shares = [
                100 * seed.oscillation_share
                for seed in cell.seeds
                if seed.oscillation_share is not None
            ]
            if cell.oscillation_share is not None:
                points.append((place, shares, 100 * cell.oscillation_share, None))
        _draw_series(axes, index, row.label, points)
    axes.set_ylim(bottom=0)
    _finish(axes, table, "Oscillating weights (%)", "Oscillation")


def _draw_level(axes: Any, label: str, cell: Cell) -> None:
    axes.axhline(cell.mean, color=_FULL_PRECISION, linestyle="--", linewidth=1.2, label=label)
    if cell.mean is not None and cell.spread is not None:
        low, high = cell.mean - cell.spread, cell.mean + cell.spread
        axes.axhspan(low, high, color=_FULL_PRECISION, alpha=0.12, linewidth=0)


def _draw_series(
    axes: Any, index: int, label: str, points: list[tuple[float, list[float], Any, Any]]
) -> None:
    if not points:
        return
    colour = _COLOURS[index % len(_COLOURS)]
    # From the seventh on colours come again, with other markers.
    marker = _MARKERS[(index + index // len(_COLOURS)) % len(_MARKERS)]
    places, means = [point[0] for point in points], [point[2] for point in points]
    spreads = [point[3] or 0 for point in points]
    for place, values, _, _ in points:
        axes.plot(
            [place - _ASIDE] * len(values),
            values,
            linestyle="",
            marker="o",
            markersize=3.5,
            color=colour,
            alpha=0.45,
        )
    axes.plot(places, means, color=colour, linewidth=1, alpha=0.7)
    axes.errorbar(
        places,
        means,
        yerr=spreads if any(spreads) else None,
        linestyle="",
        marker=marker,
        markersize=7,
        markeredgecolor="white",
        color=colour,
        capsize=3,
        label=label,
    )


def _quantized(table: Table) -> list[tuple[int, Row]]:
    """Rows at another fidelity are left to the table: two of everything would hide each other."""
    return list(enumerate(row for row in table.rows if not row.spans and not row.block))


def _places(table: Table, index: int, row: Row) -> list[tuple[float, Cell]]:
    """Methods stand side by side at each bit width, so that their dots do not hide one another."""
    count = len(_quantized(table))
    offset = (index - (count - 1) / 2) * min(_STEP, _WIDTH / count)
    return [(column + offset, cell) for column, cell in enumerate(row.cells)]


def _finish(axes: Any, table: Table, unit: str, title: str) -> None:
    axes.set_xticks(range(len(table.columns)), [table.heading(bits) for bits in table.columns])
    axes.set_xlim(-0.5, len(table.columns) - 0.5)
    axes.set_xlabel("Bits of weights (W) and activations (A)")
    axes.set_ylabel(unit)
    axes.set_title(f"{title}: {table.subject}", loc="left", fontsize=10, fontweight="bold")
