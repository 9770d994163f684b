"""Refresh the committed reference: `python -m tables.reference --results results/digits`.

Copies the small result files of every run into tables/reference/<study>/results and renders from
the copies, so that a test can render again and compare byte by byte.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tables.build import RUN_FILES
from tables.errors import TableError
from tables.render import render
from tables.runs import read_study

REFERENCE = Path(__file__).with_name("reference")
TEACHER = "teacher.json"


def refresh(results: Path, teacher: Path | None = None, reference: Path = REFERENCE) -> Path:
    """Replace `reference`/<name of results> by a copy of the runs and its rendering; returns that
    folder.

    TableError, with the old reference untouched, if the runs cannot be rendered.
    """
    study = read_study(results)
    target = reference / results.resolve().name
    reference.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=reference))
    try:
        new = staging / "new"
        for run in study.runs:
            (new / "results" / run.name).mkdir(parents=True)
            for name in RUN_FILES:
                if (run.folder / name).is_file():
                    shutil.copyfile(run.folder / name, new / "results" / run.name / name)
        if teacher is not None:
            if not teacher.is_file():
                raise TableError(f"{teacher}: no such file")
            shutil.copyfile(teacher, new / TEACHER)
        render(new / "results", new / "rendered", new / TEACHER if teacher is not None else None)
        if target.exists():
            target.rename(staging / "old")
        new.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tables.reference", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=Path("results/digits"), help="folder of one study"
    )
    parser.add_argument("--teacher", type=Path, help="the teacher's metrics (JSON)")
    options = parser.parse_args(arguments)
    try:
        refreshed = refresh(options.results, options.teacher)
        print(f"refreshed {refreshed}; look at git diff before committing it")
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
