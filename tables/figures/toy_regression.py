"""One weight and its scale in a regression whose optimum lies between the values of the grid.

Drawn from the committed toy_regression.json: `python -m ofq_core.toy` prints it anew.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tables.figures.model import Drawing
from tables.figures.style import NEUTRAL, Looks, label, new_canvas, shared_legend
from tables.files import read_json
from tables.runs import Study

NAME = "toy_regression"
TITLE = "A weight and its scale in a toy regression"
DOCUMENT = Path(__file__).with_suffix(".json")


def draw(study: Study) -> Drawing:
    """The last steps of LSQ and StatsQ, the same for every study: they need no run of it."""
    return drawing_of(read_json(DOCUMENT))


def drawing_of(toy: Mapping[str, Any]) -> Drawing:
    """One column per method; of the weight that flips most what it is quantized to, its latent
    value, and the scale.
    """
    methods = toy["methods"]
    looks = Looks(methods)
    canvas = new_canvas(height=4.6)
    panels = canvas.subplots(3, len(methods), sharex=True, squeeze=False)
    steps = range(toy["first"], toy["steps"])
    rows: list[tuple[object, ...]] = []
    for column, (method, run) in enumerate(methods.items()):
        weight = _most_flipping(run)
        latent = [values[weight] for values in run["latent"]]
        quantized = [values[weight] for values in run["quantized"]]
        scale = run["scale"]
        middle = sum(scale) / len(scale)
        threshold = _nearest_threshold(run["thresholds"], latent, middle)
        thresholds = [threshold * value for value in scale]
        changes = [100 * (value / middle - 1) for value in scale]
        colour = looks.colour(method)
        above, between, below = panels[:, column]
        above.axhline(
            toy["target"][weight], color="black", linestyle="--", linewidth=1, label="optimum"
        )
        above.step(
            steps, quantized, where="post", color=NEUTRAL, linewidth=0.8, label="quantized weight"
        )
        above.set_title(f"{label(method)}, weight {weight + 1} of {len(toy['target'])}")
        between.plot(
            steps, thresholds, color="black", linestyle=":", linewidth=1.2, label="threshold"
        )
        between.plot(steps, latent, color=colour, label=f"latent weight, {label(method)}")
        below.plot(steps, changes, color=colour, linestyle="-.", label=f"scale, {label(method)}")
        below.set_xlabel("Step")
        rows += zip(
            [method] * len(steps), steps, [weight] * len(steps), latent, quantized, thresholds,
            scale, changes, strict=True,
        )  # fmt: skip
    for row in panels:
        _level(row)
    for axes, words in zip(
        panels[:, 0], ("Quantized", "Latent", "Scale, from\nits mean (%)"), strict=True
    ):
        axes.set_ylabel(words)
    shared_legend(canvas, panels.flat, columns=4)
    return Drawing(
        canvas,
        _caption(toy),
        (
            "method", "step", "weight", "latent", "quantized", "threshold", "scale",
            "scale_change_percent",
        ),
        rows,
    )  # fmt: skip


def _level(row: Sequence[Any]) -> None:
    """Give the panels of a row the same span around their own middle, so that they compare."""
    limits = [axes.get_ylim() for axes in row]
    span = max(high - low for low, high in limits)
    for axes, (low, high) in zip(row, limits, strict=True):
        axes.set_ylim((low + high - span) / 2, (low + high + span) / 2)


def _nearest_threshold(thresholds: Sequence[float], latent: Sequence[float], scale: float) -> float:
    """The decision point that the weight is at, in units of the scale, with which it moves."""
    middle = sum(latent) / len(latent)
    return min(thresholds, key=lambda threshold: abs(threshold * scale - middle))


def _most_flipping(run: Mapping[str, Any]) -> int:
    flips: list[float] = run["flips"]
    return flips.index(max(flips))


def _caption(toy: Mapping[str, Any]) -> str:
    optimum = ", ".join(f"{value:g}" for value in toy["target"])
    optimum = optimum.replace("-", "\N{MINUS SIGN}")
    parts = [
        f"Linear regression with {len(toy['target'])} weights at {toy['bits']} bits, N(0, 1) "
        f"inputs, plain SGD (batch {toy['batch']}, rate {toy['rate']:g}) from the optimum "
        f"({optimum}), which is not on the grid; the last "
        f"{toy['steps'] - toy['first']} of {toy['steps']} steps of the weight that flips most."
    ]
    for method, run in toy["methods"].items():
        parts.append(
            f"{label(method)}: {max(run['flips']):.0f} flips of it per 100 steps in the last half "
            f"({sum(run['flips']):.0f} of all weights), standard deviation of the scale "
            f"{100 * run['scale_spread']:.1f} % of its mean; over {len(run['other_flips'])} other "
            f"random optima, median {median(run['other_flips']):.0f} flips of all weights and "
            f"{100 * median(run['other_scale_spread']):.1f} %."
        )
    parts.append(_verdict(toy["methods"]))
    return " ".join(part for part in parts if part)


def _verdict(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """What the two columns say of each other, whichever way it comes out."""
    if not {"lsq", "statsq"} <= methods.keys():
        return ""
    lsq, statsq = methods["lsq"], methods["statsq"]
    fewer = sum(
        ours < theirs
        for ours, theirs in zip(statsq["other_flips"], lsq["other_flips"], strict=True)
    )
    steadier = sum(
        ours < theirs
        for ours, theirs in zip(
            statsq["other_scale_spread"], lsq["other_scale_spread"], strict=True
        )
    )
    total = len(lsq["other_flips"])
    told = (
        f"StatsQ flips less than LSQ at {fewer} and has the steadier scale at {steadier} of those "
        f"{total} optima"
    )
    end = (
        ": a scale that is not learned does not end oscillation here." if fewer < total / 2 else "."
    )
    return told + end
