"""Bring the outputs of a finished job into the workspace.

With the standard library alone: `dvc repro` starts a process for every stage, and loading DVC once
more in each would take longer than all the rest.
"""

from __future__ import annotations

import shutil
import sys
import uuid
from pathlib import Path

from slurm.contents import copy_path, hash_of, list_path, place_path
from slurm.fingerprints import fingerprint, fingerprints, has_variables
from slurm.garbage import after_commit
from slurm.jobs import Job, Jobs, Record, exclusive

# So much of a log is shown; all of it is in the job's folder.
SHOWN_BYTES = 256 * 1024


class NotOwnerError(Exception):
    """Another process has attached to the stage since: it will bring the outputs."""


class DamagedError(Exception):
    """What the job made is no longer there as it was made."""


def take_over(jobs: Jobs, stage: str) -> str:
    """Become the one that brings a stage's outputs: whoever attached before leaves it.

    Killing DVC leaves its child behind, which would bring them a second time.
    """
    path = jobs.root / "attached" / stage
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    path.write_text(token)
    return token


def collect_finished(workspace: Path, stage: str, command: list[str]) -> bool:
    """Collect a stage's job if one is done and, beyond doubt, did just what is asked for.

    Returns:
        False where that takes DVC to find out.
    """
    jobs = Jobs(workspace)
    found = [(job, job.record()) for job in jobs.of_stage(stage) if job.done() is not None]
    records = [(job, record) for job, record in found if record is not None and record.cache]
    if not records or has_variables(workspace):
        return False
    # A stage that DVC runs again though it has the outputs is to run again.
    after_commit(jobs, Path(records[0][1].cache))
    for job, record in records:
        if job.done() is not None and _same(jobs, job, record, command):
            try:
                collect(jobs, job, take_over(jobs, stage))
            except DamagedError as error:
                print(error, file=sys.stderr)
                return False
            return True
    return False


def _same(jobs: Jobs, job: Job, record: Record, command: list[str]) -> bool:
    task = jobs.settle(job, record.task)
    if task is None or task.command != command or not record.seen:
        return False
    now = fingerprints(jobs.workspace, task.code, task.params)
    if any(now[path] != record.seen.get(path) for path in now):
        return False
    for item in task.inputs:
        # Untouched since it was hashed for the submission.
        if record.seen.get(item.path) == fingerprint(jobs.workspace / item.path):
            continue
        if hash_of(list_path(jobs.workspace, item.path), item.path) != hash_of(
            item.files, item.path
        ):
            return False
    return True


def collect(jobs: Jobs, job: Job, token: str) -> None:
    """Copy the outputs into the workspace, and show what the stage printed.

    The job keeps its own until DVC has them: DVC may be killed before it writes dvc.lock, and
    then asks for them again.

    Args:
        token: of `take_over`.

    Raises:
        NotOwnerError: another process has taken over since.
        DamagedError: an output is not what the job said it made; the job counts as failed then.
    """
    record, made = job.record(), job.done()
    assert record is not None, job.path
    with exclusive(jobs.root / "collect.lock"):
        if (jobs.root / "attached" / job.stage).read_text() != token:
            raise NotOwnerError
        draft = jobs.root / "arriving" / job.stage
        shutil.rmtree(draft, ignore_errors=True)
        try:
            for out in record.task.outs:
                copy_path(job.work / out, draft / out)
        except OSError as error:
            raise _damaged(job, str(error)) from error
        arrived: dict[str, str] = {}
        for out in record.task.outs:
            arrived |= list_path(draft, out)
        if arrived != made:
            raise _damaged(job, "its outputs have changed since it ended")
        for out in record.task.outs:
            place_path(draft / out, jobs.workspace / out)
        shutil.rmtree(draft, ignore_errors=True)
        marker = jobs.root / "collected" / job.name
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    _show_log(job)


def _damaged(job: Job, reason: str) -> DamagedError:
    (job.path / "reported").touch()
    (job.path / "done.json").rename(job.path / "damaged.json")
    return DamagedError(f"{job.stage}: the result of its job is damaged ({reason}): it runs again")


def _show_log(job: Job) -> None:
    try:
        with job.log.open("rb") as log:
            size = log.seek(0, 2)
            if size > SHOWN_BYTES:
                print(f"the end of {job.log}:")
            log.seek(max(0, size - SHOWN_BYTES))
            sys.stdout.write(log.read().decode(errors="replace"))
    except OSError:
        return
    sys.stdout.flush()


def workspace_of_stage() -> Path:
    """The workspace in which DVC runs this process.

    Not $DVC_ROOT: in the copy that `dvc exp run --temp` makes, that is the repository copied.
    """
    here = Path.cwd()
    return next((path for path in (here, *here.parents) if (path / "dvc.yaml").is_file()), here)
