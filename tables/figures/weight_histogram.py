"""Where latent weights lie between the thresholds at the end of training."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tables.errors import TableError
from tables.figures.data import Counts, Histogram, by_method, histogram, lowest_bits
from tables.figures.model import Drawing, MissingData
from tables.figures.style import Looks, label, new_canvas, shared_legend
from tables.runs import Run, Study
from tables.seeds import mean

NAME = "weight_histogram"
TITLE = "Latent weights between the thresholds"
METHODS = ("lsq", "statsq", "ofq")
NEAR = 0.05


@dataclass(frozen=True)
class _Shape:
    """Mean over seeds of the shares in each bin."""

    low: int
    high: int
    seeds: int
    position: Counts
    distance: Counts


def draw(study: Study) -> Drawing:
    """Positions on the code axis, a panel per method, and below distances to a threshold."""
    runs = [run for run in lowest_bits(study) if run.method in METHODS]
    shapes = {
        method: shape
        for method, group in by_method(runs).items()
        if (shape := _mean_shape(group)) is not None
    }
    if not shapes:
        raise MissingData(
            f"no run of {', '.join(METHODS)} at the lowest bit width has a histogram.json"
        )
    looks = Looks(shapes)
    canvas = new_canvas(height=4.4)
    grid = canvas.add_gridspec(2, len(shapes))
    first = None
    for column, (method, shape) in enumerate(shapes.items()):
        first = canvas.add_subplot(grid[0, column], sharey=first)
        _draw_positions(first, shape, looks.colour(method))
        first.set_title(label(method))
        if column == 0:
            first.set_ylabel("Weights per bin (%)")
        else:
            first.tick_params(labelleft=False)
    below = canvas.add_subplot(grid[1, :])
    _draw_distances(below, shapes, looks)
    shared_legend(canvas, [below])
    return Drawing(
        canvas,
        _caption(runs[0].bits, shapes),
        ("method", "quantity", "from", "to", "share_percent", "seeds"),
        [
            (method, quantity, low, high, 100 * share, shape.seeds)
            for method, shape in shapes.items()
            for quantity, counts in (("position", shape.position), ("distance", shape.distance))
            for low, high, share in zip(
                counts.edges[:-1], counts.edges[1:], counts.counts, strict=True
            )
        ],
    )


def _mean_shape(runs: Sequence[Run]) -> _Shape | None:
    known: list[tuple[Run, Histogram]] = [
        (run, found) for run in runs if (found := histogram(run)) is not None
    ]
    if not known:
        return None
    first_run, first = known[0]
    for run, other in known[1:]:
        if (other.position.edges, other.distance.edges) != (
            first.position.edges,
            first.distance.edges,
        ):
            raise TableError(
                f"{first_run.folder} and {run.folder}: their histogram.json have other bins"
            )
    totals = [sum(found.position.counts) for _, found in known]
    return _Shape(
        first.low,
        first.high,
        len(known),
        _mean_shares([found.position for _, found in known], totals),
        _mean_shares([found.distance for _, found in known], totals),
    )


def _mean_shares(all_counts: Sequence[Counts], totals: Sequence[float]) -> Counts:
    """Shares of all weights, those whose distance is not counted included."""
    shares = [counts.over(total) for counts, total in zip(all_counts, totals, strict=True)]
    return Counts(all_counts[0].edges, tuple(mean(values) for values in zip(*shares, strict=True)))


def _draw_positions(axes: Any, shape: _Shape, colour: str) -> None:
    percent = [100 * share for share in shape.position.counts]
    edges = shape.position.edges
    axes.stairs(percent, edges, fill=True, color=colour, alpha=0.35, linewidth=0)
    axes.stairs(percent, edges, color=colour, linewidth=0.9)
    for code in range(shape.low, shape.high):
        axes.axvline(code + 0.5, color="black", linestyle="--", linewidth=0.9)
    axes.set_xticks(range(shape.low, shape.high + 1))
    axes.set_xlabel("Position (codes)")
    axes.set_xlim(shape.low - 0.75, shape.high + 0.75)
    _cut_off(axes, percent, shape)


def _cut_off(axes: Any, percent: Sequence[float], shape: _Shape) -> None:
    """Clipped weights pile up half a step outside the outermost codes: print how many there are.

    Drawn to scale they would leave the rest of the histogram flat.
    """
    edges = shape.position.edges
    outside = {-1: shape.low - 0.5, 1: shape.high + 0.5}
    piles = {
        side: [place for place, bin_ in enumerate(pairwise(edges)) if bin_[0] <= end <= bin_[1]]
        for side, end in outside.items()
    }
    inner = max(
        (
            share
            for place, share in enumerate(percent)
            if not any(place in pile for pile in piles.values())
        ),
        default=0.0,
    )
    # The panels share their axis: leave it as high as an earlier one needed it.
    known = 0.0 if axes.get_autoscaley_on() else axes.get_ylim()[1]
    axes.set_ylim(0, max(1.35 * inner, known, 0.1))
    for side, pile in piles.items():
        if pile and max(percent[place] for place in pile) > inner:
            axes.text(
                outside[side] - 0.1 * side,
                0.98,
                f"{sum(percent[place] for place in pile):.1f} %",
                transform=axes.get_xaxis_transform(),
                ha="left" if side < 0 else "right",
                va="top",
                fontsize=7,
            )


def _draw_distances(axes: Any, shapes: dict[str, _Shape], looks: Looks) -> None:
    for place, (method, shape) in enumerate(shapes.items()):
        edges = shape.distance.edges
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        axes.plot(
            middles,
            [100 * share for share in shape.distance.counts],
            color=looks.colour(method),
            marker=looks.marker(method),
            linestyle=looks.line(method),
            linewidth=1.1,
            # At other places for each method, where the curves lie on one another.
            markevery=(2 * place, max(1, len(middles) // 10)),
            label=label(method),
        )
    axes.set_xlim(left=0)
    axes.set_ylim(0, 110 * max(max(shape.distance.counts) for shape in shapes.values()))
    axes.set_xlabel("Distance to the nearest threshold (quantization steps)")
    axes.set_ylabel("Weights per bin (%)")


def _caption(bits: str, shapes: dict[str, _Shape]) -> str:
    near = []
    for method, shape in shapes.items():
        edge, share = _within(shape.distance)
        near.append(
            f"{label(method)} {100 * share:.1f} % within {edge:g} steps (n = {shape.seeds})"
        )
    return (
        f"All low-bit weights of the models at {bits.upper()} at the end of training, mean over "
        "seeds. Above: positions on the code axis, thresholds dashed; clipped weights pile up half "
        "a step outside the outermost codes, with their share printed where the axis cuts it off. "
        "Below: distance to the nearest threshold. Share of all weights close to a threshold: "
        f"{'; '.join(near)}."
    )


def _within(distance: Counts) -> tuple[float, float]:
    """The edge nearest to NEAR, and the share of weights below it."""
    edge = min(distance.edges[1:], key=lambda value: abs(value - NEAR))
    last = distance.edges.index(edge)
    return edge, sum(distance.counts[:last])
