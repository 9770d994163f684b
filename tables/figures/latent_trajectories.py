"""The weights that oscillate most, step by step."""

from collections.abc import Sequence
from typing import Any

from tables.figures.data import TracedWeight, Trajectories, by_method, lowest_bits, trajectories
from tables.figures.model import Drawing, MissingData
from tables.figures.style import COLOURS, LINES, MARKERS, label, new_canvas
from tables.runs import Run, Study
from tables.seeds import mean

NAME = "latent_trajectories"
TITLE = "Paths of the most oscillating weights"
METHODS = ("lsq", "statsq", "ofq")
SHOWN = 3
# Steps from a threshold within which the axis is linear.
LINEAR = 0.01
_COLOURS = (COLOURS[1], COLOURS[0], COLOURS[2])


def draw(study: Study) -> Drawing:
    """Positions from the nearest threshold over the recorded steps, one panel per method."""
    runs = [run for run in lowest_bits(study) if run.method in METHODS]
    traced = {
        method: found
        for method, group in by_method(runs).items()
        if (found := _first_traced(group)) is not None
    }
    if not traced:
        raise MissingData(
            f"no run of {', '.join(METHODS)} at the lowest bit width has a trajectories.json with "
            "weights"
        )
    canvas = new_canvas(height=1.0 + 1.45 * len(traced))
    panels = canvas.subplots(len(traced), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    rows: list[tuple[object, ...]] = []
    for axes, (method, (run, paths)) in zip(panels, traced.items(), strict=True):
        shown = most_oscillating(paths.weights)
        for place, weight in enumerate(shown):
            threshold = nearest_threshold(weight, run.wbits)
            _draw_path(axes, paths, weight, threshold, place)
            rows += [
                (method, run.seed, weight.layer, weight.index, threshold, step, position, code)
                for step, position, code in zip(
                    paths.steps, weight.position, weight.code, strict=True
                )
            ]
        _draw_frame(axes, paths)
        axes.set_title(label(method))
    panels[-1].set_xlabel("Step")
    return Drawing(
        canvas,
        f"The {SHOWN} weights with the highest oscillation frequency in one run per method (seed "
        f"{_seeds(traced)}) at {runs[0].bits.upper()}: latent position relative to the threshold "
        f"that it is nearest to on average (dashed), linear within {LINEAR} steps of it, else "
        "logarithmic; dots: the code differs from that of the recorded step before; grey line: "
        "start of the last phase. The weights were chosen, and their frequencies taken, when the "
        f"recording began: {_frequencies(traced)}.",
        ("method", "seed", "layer", "index", "threshold", "step", "position", "code"),
        rows,
    )


def most_oscillating(weights: Sequence[TracedWeight]) -> list[TracedWeight]:
    """The SHOWN weights with the highest frequency; ties by layer and index."""
    return sorted(weights, key=lambda weight: (-weight.frequency, weight.layer, weight.index))[
        :SHOWN
    ]


def _first_traced(runs: Sequence[Run]) -> tuple[Run, Trajectories] | None:
    for run in runs:
        paths = trajectories(run)
        if paths is not None and paths.weights and paths.steps:
            return run, paths
    return None


def nearest_threshold(weight: TracedWeight, bits: int) -> float:
    """The threshold t + 1/2 that the weight is nearest to on average."""
    half = 2 ** (bits - 1)
    middle = mean(weight.position)
    return min((code + 0.5 for code in range(-half, half - 1)), key=lambda t: abs(t - middle))


def _draw_path(
    axes: Any, paths: Trajectories, weight: TracedWeight, threshold: float, place: int
) -> None:
    offsets = [position - threshold for position in weight.position]
    flips = [at for at in range(1, len(weight.code)) if weight.code[at] != weight.code[at - 1]]
    axes.plot(
        paths.steps,
        offsets,
        color=_COLOURS[place],
        linestyle=LINES[place],
        linewidth=1.1 if len(paths.steps) < 300 else 0.6,
        marker=MARKERS[place],
        markersize=3,
        markevery=flips,
        label=f"{weight.layer} [{weight.index}]",
    )


def _draw_frame(axes: Any, paths: Trajectories) -> None:
    """The threshold, the last phase, and a legend beside the title."""
    axes.axhline(0, color="black", linestyle="--", linewidth=0.8)
    axes.axvline(paths.last_phase, color="#888888", linewidth=2, alpha=0.6)
    axes.set_yscale("symlog", linthresh=LINEAR, linscale=0.8)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("From threshold\n(steps)")
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=SHOWN, fontsize=6.5, borderaxespad=0.1
    )


def _seeds(traced: dict[str, tuple[Run, Trajectories]]) -> str:
    return ", ".join(str(seed) for seed in sorted({run.seed for run, _ in traced.values()}))


def _frequencies(traced: dict[str, tuple[Run, Trajectories]]) -> str:
    return "; ".join(
        f"{label(method)} "
        + ", ".join(f"{weight.frequency:.3f}" for weight in most_oscillating(paths.weights))
        for method, (_, paths) in traced.items()
    )
