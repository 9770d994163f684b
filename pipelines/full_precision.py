"""Stage `full_precision@<seed>`: the table's ceiling, trained as the teacher is, by seed."""

from __future__ import annotations

import argparse
import sys

from pipelines.params import load_study
from pipelines.prepare import data_folder
from pipelines.run_folder import run_to_folder
from pipelines.stage import stage_main


def main(argv: list[str]) -> None:
    """Train and evaluate one full-precision model."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.full_precision")
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args(argv)
    study = load_study()
    run_to_folder(study.full_precision(arguments.seed), data_folder(study), None, "full_precision")


if __name__ == "__main__":
    stage_main(main, sys.argv[1:])
