"""Budgets of what a training step may cost, in numbers that do not depend on the machine:

    python -m benchmarks.budgets            compare with tests/benchmarks/budgets.json
    python -m benchmarks.budgets --write    write what is measured into it

Budgets are exact: what costs less than its budget fails too, until the budget is lowered. They
are of torch's operators, not of `ofq_core.quant.kernels`, which need a compiler, and of one version
of torch, which decides how many operators an operation is made of.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.counting import count
from benchmarks.subjects import FULL_PRECISION, METHODS, SIZES, Step, make_model, threads

PATH = Path(__file__).resolve().parents[1] / "tests/benchmarks/budgets.json"
BATCH = 2
LOWER = "lower it: python -m benchmarks.budgets --write"
RAISE = "where that is meant, say why in the commit and run python -m benchmarks.budgets --write"

Numbers = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Configuration:
    """One step that has a budget; see `Step` for what the options mean."""

    size: str
    method: str
    option: str = ""

    @property
    def name(self) -> str:
        """As it stands in the file."""
        return "/".join(part for part in (self.size, self.method, self.option) if part)

    def step(self) -> Step:
        """The step, ready to be counted."""
        model, size = make_model(SIZES[self.size], self.method), SIZES[self.size]
        if self.option == "cga":
            return Step(model, size, BATCH, annealing=True)
        if self.option == "teacher":
            return Step(model, size, BATCH, teacher="forward")
        if self.option == "tracker":
            return Step(model, size, BATCH, track=0)
        if self.option == "tracker_sample":
            return Step(model, size, BATCH, track=1)
        return Step(model, size, BATCH)


def configurations() -> Iterator[Configuration]:
    """All that have a budget."""
    for size in ("micro", "deit_tiny"):
        for method in (FULL_PRECISION, *METHODS):
            yield Configuration(size, method)
    for option in ("cga", "teacher", "tracker", "tracker_sample"):
        yield Configuration("micro", "statsq", option)
        yield Configuration("micro", "statsq_qkr", option)


def measure(chosen: Iterator[Configuration] | list[Configuration]) -> Numbers:
    """The numbers of these configurations, by name."""
    with threads(1):
        return {each.name: count(each.step()).as_dict() for each in chosen}


def differences(measured: Numbers, budgets: Numbers) -> list[str]:
    """One line for each number that is not its budget, worst for the reader first: what is above.

    A configuration without a budget, and a budget without a configuration, are differences.
    """
    above, below = [], []
    for name in sorted(measured.keys() | budgets.keys()):
        if name not in measured or name not in budgets:
            where = "budget" if name not in budgets else "configuration"
            above.append(f"{name}: no {where}: python -m benchmarks.budgets --write")
            continue
        for what, value in measured[name].items():
            budget = budgets[name].get(what, 0)
            if value > budget:
                above.append(f"{name}: {what} {value:,} is above its budget {budget:,}; {RAISE}")
            elif value < budget:
                below.append(f"{name}: {what} {value:,} is below its budget {budget:,}; {LOWER}")
    return above + below


def read(path: Path = PATH) -> tuple[str, Numbers]:
    """torch's version that the budgets are of, and the budgets."""
    content = json.loads(path.read_text())
    return content["torch"], content["budgets"]


def torch_version() -> str:
    """torch's release, without what the wheel was built for."""
    return torch.__version__.split("+")[0]


def write(measured: Numbers, path: Path = PATH) -> None:
    """Make these the budgets."""
    content = {"torch": torch_version(), "batch": BATCH, "budgets": measured}
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budgets", description=__doc__)
    parser.add_argument("--write", action="store_true", help="make what is measured the budgets")
    arguments = parser.parse_args()
    measured = measure(configurations())
    if arguments.write:
        write(measured)
        print(f"{len(measured)} budgets written to {PATH}")
        return
    version, budgets = read()
    found = differences(measured, budgets)
    if found and version != torch_version():
        found.append(f"the budgets are of torch {version}, this is {torch_version()}")
    raise SystemExit("\n".join(found) if found else 0)


if __name__ == "__main__":
    main()
