"""One side of `benchmarks.against`: counts the micro model's steps, then times them on request.

Prints one JSON line with the counts; then, for each line read, one with seconds of processor time
per step by configuration. Ends with its input.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

import ofq_core
from benchmarks.budgets import Configuration
from benchmarks.counting import count
from benchmarks.subjects import FULL_PRECISION

CONFIGURATIONS = [
    Configuration("micro", FULL_PRECISION),
    Configuration("micro", "lsq"),
    Configuration("micro", "statsq"),
    Configuration("micro", "statsq_qkr"),
    Configuration("micro", "statsq_qkr", "cga"),
]
STEPS = 5


def main() -> None:
    """Count, then wait for work."""
    here = Path.cwd().resolve()
    if here not in Path(ofq_core.__file__).resolve().parents:
        raise SystemExit(f"ofq_core is {ofq_core.__file__}, which is not in {here}")
    torch.set_num_threads(1)
    steps = {each.name: each.step() for each in CONFIGURATIONS}
    print(json.dumps({name: count(step).as_dict() for name, step in steps.items()}), flush=True)
    for _ in sys.stdin:
        seconds = {}
        for name, step in steps.items():
            began = time.process_time()
            for _ in range(STEPS):
                step()
            seconds[name] = (time.process_time() - began) / STEPS
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
