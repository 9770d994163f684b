"""One look for all figures: a paper column or a screen, with colour or without it."""

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tables.figures.model import Drawing
from tables.names import method_name

# Okabe and Ito's palette without its yellow, which is too faint on white. Markers and line styles
# repeat at other intervals, so that 24 methods differ, and differ without colour too.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "o", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
HATCHES = ("", "////", "....")
NEUTRAL = "#555555"
WIDTH = 7.0

MAIN_METHODS = ("lsq", "statsq", "statsq_qkr", "ofq")
# Of labels in tables, which have more room.
_SHORTER = {"OFQ (StatsQ + QKR + CGA)": "OFQ", "boundary range": "BR"}


def label(method: str) -> str:
    """How a method is called in figures; its own name where nothing better is known."""
    words = method_name(method).label
    for long, short in _SHORTER.items():
        words = words.replace(long, short)
    return words


def in_order(methods: Iterable[str]) -> list[str]:
    """The paper's methods first, the others as in tables."""
    known = {method: place for place, method in enumerate(MAIN_METHODS)}
    return sorted(
        set(methods), key=lambda method: (known.get(method, len(known)), method_name(method).rank)
    )


class Looks:
    """A colour, a marker and a line style for each method, the same in all figures of a study."""

    def __init__(self, methods: Iterable[str]) -> None:
        others = [method for method in in_order(methods) if method not in MAIN_METHODS]
        self._place = {method: place for place, method in enumerate((*MAIN_METHODS, *others))}

    def colour(self, method: str) -> str:
        """The colour of a method."""
        return COLOURS[self._place[method] % len(COLOURS)]

    def marker(self, method: str) -> str:
        """The marker of a method."""
        return MARKERS[self._place[method] % len(MARKERS)]

    def line(self, method: str) -> str:
        """The line style of a method."""
        return LINES[self._place[method] % len(LINES)]


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults with a few changes, whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.hashsalt": "figures",
                "svg.fonttype": "path",
                "font.size": 8.5,
                "axes.titlesize": 9,
                "axes.titleweight": "bold",
                "axes.titlelocation": "left",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.grid.axis": "y",
                "grid.color": "#DDDDDD",
                "axes.axisbelow": True,
                "lines.linewidth": 1.4,
                "lines.markersize": 4.5,
                "legend.frameon": False,
                "hatch.linewidth": 0.6,
            }
        )
        yield


def new_canvas(height: float, width: float = WIDTH) -> Any:
    """An empty figure, sizes in inches; made without pyplot, which would choose a backend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(canvas)
    return canvas


def shared_legend(canvas: Any, all_axes: Iterable[Any], columns: int = 4) -> None:
    """One legend below all panels; a label that several panels have stands there once."""
    entries: dict[str, Any] = {}
    for axes in all_axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    if entries:
        canvas.legend(
            entries.values(),
            entries.keys(),
            loc="outside lower center",
            ncols=min(columns, len(entries)),
            handlelength=3,
        )


def image_bytes(canvas: Any) -> tuple[bytes, bytes]:
    """SVG and PNG; the same figure gives the same bytes (no date, no random ids)."""
    svg, png = io.BytesIO(), io.BytesIO()
    canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    canvas.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def csv_bytes(drawing: Drawing) -> bytes:
    """The numbers of a figure; None is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(drawing.header)
    writer.writerows(drawing.rows)
    return buffer.getvalue().encode()
