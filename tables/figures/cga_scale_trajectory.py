"""The scale of one layer while CGA freezes weights: how long it keeps moving."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tables.figures.data import Trajectories, by_method, lowest_bits, natural, trajectories
from tables.figures.model import Drawing, MissingData
from tables.figures.style import (
    COLOURS,
    LINES,
    MARKERS,
    NEUTRAL,
    new_canvas,
    shared_legend,
)
from tables.names import MethodName, method_name
from tables.runs import Run, Study
from tables.seeds import mean

NAME = "cga_scale_trajectory"
TITLE = "The scale of a layer in the last phase"
# Settled: from there on within this share of its whole excursion around its last value.
SETTLED = 0.05
WITHOUT = "without CGA"
_KINDS = ("attn.v.weight", "attn.qkv.weight", "attn.qk", "attn.proj.weight")


@dataclass(frozen=True)
class _Curve:
    """Steps since the last phase began, and the change of the scale in percent, seed by seed."""

    name: str
    layer: str
    steps: tuple[int, ...]
    changes: Mapping[int, tuple[float, ...]]

    @property
    def mean(self) -> list[float]:
        """The mean over seeds at each step."""
        return [mean(values) for values in zip(*self.changes.values(), strict=True)]


def draw(study: Study) -> Drawing:
    """One curve for each boundary range, and one without CGA."""
    groups = {
        _name(group[0]): group
        for method, group in by_method(lowest_bits(study)).items()
        if _belongs(method_name(method))
    }
    curves = [curve for name in sorted(groups) if (curve := _curve(name, groups[name])) is not None]
    if not any(curve.name != WITHOUT for curve in curves):
        raise MissingData(
            "no run of OFQ at the lowest bit width has a trajectories.json that reaches into the "
            "last phase"
        )
    canvas = new_canvas(height=3.1)
    ranges = [curve.name for curve in curves if curve.name != WITHOUT]
    # Without CGA a scale may move a hundred times as far: the second panel is for those with.
    shown = [curves] if len(ranges) == len(curves) else [curves, curves[: len(ranges)]]
    panels = canvas.subplots(1, len(shown), squeeze=False)[0]
    for axes, some in zip(panels, shown, strict=True):
        axes.axhline(0, color="#999999", linewidth=0.8)
        for curve in some:
            place = ranges.index(curve.name) if curve.name in ranges else None
            _draw_curve(axes, place, curve)
        axes.set_xlabel("Steps since the last phase began")
    if len(shown) > 1:
        panels[0].set_title("With and without CGA")
        panels[1].set_title("With CGA")
    panels[0].set_ylabel("Change of the mean row scale (%)")
    shared_legend(canvas, panels, columns=5)
    return Drawing(
        canvas,
        _caption(next(iter(groups.values()))[0].bits, curves),
        ("curve", "layer", "seed", "step", "change_percent"),
        [
            (curve.name, curve.layer, seed, step, change)
            for curve in curves
            for seed, changes in curve.changes.items()
            for step, change in zip(curve.steps, changes, strict=True)
        ],
    )


def _belongs(method: MethodName) -> bool:
    """OFQ at any boundary range, and without CGA, at the study's own fidelity."""
    return method.weight == "statsq" and method.qkr and method.fidelity is None


def _name(run: Run) -> str:
    if not run.settings.get("quant.cga"):
        return WITHOUT
    return f"BR {run.settings.get('quant.boundary_range', method_name(run.method).boundary_range)}"


def _curve(name: str, runs: Sequence[Run]) -> _Curve | None:
    """The seeds that recorded the same steps of the same layer as the first of them."""
    layer = ""
    steps: tuple[int, ...] = ()
    changes: dict[int, tuple[float, ...]] = {}
    for run in runs:
        traced = trajectories(run)
        if traced is None or not traced.scales:
            continue
        own_layer = second_from_last(traced.scales)
        own_steps, own_changes = _since_last_phase(traced, own_layer)
        if len(own_steps) < 2:
            continue
        if not changes:
            layer, steps = own_layer, own_steps
        if (own_layer, own_steps) == (layer, steps):
            changes[run.seed] = own_changes
    return _Curve(name, layer, steps, changes) if changes else None


def second_from_last(layers: Mapping[str, object]) -> str:
    """The attention weight of the second block from the end, as block 10 of 12 in the paper.

    The value weight where there is one, else the joint one of query, key and value.
    """
    for kind in _KINDS:
        found = sorted((name for name in layers if name.endswith(kind)), key=natural)
        if found:
            return found[max(0, len(found) - 2)]
    ordered = sorted(layers, key=natural)
    return ordered[max(0, len(ordered) - 2)]


def _since_last_phase(
    traced: Trajectories, layer: str
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    scales = traced.scales[layer]
    kept = [place for place, step in enumerate(traced.steps) if step >= traced.last_phase]
    if not kept or scales[kept[0]] == 0:
        return (), ()
    start = scales[kept[0]]
    return (
        tuple(traced.steps[place] - traced.last_phase for place in kept),
        tuple(100 * (scales[place] / start - 1) for place in kept),
    )


def _draw_curve(axes: Any, place: int | None, curve: _Curve) -> None:
    """Seeds thin, their mean thick; the one without CGA in grey."""
    if place is None:
        look: dict[str, Any] = {"color": NEUTRAL, "linestyle": ":"}
        marker = ""
    else:
        look = {"color": COLOURS[place % len(COLOURS)], "linestyle": LINES[place % 3]}
        marker = MARKERS[place % len(MARKERS)]
    if len(curve.changes) > 1:
        for changes in curve.changes.values():
            axes.plot(curve.steps, changes, **look, linewidth=0.6, alpha=0.4)
    every = max(1, len(curve.steps) // 8)
    axes.plot(curve.steps, curve.mean, **look, marker=marker, markevery=every, label=curve.name)


def settling_step(steps: Sequence[int], changes: Sequence[float]) -> int:
    """The step from which the values stay within SETTLED of their excursion of the last one."""
    allowed = SETTLED * (max(changes) - min(changes))
    settled = len(changes) - 1
    while settled > 0 and abs(changes[settled - 1] - changes[-1]) <= allowed:
        settled -= 1
    return steps[settled]


def _caption(bits: str, curves: Sequence[_Curve]) -> str:
    layers = sorted({curve.layer for curve in curves}, key=natural)
    told = "; ".join(
        f"{curve.name} {settling_step(curve.steps, curve.mean)} steps "
        f"({curve.mean[-1]:+.2g} % in all, n = {len(curve.changes)})".replace(
            "(-", "(\N{MINUS SIGN}"
        )
        for curve in curves
    )
    return (
        f"Mean StatsQ scale of {' and '.join(layers)} at {bits.upper()}, relative to the start of "
        "the last phase, in which CGA freezes all weights farther than the boundary range (BR) "
        "from a threshold; seeds thin, their mean thick. Settled, that is within "
        f"{100 * SETTLED:.0f} % of the curve's excursion of its last value, after: {told}."
    )
