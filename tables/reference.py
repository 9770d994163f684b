"""Refresh the committed reference: `python -m tables.reference --results results/digits_full`.

Copies the small result files of every run into tables/reference/<study>/results and renders from
the copies, so that a test can render again and compare byte by byte. What only figures need, larger
by far, is copied for the runs that they draw: the first seed at the lowest bit width.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tables.build import RUN_FILES
from tables.errors import TableError, command_main
from tables.runs import Run, Study, read_study
from tables.whole import render_whole

REFERENCE = Path(__file__).with_name("reference")
TEACHER, NOISE = "teacher.json", "noise.json"
DRAWN_FILES = ("histogram.json", "trajectories.json")


def refresh(
    results: Path,
    teacher: Path | None = None,
    reference: Path = REFERENCE,
    noise: Path | None = None,
) -> Path:
    """Replace `reference`/<name of results> by a copy of the runs and its rendering; returns that
    folder.

    Args:
        teacher, noise: the teacher's metrics, and the results of the noise injection.

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
            for name in (*RUN_FILES, *(DRAWN_FILES if _drawn(run, study) else ())):
                if (run.folder / name).is_file():
                    shutil.copyfile(run.folder / name, new / "results" / run.name / name)
        for source, name in ((teacher, TEACHER), (noise, NOISE)):
            if source is not None:
                if not source.is_file():
                    raise TableError(f"{source}: no such file")
                shutil.copyfile(source, new / name)
        render_reference(new, new / "rendered")
        if target.exists():
            target.rename(staging / "old")
        new.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def render_reference(folder: Path, out: Path) -> None:
    """Render what a reference folder holds; `TableError` as in `tables.whole.render_whole`."""
    teacher, noise = folder / TEACHER, folder / NOISE
    render_whole(
        folder / "results",
        out,
        teacher if teacher.is_file() else None,
        noise=noise if noise.is_file() else None,
    )


def _drawn(run: Run, study: Study) -> bool:
    quantized = [other for other in study.runs if other.wbits != 32] or list(study.runs)
    bits = min(other.wbits for other in quantized)
    return run.wbits == bits and run.seed == min(other.seed for other in quantized)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tables.reference", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=Path("results/digits_full"), help="folder of one study"
    )
    parser.add_argument("--teacher", type=Path, help="the teacher's metrics (JSON)")
    parser.add_argument("--noise", type=Path, help="results of the noise injection (JSON)")
    options = parser.parse_args(arguments)
    try:
        refreshed = refresh(options.results, options.teacher, noise=options.noise)
        print(f"refreshed {refreshed}; look at git diff before committing it")
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    command_main(main)
