"""Measure, write benchmarks/latest.json, and render benchmarks/README.md from it:

    python -m benchmarks [PART ...] [--rounds N] [--batch N] [--sizes SIZE ...] [--threads N]

`make bench ARGS="..."` does the same. What was measured of other parts stays, with its own machine
and date, so a part can be measured again, or elsewhere (gpu), by itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cell import measure_cell
from benchmarks.gpu import measure_gpu
from benchmarks.growth import measure_growth
from benchmarks.loader import measure_loader
from benchmarks.machine import describe
from benchmarks.page import render
from benchmarks.pieces import measure_pieces
from benchmarks.plot import growth_svg
from benchmarks.steps import (
    Options,
    measure_annealing,
    measure_distillation,
    measure_steps,
    measure_tracker,
)
from benchmarks.subjects import SIZES

FOLDER = Path(__file__).parent
LATEST, README, PLOT = FOLDER / "latest.json", FOLDER / "README.md", FOLDER / "growth.svg"

PARTS: dict[str, Callable[[Options], dict[str, Any]]] = {
    "steps": measure_steps,
    "distillation": measure_distillation,
    "annealing": measure_annealing,
    "tracker": measure_tracker,
    "gpu": measure_gpu,
    "cell": lambda options: measure_cell(max(1, options.rounds // 2)),
    "growth": measure_growth,
    "loader": lambda options: measure_loader([0, 1, 2], max(2, options.rounds // 2), 96),
    "pieces": lambda options: measure_pieces(0.1 * options.rounds),
}


# Parts whose steps of DeiT take the batch of the command line.
BATCHED = ("steps", "distillation", "annealing", "tracker")


def update(
    latest: dict[str, Any],
    name: str,
    result: dict[str, Any],
    threads: int,
    batch: int | None = None,
) -> None:
    """Put a part into what is known, in the order of `PARTS`.

    A part that could not be measured here takes the place of no earlier one that was elsewhere.
    """
    if "missing" in result and "missing" not in latest.get(name, {}).get("result", {"missing": ""}):
        return
    machine = describe(threads) | ({} if batch is None else {"batch": batch})
    latest[name] = {"machine": machine, "result": result}
    for known in [part for part in PARTS if part in latest]:
        latest[known] = latest.pop(known)


def write(latest: dict[str, Any], folder: Path = FOLDER) -> None:
    """latest.json, README.md and the figure."""
    (folder / LATEST.name).write_text(json.dumps(latest, indent=1) + "\n")
    (folder / README.name).write_text(render(latest))
    if "growth" in latest:
        (folder / PLOT.name).write_bytes(growth_svg(latest["growth"]["result"]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Options()
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=default.rounds)
    parser.add_argument("--batch", type=int, default=default.batch)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(default.sizes))
    parser.add_argument("--threads", type=int, default=default.threads)
    parser.add_argument("--eager", action="store_true", help="do not measure compiled blocks")
    parser.add_argument("--render", action="store_true", help="write the page, measure nothing")
    arguments = parser.parse_args()
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}: expected {', '.join(PARTS)}")
    options = Options(
        sizes=tuple(arguments.sizes),
        batch=arguments.batch,
        rounds=arguments.rounds,
        threads=arguments.threads,
        compiled=not arguments.eager,
    )
    latest = json.loads(LATEST.read_text()) if LATEST.exists() else {}
    for part in [] if arguments.render else arguments.parts or list(PARTS):
        print(f"measuring {part}", flush=True)
        batch = arguments.batch if part in BATCHED else None
        update(latest, part, PARTS[part](options), arguments.threads, batch)
        write(latest)
    write(latest)
    print(render(latest))


if __name__ == "__main__":
    main()
