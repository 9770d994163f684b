"""Measure what the way over a cluster costs, and write benchmarks/slurm.md:

    python -m benchmarks.slurm [PART ...]

Parts are submit, cells, slots, long and sequential; all by default, some 20 minutes. What was
measured is kept in benchmarks/slurm.json, so that a part can be measured again by itself. On the
cluster of tests/slurm/cluster.sh (root), with a grid whose cells do nothing for a given
time: so slots are what they say whatever the machine has, and all that is above them is overhead.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from ofq_core.yaml_files import to_yaml
from slurm.jobs import Job, Jobs

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/slurm.json"
CELLS = 12
SECONDS = 20.0
# What runs only as wide as the slots allow; longer cells show that the overhead is a constant.
LONG_SECONDS = 75.0
SLOTS = (4, 8, 12)
SIZES = (12, 120, 1000)
PROFILE = {
    "executor": "slurm",
    "resources": {"workers": 0, "memory_gb": 0.2, "time": "00:30:00"},
    "poll_seconds": 2,
}
CELL = """\
import sys, time
from pathlib import Path

time.sleep(float(Path("seconds").read_text()))
out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
(out / "metrics.json").write_text(sys.argv[1])
"""


class Workspace:
    """A repository with a grid of so many cells, each of which waits for so many seconds."""

    def __init__(self, folder: Path, cells: int, seconds: float) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        names = [f"c{number:04d}" for number in range(cells)]
        stage = {
            "matrix": {"cell": names},
            "cmd": "python -m slurm.run -- python cell.py results/${item.cell}",
            "deps": ["cell.py", "seconds"],
            "outs": ["results/${item.cell}"],
        }
        (folder / "dvc.yaml").write_text(to_yaml({"stages": {"grid": stage}}))
        (folder / "cell.py").write_text(CELL)
        (folder / "seconds").write_text(str(seconds))
        (folder / ".gitignore").write_text("/results\n/.slurm\n__pycache__\n")
        (folder / ".dvcignore").write_text(".slurm\n__pycache__\n")
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=ignored)
        self.profile(SLOTS[-1])
        for words in (
            ["git", "init", "-q"],
            ["dvc", "init", "-q"],
            ["git", "add", "-A"],
            ["git", "commit", "-qm", "Benchmark"],
        ):
            self.run(*words)

    def profile(self, slots: int) -> None:
        """Let so many jobs run at once."""
        resources = {**PROFILE["resources"], "array_parallelism": slots}  # type: ignore[dict-item]
        path = self.folder.parent / f"{self.folder.name}.yaml"
        path.write_text(to_yaml(PROFILE | {"resources": resources}))

    def run(self, *words: str, **extra: str) -> float:
        """Run a command; its seconds."""
        who = {f"GIT_{part}_NAME": "Benchmark" for part in ("AUTHOR", "COMMITTER")}
        where = {f"GIT_{part}_EMAIL": "b@example.invalid" for part in ("AUTHOR", "COMMITTER")}
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("OFQ_")},
            **who,
            **where,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OFQ_PROFILE": str(self.folder.parent / f"{self.folder.name}.yaml"),
            **extra,
        }
        began = time.perf_counter()
        done = subprocess.run(
            words, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
        return seconds

    def submit(self, *words: str) -> float:
        """`python -m slurm.submit`."""
        return self.run("python", "-m", "slurm.submit", *words)

    def jobs(self) -> list[Job]:
        """All jobs."""
        return list(Jobs(self.folder))

    def await_jobs(self) -> None:
        """Until all jobs are done."""
        while not all(job.done() is not None for job in self.jobs()):
            time.sleep(0.2)


@contextmanager
def workspace(cells: int, seconds: float) -> Iterator[Workspace]:
    """A new workspace, removed afterwards with its jobs."""
    folder = Path(tempfile.mkdtemp(prefix="ofq-benchmark-"))
    try:
        yield Workspace(folder / "work", cells, seconds)
    finally:
        ids = subprocess.run(
            ["squeue", "-h", "-o", "%F %j"], capture_output=True, text=True, check=True
        ).stdout.split("\n")
        ours = sorted({line.split()[0] for line in ids if " ofq-" in line})
        if ours:
            subprocess.run(["scancel", *ours], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def moment(text: str) -> float:
    """Unix seconds of a time in attempts.json."""
    return datetime.fromisoformat(text).timestamp()


def measure_slots(seconds: float, slots: int) -> dict[str, float]:
    """Submit and `dvc repro` at once: the whole way."""
    with workspace(CELLS, seconds) as work:
        work.profile(slots)
        began = time.perf_counter()
        submit = work.submit()
        work.run("dvc", "repro")
        wall = time.perf_counter() - began
        allowed = math.ceil(CELLS / slots) * seconds
        return {"slots": slots, "allowed": allowed, "wall": wall, "submit": submit}


def measure_sequential(seconds: float) -> float:
    """`dvc repro` without a cluster."""
    with workspace(CELLS, seconds) as work:
        return work.run("dvc", "repro", OFQ_PROFILE="local")


def measure_cells() -> dict[str, Any]:
    """Where the time of a cell that does nothing goes, every step for itself."""
    with workspace(CELLS, 0) as work:
        submit = work.submit()
        work.await_jobs()
        starts = []
        for job in work.jobs():
            record = job.record()
            assert record is not None
            # attempts.json counts in whole seconds.
            starts.append(max(0.0, job.path.joinpath("ready").stat().st_mtime - record.submitted))
        attach = work.run("dvc", "repro")
        noop = [work.run("dvc", "repro") for _ in range(3)]
    with workspace(CELLS, 0) as work:
        alone = work.run("dvc", "repro", OFQ_PROFILE="local")
    with workspace(CELLS, 0) as work:
        each = work.run("dvc", "repro")
    noop_median = statistics.median(noop)
    return {
        "submit": submit / CELLS,
        "first_start": min(starts),
        "last_start": max(starts),
        "attach": (attach - noop_median) / CELLS,
        "in_place": (alone - noop_median) / CELLS,
        "one_by_one": (each - noop_median) / CELLS,
        "noop": noop_median,
    }


def measure_submit() -> list[dict[str, float]]:
    """Submission of grids of several sizes."""
    rows = []
    for cells in SIZES:
        with workspace(cells, 0) as work:
            # The probe of the shared folder is for the first submission of a workspace only.
            work.submit("grid@c0000")
            dry, real = work.submit("--dry-run"), work.submit()
            again = work.submit()
            rows.append({"cells": cells, "dry": dry, "real": real, "again": again})
    return rows


def slots_table(
    rows: list[dict[str, float]], seconds: float, sequential: float | None
) -> list[str]:
    """Wall time by slots."""
    lines = [
        "| slots | allowed (s) | wall (s) | wall / allowed | above (s) | wall / slowest cell | "
        "sequential / wall |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        speedup = "" if sequential is None else f"{sequential / row['wall']:.1f}"
        lines.append(
            f"| {row['slots']:.0f} | {row['allowed']:.0f} | {row['wall']:.1f} | "
            f"{row['wall'] / row['allowed']:.2f} | {row['wall'] - row['allowed']:.1f} | "
            f"{row['wall'] / seconds:.2f} | {speedup} |"
        )
    return lines


def render(measured: dict[str, Any]) -> str:
    """The page."""
    cell = measured["cells"]
    commits = ", ".join(sorted({str(commit) for commit in measured["commits"].values()}))
    lines = [
        "# What the way over a cluster costs",
        "",
        f"Made by `python -m benchmarks.slurm` at {commits} on {os.cpu_count()} cores "
        f"({platform.machine()}), SLURM {measured['version']} with its daemons, two virtual nodes "
        "and the jobs on that one machine. Cells only wait, so slots are what they say; every "
        "second above them is overhead, most of it processor time of starting Python, of which "
        "a real cluster has more.",
        "",
        f"## A grid of {CELLS} cells",
        "",
        "`slurm.submit`, then `dvc repro` at once. Allowed by the slots: full turns times the "
        "cell's time. Target: wall time at most 1.15 times that.",
        "",
        f"Cells of {SECONDS:g} s; sequential `dvc repro` without a cluster takes "
        f"{measured['sequential']:.1f} s:",
        "",
        *slots_table(measured["slots"], SECONDS, measured["sequential"]),
        "",
        f"Cells of {LONG_SECONDS:g} s:",
        "",
        *slots_table(measured["long"], LONG_SECONDS, None),
        "",
        "## Overhead of a cell that does nothing",
        "",
        "| step | seconds |",
        "|---|---:|",
        f"| submit, of {CELLS} | {cell['submit']:.2f} a cell |",
        f"| from submission to the start of the stage, first and last of {CELLS} | "
        f"{cell['first_start']:.1f} to {cell['last_start']:.1f} |",
        f"| attach to a finished job, copy, and DVC's commit | {cell['attach']:.2f} a cell |",
        f"| the same cell in place, without a cluster | {cell['in_place']:.2f} a cell |",
        "| without `submit`: each cell submitted, run and awaited by `dvc repro` | "
        f"{cell['one_by_one']:.2f} a cell |",
        f"| `dvc repro` with nothing to do, {CELLS} cells | {cell['noop']:.2f} in all |",
        "",
        "Target: attach and commit under 1.5 s a cell.",
        "",
        "## Submitting",
        "",
        "| cells | `--dry-run` (s) | submit (s) | again, all have jobs (s) |",
        "|---:|---:|---:|---:|",
    ]
    for row in measured["submit"]:
        lines.append(
            f"| {row['cells']:.0f} | {row['dry']:.1f} | {row['real']:.1f} | {row['again']:.1f} |"
        )
    return "\n".join([*lines, "", "Target: 1,000 cells under 60 s.", ""])


PARTS: dict[str, Callable[[], Any]] = {
    "submit": measure_submit,
    "cells": measure_cells,
    "slots": lambda: [measure_slots(SECONDS, slots) for slots in SLOTS],
    "long": lambda: [measure_slots(LONG_SECONDS, slots) for slots in SLOTS],
    "sequential": lambda: measure_sequential(SECONDS),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slurm")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parts = parser.parse_args().parts or list(PARTS)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}: expected {', '.join(PARTS)}")
    subprocess.run([ROOT / "tests/slurm/cluster.sh", "up"], check=True)
    version = subprocess.run(["sinfo", "--version"], capture_output=True, text=True).stdout
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    measured = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"commits": {}}
    measured["version"] = version.split()[-1]
    for part in parts:
        measured[part] = PARTS[part]()
        measured["commits"][part] = commit
        RESULTS.write_text(json.dumps(measured, indent=1) + "\n")
    missing = [part for part in PARTS if part not in measured]
    if missing:
        raise SystemExit(f"not measured yet: {', '.join(missing)}")
    text = render(measured)
    RESULTS.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
