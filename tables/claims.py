"""What the runs say about each claim: one method against another, pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tables import seeds, text
from tables.alike import refuse_other_data, refuse_other_teacher
from tables.build import provenance, refuse_unlike_bits, subject
from tables.measured import bit_widths
from tables.names import method_name
from tables.notes import not_counted
from tables.runs import Run, Study
from tables.sheet import Grid, Item, Sheet, grid, known, line
from tables.spec import TableSpec

NAME = "claims"
# The question, the method it starts from, and the one that should be better.
CLAIMS = (
    ("StatsQ instead of LSQ", "lsq", "statsq"),
    ("... under QKR", "lsq_qkr", "statsq_qkr"),
    ("... under QKR and CGA", "lsq_qkr_cga", "ofq"),
    ("QKR added to LSQ", "lsq", "lsq_qkr"),
    ("QKR added to StatsQ", "statsq", "statsq_qkr"),
    ("CGA added to LSQ", "lsq", "lsq_cga"),
    ("CGA added to StatsQ", "statsq", "statsq_cga"),
    ("CGA added to StatsQ + QKR", "statsq_qkr", "ofq"),
    ("All of OFQ against LSQ", "lsq", "ofq"),
    ("SEQ (learned scale, mask) instead of StatsQ", "statsq", "seq"),
    ("... within OFQ", "ofq", "seq_qkr_cga"),
    ("Dampening added to LSQ", "lsq", "dampening"),
    ("Iterative freezing added to LSQ", "lsq", "freezing"),
    ("OBR added to LSQ", "lsq", "obr"),
    ("Q-EMA rounding added to LSQ", "lsq", "qema"),
    ("StableQAT's gradient in LSQ", "lsq", "stableqat"),
    ("LSQ+ instead of LSQ", "lsq", "lsqplus"),
    ("PACT instead of LSQ", "lsq", "pact"),
    ("Released code: StatsQ instead of LSQ", "lsq_released", "statsq_released"),
    ("Released code: QKR added to StatsQ", "statsq_released", "statsq_qkr_released"),
    ("Released code: CGA added to StatsQ + QKR", "statsq_qkr_released", "ofq_released"),
    ("OFQ as released instead of as described", "ofq", "ofq_released"),
)
# Beyond that many pairs every sign pattern is too many to count.
MOST_PAIRS = 20
SMALLEST_SHOWN = 0.001
_FIGURES = (
    ("top1", "Δ top-1"),
    ("last", "Δ osc. %, last phase"),
    ("before", "Δ osc. %, before"),
)


@dataclass(frozen=True)
class Paired:
    """Differences of one figure over pairs, in points."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return seeds.mean(self.values)

    @property
    def p(self) -> float:
        """See `sign_flip_p`."""
        return sign_flip_p(self.values)

    @property
    def positive(self) -> int:
        """How many are above zero."""
        return sum(value > 0 for value in self.values)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the paired sign-flip test, exact: the share of all sign patterns whose mean is
    at least as far from zero as the one observed.

    If neither method is better, a difference is as likely to have either sign. No distribution is
    assumed; with n pairs the smallest p is 2^(1-n).

    Raises:
        ValueError: there are no differences, or more than `MOST_PAIRS`.
    """
    if not 1 <= len(differences) <= MOST_PAIRS:
        raise ValueError(f"{len(differences)} differences: expected 1 to {MOST_PAIRS}")
    sums = np.zeros(1)
    for value in differences:
        sums = np.concatenate([sums + value, sums - value])
    # Sums of the same numbers in another order differ in their last bits.
    observed = abs(float(np.sum(differences)))
    tolerance = 1e-9 * max(1.0, float(np.sum(np.abs(differences))))
    return float(np.mean(np.abs(sums) >= observed - tolerance))


def claims_sheet(study: Study, spec: TableSpec) -> Sheet:
    """One line per claim whose two methods the study has; all bit widths together, then each.

    Outdated runs say nothing about a claim.
    """
    runs = [run for run in study.current if run.wbits == run.abits and run.wbits != 32]
    _refuse_unlike(runs, spec)
    bits = bit_widths(runs)
    groups: list[tuple[str, list[int]]] = [("All bit widths together", bits)] if bits[1:] else []
    groups += [(f"W{width}A{width}", [width]) for width in bits]
    found = {
        (title, claim): pairs
        for title, widths in groups
        for claim in CLAIMS
        if (pairs := _pairs(runs, claim[1], claim[2], widths))
    }
    return Sheet(
        name=NAME,
        title="Claims, pair by pair",
        subject=subject(study.runs[0]),
        caption=(
            "Differences between two methods over pairs of the same seed and bit width: mean ± "
            "sample standard deviation in points, in how many pairs it is above zero, and the "
            "two-sided p of an exact sign-flip test."
        ),
        grids=tuple(_grid(title, found) for title, _ in groups if _lines_of(title, found)),
        notes=(*_NOTES, *not_counted(study)),
        provenance=provenance(runs) if runs else "",
        records=tuple(_record(key, pairs) for key, pairs in found.items()),
        summary=_summary(found, groups[0][0] if groups else ""),
    )


_NOTES = (
    "Runs of one seed share start, teacher, data order and augmentation, at each bit width: what "
    "they have in common cancels. Pairs of one seed at several bit widths are not independent, so "
    "a p over all bit widths is optimistic.",
    "With n pairs no p can be below 2^(1-n): 0.25 for three, 0.0625 for five. No correction is "
    "made for the number of claims.",
    "Oscillation: share of weights with a frequency above 0.005, in percentage points, in the last "
    "phase and until then.",
)

_Found = dict[tuple[str, tuple[str, str, str]], dict[str, Paired]]


def _refuse_unlike(runs: list[Run], spec: TableSpec) -> None:
    """Per fidelity: what the released code does otherwise is what some claims are about."""
    for name in {method_name(run.method).fidelity for run in runs}:
        refuse_unlike_bits([r for r in runs if method_name(r.method).fidelity == name], spec)
    refuse_other_teacher(runs)
    refuse_other_data(runs)


def _pairs(runs: list[Run], one: str, other: str, widths: list[int]) -> dict[str, Paired]:
    by_place = {(run.method, run.wbits, run.seed): run for run in runs}
    places = sorted({(run.wbits, run.seed) for run in runs if run.wbits in widths})
    both = [
        (by_place[one, *place], by_place[other, *place])
        for place in places
        if (one, *place) in by_place and (other, *place) in by_place
    ]
    found = {}
    for key, _ in _FIGURES:
        values = [(_figure(first, key), _figure(second, key)) for first, second in both]
        differences = tuple(y - x for x, y in values if x is not None and y is not None)
        if differences and len(differences) == len(values) <= MOST_PAIRS:
            found[key] = Paired(differences)
    return found


def _figure(run: Run, key: str) -> float | None:
    if key == "top1":
        return run.top1
    name = {"last": "share", "before": "share_before_last_phase"}[key]
    share = run.oscillation.get(name)
    return None if share is None else 100 * share


def _lines_of(title: str, found: _Found) -> list[tuple[Item, ...]]:
    lines = []
    for (group, (question, _, _)), pairs in found.items():
        if group != title:
            continue
        cells = [str(len(next(iter(pairs.values())).values))]
        for key, _ in _FIGURES:
            pair = pairs.get(key)
            cells += [text.MISSING] * 3 if pair is None else _cells(pair)
        lines.append(line(question, *cells))
    return lines


def _cells(pair: Paired) -> list[str]:
    spread = text.spread(seeds.spread(pair.values))
    return [
        f"{text.signed(pair.mean)}{spread}",
        f"{pair.positive}/{len(pair.values)}",
        f"{pair.p:.3f}" if pair.p >= SMALLEST_SHOWN else f"< {SMALLEST_SHOWN}",
    ]


def _grid(title: str, found: _Found) -> Grid:
    headings = ["Claim", "n"]
    for _, heading in _FIGURES:
        headings += [heading, "above 0", "p"]
    return grid(title, headings, _lines_of(title, found))


def _record(key: tuple[str, tuple[str, str, str]], pairs: dict[str, Paired]) -> dict[str, Any]:
    group, (question, one, other) = key
    record: dict[str, Any] = {"bits": group, "claim": question, "from": one, "to": other}
    for name, _ in _FIGURES:
        pair = pairs.get(name)
        record |= {
            f"{name}_n": None if pair is None else len(pair.values),
            f"{name}_difference": None if pair is None else pair.mean,
            f"{name}_sd": None if pair is None else seeds.spread(pair.values),
            f"{name}_above_zero": None if pair is None else pair.positive,
            f"{name}_p": None if pair is None else pair.p,
        }
    return record


def _summary(found: _Found, group: str) -> dict[str, Any]:
    return {
        f"{one}_to_{other}": {
            name: known({"difference": pair.mean, "p": pair.p, "n": float(len(pair.values))})
            for name, pair in pairs.items()
        }
        for (title, (_, one, other)), pairs in found.items()
        if title == group
    }
