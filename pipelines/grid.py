"""Stage `grid@<method>-<bits>-<seed>`: one cell of the paper's tables, trained and evaluated."""

from __future__ import annotations

import argparse
import sys

from pipelines.params import load_study
from pipelines.run_folder import run_to_folder
from pipelines.stage import stage_main
from pipelines.teacher import WEIGHTS


def main(argv: list[str]) -> None:
    """Train and evaluate one cell."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.grid")
    parser.add_argument("--method", required=True)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args(argv)
    study = load_study()
    settings = study.cell(arguments.method, arguments.bits, arguments.seed)
    run_to_folder(study, settings, WEIGHTS, "grid")


if __name__ == "__main__":
    stage_main(main, sys.argv[1:])
