"""OFQ against the boundary range of CGA (Table 4 of the paper)."""

from __future__ import annotations

import csv
from typing import Any

from tables import text
from tables.alike import refuse_other_data, refuse_other_teacher, refuse_unlike
from tables.build import missing_reason, provenance, subject
from tables.errors import TableError
from tables.measured import Measured, bit_widths, of_bits
from tables.names import method_name
from tables.notes import TRUST_NOTE, not_counted
from tables.published import PublishedNumbers
from tables.runs import Run, Study
from tables.sheet import Grid, Item, Sheet, grid, item, known, line, percent
from tables.spec import TableSpec

NAME = "boundary"
_RANGE = "quant.boundary_range"
# The bit width of the published sweep, for studies that have no run to show.
_BITS = (2,)


def boundary_sheet(study: Study, spec: TableSpec, published: PublishedNumbers) -> Sheet:
    """One line per boundary range; TableError if the runs differ in more than that."""
    runs = [run for run in study.runs if _is_ofq(run)]
    _refuse_unlike(runs, spec)
    known_values = published.section("boundary_range")
    wanted = [float(value) for value in known_values.get("values", [])]
    ranges = sorted({*wanted, *(_range_of(run) for run in runs)})
    own = next((_range_of(run) for run in runs if run.method == "ofq"), None)
    varied = [run for run in runs if run.method != "ofq"]
    bits = bit_widths(varied) or bit_widths(runs) or list(_BITS)
    cells = {
        (value, width): Measured(of_bits([r for r in runs if _range_of(r) == value], width))
        for value in ranges
        for width in bits
    }
    best = float(known_values["best"]) if "best" in known_values else None
    trust = str(known_values.get("trust", ""))

    def claim(value: float) -> Item:
        if value == best:
            return item("best", trust if trust != "primary" else "")
        return item("not found" if value in wanted else text.MISSING, tone="soft")

    return Sheet(
        name=NAME,
        title="Boundary range of CGA",
        subject=subject((runs or list(study.runs))[0]),
        caption=(
            "OFQ with the boundary range of its last phase varied: test top-1 (%), mean ± sample "
            "standard deviation (n seeds); difference to the study's own range in points, paired "
            "by seed; oscillating weights; share of weights that were free in the last epoch."
        ),
        grids=tuple(
            _grid(width, ranges, own, {r: cells[r, width] for r in ranges}, study, claim)
            for width in bits
        ),
        notes=tuple(_notes(study, runs, own, str(known_values.get("note", "")))),
        provenance=provenance(runs) if runs else "",
        records=tuple(
            _record(value, width, own, cells, claim(value)) for width in bits for value in ranges
        ),
        summary=_summary(cells),
    )


def _is_ofq(run: Run) -> bool:
    name = method_name(run.method)
    return (name.weight, name.qkr, name.cga, name.fidelity) == ("statsq", True, True, None)


def _range_of(run: Run) -> float:
    value = run.settings.get(_RANGE)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TableError(f"{run.folder / 'settings.yaml'}: key '{_RANGE}' is {value!r}, no number")
    return float(value)


def _key(boundary_range: float) -> str:
    """As in the names of methods; a dot would part the keys of a JSON file."""
    return f"br{boundary_range:g}".replace(".", "p")


def _refuse_unlike(runs: list[Run], spec: TableSpec) -> None:
    may_differ = [_RANGE, "method", "seed"]
    between_bits = ["quant.wbits", "quant.abits", *spec.may_differ_between_bits]
    refuse_unlike(runs, [*may_differ, *between_bits])
    for width in bit_widths(runs):
        refuse_unlike([run for run in runs if run.wbits == width], may_differ)
    refuse_other_teacher(runs)
    refuse_other_data(runs)


def free_share(run: Run) -> float | None:
    """`free_share` in the last line of history.csv; None where it does not say."""
    path = run.folder / "history.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: cannot be read ({error})") from error
    words = lines[-1].get("free_share") if lines else None
    if not words:
        return None
    try:
        value = float(words)
    except ValueError as error:
        raise TableError(f"{path}: free_share is '{words}', expected a number") from error
    if not 0 <= value <= 1:
        raise TableError(f"{path}: free_share is {words}, expected 0 to 1")
    return value


def _free(cell: Measured) -> float | None:
    shares = [share for run in cell.runs if (share := free_share(run)) is not None]
    return sum(shares) / len(shares) if shares and len(shares) == cell.n else None


def _grid(
    width: int,
    ranges: list[float],
    own: float | None,
    cells: dict[float, Measured],
    study: Study,
    claim: Any,
) -> Grid:
    def difference(value: float) -> str:
        if own is None or not cells[value].n:
            return text.MISSING
        if value == own:
            return "own"
        return text.paired(cells[value].difference(cells[own]), cells[value].n)

    def top1(value: float) -> Item:
        if cells[value].n:
            return cells[value].top1()
        reason = missing_reason(study, f"ofq_{_key(value)}", width)
        return item("not run" if reason == "no run" else reason, tone="soft")

    return grid(
        f"W{width}A{width}",
        ["Boundary range", "Top-1 (%)", f"Δ {own:g}" if own else "Δ", "Osc. %", "Free %", "Publ."],
        [
            line(
                f"{value:g}",
                top1(value),
                difference(value),
                percent(cells[value].oscillation("share")),
                percent(_free(cells[value])),
                claim(value),
            )
            for value in ranges
        ],
    )


def _record(
    value: float,
    width: int,
    own: float | None,
    cells: dict[tuple[float, int], Measured],
    claim: Item,
) -> dict[str, Any]:
    cell = cells[value, width]
    baseline = cells[own, width] if own is not None else Measured()
    difference = None if value == own else cell.difference(baseline)
    return {
        "boundary_range": value,
        "wbits": width,
        "abits": width,
        "status": "run" if cell.n else "not run",
        **cell.record(),
        "difference_mean": difference.mean if difference else None,
        "difference_sd": difference.spread if difference else None,
        "difference_pairs": difference.pairs if difference else None,
        "oscillation_share": cell.oscillation("share"),
        "free_share": _free(cell),
        "published": claim.words if claim.words != text.MISSING else "",
        "published_trust": claim.mark,
    }


def _summary(cells: dict[tuple[float, int], Measured]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for (value, width), cell in cells.items():
        if cell.n:
            summary.setdefault(_key(value), {})[f"w{width}a{width}"] = known(
                {
                    "top1_mean": cell.mean,
                    "top1_sd": cell.spread,
                    "n": cell.n,
                    "oscillation_share": cell.oscillation("share"),
                    "free_share": _free(cell),
                }
            )
    return summary


def _notes(study: Study, runs: list[Run], own: float | None, published: str) -> list[str]:
    notes = [
        "A weight is free while its distance to the nearest threshold is below the boundary range, "
        "in quantization steps; all others are held in the last phase.",
        f"Published: which range is best; {published or 'accuracies not found'}. Its ranges are "
        "among the lines above.",
        TRUST_NOTE,
    ]
    if not runs:
        notes.append("Not run: the study has no run of OFQ.")
    elif all(_range_of(run) == own for run in runs):
        notes.append(
            "Not run: methods named ofq_br0p003 and the like add the other ranges to a study."
        )
    return notes + not_counted(study)
