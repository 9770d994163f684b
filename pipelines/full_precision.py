"""Stage `full_precision@<seed>`: the table's ceiling, trained as the teacher is, by seed."""

from __future__ import annotations

import argparse
import sys

from pipelines.params import load_study
from pipelines.run_folder import run_to_folder
from pipelines.stage import is_main, stage_main
from pipelines.teacher import check_given, is_given


def main(argv: list[str]) -> None:
    """Train and evaluate one full-precision model."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.full_precision")
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args(argv)
    study = load_study()
    settings = study.full_precision(arguments.seed)
    if is_given(study) and is_main():
        # DVC may come here before it comes to the stage `teacher`, which would refuse it too late.
        check_given(study)
    run_to_folder(study, settings, None, "full_precision")


if __name__ == "__main__":
    stage_main(main, sys.argv[1:])
