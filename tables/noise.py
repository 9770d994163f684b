"""Noise injection (Table 1 of the paper): at random positions, or just beside thresholds.

Read from noise.json of a study: `trials`, and `rows` with method, bits, seed, boundary_range,
clean_top1 (%), weights, inside (how many of them are within the boundary range, and so how many get
noise), and `boundary` and `random`, each with the top1 (%) of every trial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import seeds, text
from tables.build import subject
from tables.errors import TableError
from tables.files import read_json
from tables.names import method_name
from tables.notes import TRUST_NOTE, not_counted
from tables.published import PublishedNumbers
from tables.runs import Study
from tables.sheet import Grid, Sheet, grid, item, line, mean_and_spread

NAME = "noise"
FILE = "noise.json"
_WHERE = ("random", "boundary")


@dataclass(frozen=True)
class _Row:
    """One run with noise; accuracies in percent, one per trial."""

    method: str
    bits: int
    seed: int
    boundary_range: float
    clean: float
    weights: int
    inside: int
    perturbed: int
    top1: dict[str, list[float]]

    def drop(self, where: str) -> float:
        """Points lost to noise, in the mean over trials."""
        return self.clean - seeds.mean(self.top1[where])

    @property
    def key(self) -> tuple[Any, ...]:
        """The order of rows, and what no two of them share."""
        return (*method_name(self.method).rank, self.bits, self.seed, self.boundary_range)


def noise_sheet(study: Study, published: PublishedNumbers, path: Path) -> Sheet:
    """A line per run in `path`; no line where there is no such file. TableError if it is broken."""
    rows, trials = _read(path) if path.is_file() else ([], 0)
    there = published.section("noise_injection")
    missing = str(there.get("note", "values not found"))
    return Sheet(
        name=NAME,
        title="Noise injection",
        subject=subject(study.runs[0]),
        caption=(
            "Test top-1 (%) of finished runs with the codes of some weights flipped to the other "
            "side of the nearest threshold: a random half of the weights inside the boundary "
            "range, against as many anywhere. Mean ± sample standard deviation over trials; drop "
            "from the clean run in points."
        ),
        grids=(_grid(rows),),
        notes=(*_notes(rows, trials, there, missing), *not_counted(study)),
        provenance="",
        records=tuple(_record(row) for row in rows),
        summary=_summary(rows),
    )


def _grid(rows: list[_Row]) -> Grid:
    headings = ["Method", "Bits", "Seed", "Clean", "Weights", "of all (%)"]
    headings += ["Random", "Drop", "Boundary", "Drop", "Publ."]
    if not rows:
        nothing = [item(text.MISSING)] * (len(headings) - 2)
        return Grid("", tuple(headings), ((item("not run", tone="soft"), *nothing, _ABSENT),))
    return grid(
        "",
        headings,
        [
            line(
                method_name(row.method).label,
                f"W{row.bits}A{row.bits}",
                str(row.seed),
                text.fixed(row.clean),
                str(row.perturbed),
                text.fixed(100 * row.perturbed / row.weights),
                *(
                    words
                    for where in _WHERE
                    for words in (mean_and_spread(row.top1[where]), text.signed(row.drop(where)))
                ),
                _ABSENT,
            )
            for row in rows
        ],
    )


_ABSENT = item("not found", tone="soft")


def _notes(rows: list[_Row], trials: int, there: dict[str, Any], missing: str) -> list[str]:
    model = there.get("model", "")
    notes = [
        "Every flip moves a quantized weight by one step, scales stay. Where flips inside the "
        "boundary range cost less than elsewhere, the codes of the weights beside a threshold "
        "matter less than those of others.",
        f"Published: {there.get('trials', 'several')} trials with a quantized {model}; {missing}.",
        TRUST_NOTE,
    ]
    if not rows:
        notes.insert(0, f"Not run: the study has no {FILE}.")
        return notes
    ranges = sorted({row.boundary_range for row in rows})
    shown = ", ".join(f"{value:g}" for value in ranges)
    notes.insert(
        0,
        f"{trials} trials per run, boundary range {shown} quantization steps. ± tells of the "
        "positions drawn, not of seeds.",
    )
    return notes


def _record(row: _Row) -> dict[str, Any]:
    record: dict[str, Any] = {
        "method": row.method,
        "label": method_name(row.method).label,
        "wbits": row.bits,
        "abits": row.bits,
        "seed": row.seed,
        "boundary_range": row.boundary_range,
        "clean_top1": row.clean,
        "weights": row.weights,
        "inside": row.inside,
        "perturbed": row.perturbed,
        "perturbed_share": row.perturbed / row.weights,
    }
    for where in _WHERE:
        values = row.top1[where]
        record |= {
            f"{where}_top1_mean": seeds.mean(values),
            f"{where}_top1_sd": seeds.spread(values),
            f"{where}_drop": row.drop(where),
            f"{where}_top1_by_trial": ";".join(map(repr, values)),
        }
    return record


def _summary(rows: list[_Row]) -> dict[str, Any]:
    """method -> w2a2 -> means over seeds; boundary ranges apart from the first are left out."""
    groups: dict[tuple[str, int], list[_Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.bits), []).append(row)
    summary: dict[str, Any] = {}
    for (method, bits), group in groups.items():
        same = [row for row in group if row.boundary_range == group[0].boundary_range]
        summary.setdefault(method, {})[f"w{bits}a{bits}"] = {
            "n": len(same),
            "clean_top1": seeds.mean([row.clean for row in same]),
            "perturbed_share": seeds.mean([row.perturbed / row.weights for row in same]),
            **{f"{where}_drop": seeds.mean([row.drop(where) for row in same]) for where in _WHERE},
        }
    return summary


def _read(path: Path) -> tuple[list[_Row], int]:
    document = read_json(path)
    trials = _whole(document, "trials", path, "")
    entries = document.get("rows")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TableError(f"{path}: key 'rows' is missing or not a list of mappings")
    rows = [_row(entry, trials, path, f"rows[{index}].") for index, entry in enumerate(entries)]
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        if row.key in seen:
            raise TableError(
                f"{path}: two rows are method {row.method}, {row.bits} bits, seed {row.seed}, "
                f"boundary range {row.boundary_range:g}"
            )
        seen.add(row.key)
    return sorted(rows, key=lambda row: row.key), trials


def _row(entry: dict[str, Any], trials: int, path: Path, where: str) -> _Row:
    method = entry.get("method")
    if not isinstance(method, str):
        raise TableError(f"{path}: key '{where}method' is missing or not a name")
    keys = ("weights", "inside", "perturbed")
    weights, inside, perturbed = (_whole(entry, key, path, where) for key in keys)
    if not 0 < weights >= inside:
        raise TableError(f"{path}: key '{where}inside' is {inside}, of {weights} weights")
    if perturbed > inside:
        raise TableError(f"{path}: key '{where}perturbed' is {perturbed}, of {inside} inside")
    top1 = {}
    for kind in _WHERE:
        section = entry.get(kind)
        values = section.get("top1") if isinstance(section, dict) else None
        if not isinstance(values, list) or len(values) != trials or not trials:
            raise TableError(f"{path}: key '{where}{kind}.top1' does not hold {trials} trials")
        top1[kind] = [_top1(value, path, f"{where}{kind}.top1") for value in values]
    return _Row(
        method=method,
        bits=_whole(entry, "bits", path, where),
        seed=_whole(entry, "seed", path, where),
        boundary_range=_number(entry.get("boundary_range"), path, f"{where}boundary_range"),
        clean=_top1(entry.get("clean_top1"), path, f"{where}clean_top1"),
        weights=weights,
        inside=inside,
        perturbed=perturbed,
        top1=top1,
    )


def _whole(entry: dict[str, Any], key: str, path: Path, where: str) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TableError(f"{path}: key '{where}{key}' is {value!r}, expected a whole number")
    return value


def _number(value: Any, path: Path, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TableError(f"{path}: key '{key}' is {value!r}, expected a number")
    return float(value)


def _top1(value: Any, path: Path, key: str) -> float:
    top1 = _number(value, path, key)
    if not 0 <= top1 <= 100:
        raise TableError(f"{path}: key '{key}' is {top1}, expected 0 to 100")
    return top1
