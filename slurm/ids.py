"""Find the ids of jobs whose submitter was killed before it could write them down."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from slurm.jobs import Jobs, read_json

# SLURM's name of a job is this and the name of its launch, which no other launch has.
PREFIX = "ofq-"
# Ids are written down once SLURM has taken all jobs of an array: so long after, if not before.
SUBMITTING_SECONDS = 60.0
ANSWER_SECONDS = 40.0
DAY_SECONDS = 86400.0


def lost_ids(jobs: Jobs, launch: str) -> dict[str, str] | None:
    """The ids of all jobs of a launch, by the jobs' names, as SLURM knows them.

    Returns:
        Empty where SLURM answers and knows none; None where it does not answer.
    """
    path = jobs.root / "launches" / launch / "launch.json"
    launched = read_json(path)
    if not launch or not isinstance(launched, dict):
        return {}
    names: list[str] = launched["jobs"]
    array = array_id(launch, _written(path))
    if array is None:
        return None
    if not array:
        return {}
    if len(names) == 1:
        return {names[0]: array}
    return {job: f"{array}_{index}" for index, job in enumerate(names)}


def array_id(launch: str, written: float) -> str | None:
    """The id of a launch's job or array; empty where SLURM knows none, None: it does not answer.

    Args:
        written: when it was submitted, Unix seconds.
    """
    name = f"--name={PREFIX}{launch}"
    found = _ask(["squeue", "--noheader", "--all", "--states=all", "--format=%F", name])
    if found is None:
        return None
    if not found:
        # Left to itself, sacct looks at today only. Not every cluster has it.
        since = time.strftime("%Y-%m-%d", time.localtime(written - DAY_SECONDS))
        words = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID"]
        found = _ask([*words, f"--starttime={since}", name])
    return found[0].partition("_")[0] if found else ""


def _ask(words: list[str]) -> list[str] | None:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.split()


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed meanwhile
        return time.time()
