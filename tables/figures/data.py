"""Read what figures need from run folders. Files that a run may lack give None, broken ones an
error.
"""

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tables.errors import TableError
from tables.figures.style import MAIN_METHODS, in_order
from tables.files import read_json
from tables.runs import Run, Study
from tables.seeds import mean, spread

_T = TypeVar("_T")

# Prefix of a key in a run's oscillation -> what it tells of.
PHASES = {"before_last_phase.": "before the last phase", "": "last phase"}

History = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class TracedWeight:
    """One weight over the recorded steps; position and code on the code axis.

    frequency: of its oscillation when the recording began.
    """

    layer: str
    index: int
    frequency: float
    position: tuple[float, ...]
    code: tuple[int, ...]


@dataclass(frozen=True)
class Trajectories:
    """trajectories.json: recorded steps, the one at which the last phase began, scales, weights."""

    steps: tuple[int, ...]
    last_phase: int
    scales: Mapping[str, tuple[float, ...]]
    weights: tuple[TracedWeight, ...]


@dataclass(frozen=True)
class Counts:
    """A histogram: n + 1 edges, n counts."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]

    def over(self, total: float) -> tuple[float, ...]:
        """Each count as a share of `total`."""
        return tuple(count / total for count in self.counts)


@dataclass(frozen=True)
class Histogram:
    """histogram.json: latent weights on the code axis, and their distances to a threshold.

    Distances beyond half a step, outside the outermost thresholds, are not counted.
    """

    low: int
    high: int
    position: Counts
    distance: Counts


def quantized(study: Study) -> list[Run]:
    """The study's runs with low-bit weights, outdated ones left out."""
    return [run for run in study.current if run.wbits < 32]


def left_out(study: Study) -> str:
    """A sentence on the outdated methods, to end a caption; empty where there are none."""
    names = "; ".join(study.method(key).label for key in study.outdated)
    return f" Left out: {names}." if names else ""


def bit_widths(runs: Iterable[Run]) -> list[str]:
    """The bit widths of the runs, such as `w2a2`, from low to high."""
    return [f"w{w}a{a}" for w, a in sorted({(run.wbits, run.abits) for run in runs})]


def lowest_bits(study: Study) -> list[Run]:
    """The runs at the lowest bit width of the study."""
    runs = quantized(study)
    return [run for run in runs if run.bits == bit_widths(runs)[0]]


def by_method(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each method, by seed; the paper's methods first."""
    known = sorted(runs, key=lambda run: run.seed)
    return {
        method: [run for run in known if run.method == method]
        for method in in_order(run.method for run in known)
    }


def main_or_all(runs: Sequence[Run]) -> list[Run]:
    """The runs of the paper's methods, or all where there are none of those."""
    return [run for run in runs if run.method in MAIN_METHODS] or list(runs)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation over seeds; None for a single one."""
    return mean(values), spread(values)


def history(run: Run) -> tuple[History, tuple[str, ...]]:
    """Columns of history.csv as numbers (None where empty), and the phase of each epoch."""
    path = run.folder / "history.csv"
    if not path.is_file():
        return {}, ()
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            rows, head = list(reader), reader.fieldnames or ()
    except (OSError, ValueError, csv.Error) as error:
        raise TableError(f"{path}: cannot be read ({error})") from error
    if "epoch" not in head:
        raise TableError(f"{path}: its first line names no column epoch")
    names = [name for name in (rows[0] if rows else {}) if name != "phase"]
    try:
        columns = {
            name: [float(row[name]) if row[name] else None for row in rows] for name in names
        }
    except (TypeError, ValueError) as error:
        raise TableError(f"{path}: a line is cut off or holds no number ({error})") from error
    return columns, tuple(row.get("phase", "") for row in rows)


def trajectories(run: Run) -> Trajectories | None:
    """The run's trajectories.json; None where there is none."""
    return _read(run.folder / "trajectories.json", _trajectories)


def histogram(run: Run) -> Histogram | None:
    """The run's histogram.json; None where there is none."""
    return _read(run.folder / "histogram.json", _histogram)


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sorting key that puts block 10 behind block 9."""
    return tuple(
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    )


def _read(path: Path, parse: Callable[[Mapping[str, Any]], _T]) -> _T | None:
    if not path.is_file():
        return None
    document = read_json(path)
    if not document:
        # A model without low-bit weights.
        return None
    try:
        return parse(document)
    except (KeyError, TypeError, ValueError) as error:
        raise TableError(f"{path}: not as figures need it ({error!r})") from error


def _trajectories(document: Mapping[str, Any]) -> Trajectories:
    steps = tuple(int(step) for step in document["steps"])
    scales = {
        str(name): _as_long(values, len(steps), str(name))
        for name, values in document["scales"].items()
    }
    weights = tuple(
        TracedWeight(
            layer=str(weight["layer"]),
            index=int(weight["index"]),
            frequency=float(weight["frequency"]),
            position=_as_long(weight["position"], len(steps), "position"),
            code=tuple(int(code) for code in _as_long(weight["code"], len(steps), "code")),
        )
        for weight in document["weights"]
    )
    return Trajectories(steps, int(document["last_phase"]), scales, weights)


def _as_long(values: Sequence[float], length: int, name: str) -> tuple[float, ...]:
    if len(values) != length:
        raise ValueError(f"{name} has {len(values)} values at {length} steps")
    return tuple(float(value) for value in values)


def _histogram(document: Mapping[str, Any]) -> Histogram:
    found = Histogram(
        low=int(document["low"]),
        high=int(document["high"]),
        position=_counts(document["position"]),
        distance=_counts(document["distance"]),
    )
    if sum(found.position.counts) <= 0:
        raise ValueError("it counts no weight")
    return found


def _counts(document: Mapping[str, Any]) -> Counts:
    edges = tuple(float(edge) for edge in document["edges"])
    return Counts(edges, _as_long(document["counts"], len(edges) - 1, "counts"))
