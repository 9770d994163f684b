"""Bring the outputs of a finished job into the workspace.

With the standard library alone: `dvc repro` starts a process for every stage, and loading DVC once
more in each would take longer than all the rest.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

from slurm.contents import copy_path, hash_of, list_path, md5_file
from slurm.garbage import after_commit
from slurm.jobs import Job, Jobs, Record

# What defines a stage besides its code: templates are filled from params.yaml.
DEFINITION = ("dvc.yaml", "params.yaml", ".dvcignore")
IGNORED = "__pycache__"


def fingerprint(path: Path) -> str:
    """Changes when a file, or a file of a folder, does: by size and time, as DVC's own memory."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    for file in files:
        if IGNORED in file.parts or not file.is_file():
            continue
        found = file.stat()
        name = file.relative_to(path).as_posix()
        digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def fingerprints(workspace: Path, code: Iterable[str]) -> dict[str, str]:
    """Of the definition of the stages by content, of their code by size and time."""
    seen = {path: fingerprint(workspace / path) for path in sorted(set(code))}
    return seen | {path: _content(workspace / path) for path in DEFINITION}


def _content(path: Path) -> str:
    return md5_file(path) if path.is_file() else ""


def collect_finished(workspace: Path, stage: str, command: list[str]) -> bool:
    """Collect a stage's job if one is done and, beyond doubt, did just what is asked for.

    Returns:
        False where that takes DVC to find out.
    """
    jobs = Jobs(workspace)
    found = [(job, job.record()) for job in jobs.of_stage(stage) if job.done() is not None]
    records = [(job, record) for job, record in found if record is not None and record.cache]
    if records:
        # A stage that DVC runs again though it has the outputs is to run again.
        after_commit(jobs, Path(records[0][1].cache))
    for job, record in records:
        if job.done() is not None and _same(jobs, record, command):
            collect(jobs, job)
            return True
    return False


def _same(jobs: Jobs, record: Record, command: list[str]) -> bool:
    task = jobs.settle(record.task)
    if task is None or task.command != command or not record.seen:
        return False
    now = fingerprints(jobs.workspace, task.code)
    if any(now[path] != record.seen.get(path) for path in now):
        return False
    return all(
        hash_of(list_path(jobs.workspace, item.path), item.path) == hash_of(item.files, item.path)
        for item in task.inputs
    )


def collect(jobs: Jobs, job: Job) -> None:
    """Copy the outputs into the workspace, and show what the stage printed.

    The job keeps its own until DVC has them: DVC may be killed before it writes dvc.lock, and
    then asks for them again.
    """
    record = job.record()
    assert record is not None, job.path
    for out in record.task.outs:
        copy_path(job.work / out, jobs.workspace / out)
    if job.log.exists():
        sys.stdout.write(job.log.read_text(errors="replace"))
        sys.stdout.flush()
    marker = jobs.root / "collected" / job.name
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()


def workspace_of_stage() -> Path:
    """The workspace in which DVC runs this process.

    Not $DVC_ROOT: in the copy that `dvc exp run --temp` makes, that is the repository copied.
    """
    here = Path.cwd()
    return next((path for path in (here, *here.parents) if (path / "dvc.yaml").is_file()), here)
