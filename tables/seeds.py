"""Mean, spread and paired differences over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """A method minus the baseline, seed by seed, in percentage points."""

    mean: float
    spread: float | None
    pairs: int


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean in the unit of `values`, summed exactly so that order moves no digit."""
    return math.fsum(values) / len(values)


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n-1) in the unit of `values`; None for a single value."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Difference over the seeds that both have; None if they share none.

    Runs of one seed share start, data order and augmentation, so what they have in common cancels
    in their difference; its spread, not that of the means, says how sure a gain is.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = [values[seed] - baseline[seed] for seed in seeds]
    return Difference(mean(differences), spread(differences), len(seeds))
