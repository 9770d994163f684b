"""Remove what jobs leave behind once DVC has their outputs.

A job keeps its private folder until its outputs are in DVC's cache and no job that waits still
takes them; logs and records stay until they are old.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from slurm.jobs import Job, Jobs, Task, exclusive

KEEP_SECONDS = 14 * 24 * 3600.0


def mark_needed(jobs: Jobs, job: Job, task: Task) -> None:
    """Note, with the jobs whose outputs a job will take, that it will."""
    for name in task.late.values():
        marker = jobs.named(name).path / "needed_by" / job.name.replace("/", "+")
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def needed(jobs: Jobs, job: Job) -> bool:
    """Whether a job that has not started yet takes its inputs from this one."""
    for marker in (job.path / "needed_by").glob("*"):
        other = jobs.named(marker.name.replace("+", "/"))
        settled = other.done() is not None or other.failed() is not None
        if other.exists() and not settled and not (other.path / "ready").exists():
            return True
    return False


def after_commit(jobs: Jobs, cache: Path) -> None:
    """Empty the folders of jobs that were collected and whose outputs DVC's cache has.

    Cheap: looks at the jobs that were collected since it was last called. A stage that DVC runs
    again though its cache has the outputs is meant to run again (`dvc repro -f`).
    """
    with exclusive(jobs.root / "collect.lock", seconds=0) as held:
        # Held by one that collects: it will be done another time.
        for marker in (jobs.root / "collected").glob("*/*") if held else ():
            _retire_taken(jobs, cache, marker)


def _retire_taken(jobs: Jobs, cache: Path, marker: Path) -> None:
    job = jobs.named(f"{marker.parent.name}/{marker.name}")
    made = job.done()
    if made is None:
        marker.unlink(missing_ok=True)
        return
    cached = all((cache / md5[:2] / md5[2:]).exists() for md5 in made.values())
    if cached and not needed(jobs, job):
        retire(job)
        marker.unlink(missing_ok=True)


def retire(job: Job) -> None:
    """Keep record and log only; the job can no longer be collected."""
    (job.path / "done.json").rename(job.path / "retired.json")
    job.forget_files()
    shutil.rmtree(job.path / "needed_by", ignore_errors=True)


def sweep_up(jobs: Jobs, cache: Path, alive: set[str], now: float | None = None) -> None:
    """Remove everything that no job needs: old records, snapshots, inputs and submitit's files.

    What a job has made and DVC has not taken stays.

    Args:
        alive: names of jobs that wait, run or are done.
        now: Unix seconds.
    """
    after_commit(jobs, cache)
    now = time.time() if now is None else now
    snapshots: set[str] = set()
    launches: set[str] = set()
    contents: set[str] = set()
    for job in list(jobs):
        record = job.record()
        over = job.retired() or (job.done() is None and job.name not in alive)
        if over and now - _last_change(job) > KEEP_SECONDS:
            shutil.rmtree(job.path, ignore_errors=True)
            continue
        if record is None:
            continue
        launches.add(record.launch)
        if not job.retired():
            snapshots.add(record.snapshot)
            contents.update(md5 for item in record.task.inputs for md5 in item.files.values())
    # A submission under way elsewhere holds the lock, so nothing here belongs to one.
    _remove_others(jobs.root / "snapshots", snapshots)
    _remove_others(jobs.root / "launches", launches)
    for path in (jobs.root / "store").glob("*/*"):
        if path.parent.name + path.name not in contents:
            path.unlink(missing_ok=True)


def _last_change(job: Job) -> float:
    times = []
    for path in (job.path, *job.path.glob("*")):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)


def _remove_others(folder: Path, kept: set[str]) -> None:
    for path in folder.glob("*"):
        if path.name in kept:
            continue
        # Under another name first: what is left of it when this is cut off is not taken for whole.
        gone = path.with_name(f".gone-{path.name.removeprefix('.gone-')}")
        with contextlib.suppress(OSError):
            path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
