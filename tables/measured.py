"""The runs of one method at one bit width, as means over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tables import seeds, text
from tables.alike import refuse_other_data, refuse_other_teacher, refuse_unlike
from tables.build import by_seed, refuse_unlike_bits
from tables.runs import Run, Study
from tables.seeds import Difference
from tables.sheet import Item, item
from tables.spec import TableSpec

FULL_PRECISION = "fp"


@dataclass(frozen=True)
class Measured:
    """Runs that differ in their seed alone; there may be none."""

    runs: tuple[Run, ...] = ()

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.runs)

    @property
    def mean(self) -> float | None:
        """Mean test top-1 in percent."""
        return seeds.mean([run.top1 for run in self.runs]) if self.runs else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the top-1; None for fewer than two runs."""
        return seeds.spread([run.top1 for run in self.runs]) if self.runs else None

    def top1(self) -> Item:
        """`94.12 ± 0.41 (3)`, or a dash."""
        if self.mean is None:
            return item(text.MISSING)
        return item(f"{text.fixed(self.mean)}{text.spread(self.spread)} ({self.n})")

    def difference(self, baseline: Measured) -> Difference | None:
        """Paired by seed, in points; None where the two share no seed."""
        return seeds.paired(by_seed(self.runs), by_seed(baseline.runs))

    def oscillation(self, key: str) -> float | None:
        """Mean of a figure of metrics.json's `oscillation`; None unless all runs have it."""
        return _mean([run.oscillation.get(key) for run in self.runs])

    def costs(self, key: str) -> list[float]:
        """A figure of metrics.json's `cost`, of all runs; empty unless all have it."""
        values = [run.costs[key] for run in self.runs if key in run.costs]
        return values if len(values) == self.n else []

    def cost(self, key: str) -> float | None:
        """The mean of `costs`."""
        values = self.costs(key)
        return seeds.mean(values) if values else None

    def record(self) -> dict[str, Any]:
        """The columns that all CSV files have in common."""
        return {
            "n": self.n,
            "top1_mean": self.mean,
            "top1_sd": self.spread,
            "seeds": ";".join(str(run.seed) for run in self.runs),
            "top1_by_seed": ";".join(repr(run.top1) for run in self.runs),
            "runs": ";".join(run.name for run in self.runs),
        }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return seeds.mean(known) if known and len(known) == len(values) else None


def measured(study: Study, method: str, bits: int) -> Measured:
    """The runs of `method` with so many bits for weights and activations; TableError if unlike."""
    return Measured(of_bits([run for run in study.runs if run.method == method], bits))


def of_bits(runs: Sequence[Run], bits: int) -> tuple[Run, ...]:
    """Those of some runs with so many bits for weights and activations; TableError if unlike."""
    chosen = [run for run in runs if run.wbits == run.abits == bits]
    refuse_unlike(chosen, ["seed"])
    return tuple(sorted(chosen, key=lambda run: run.seed))


def refuse_unlike_methods(runs: Sequence[Run], spec: TableSpec) -> None:
    """TableError unless the runs were made alike, by the rules of the ablation table."""
    quantized = [run for run in runs if run.method != FULL_PRECISION]
    refuse_unlike_bits(quantized, spec)
    refuse_other_teacher(quantized)
    refuse_other_data(runs)


def bit_widths(runs: Sequence[Run]) -> list[int]:
    """Bit widths of the quantized runs, narrow ones first."""
    return sorted({run.wbits for run in runs if run.wbits == run.abits != 32})
