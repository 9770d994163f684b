"""A stage under `dvc repro` with a cluster: attach to its job, or submit it first."""

from __future__ import annotations

import sys
from pathlib import Path

from slurm import garbage
from slurm.attach import attach
from slurm.collect import workspace_of_stage
from slurm.errors import SlurmError
from slurm.fingerprints import fingerprints
from slurm.jobs import Job, Jobs, Task
from slurm.living import living
from slurm.pipeline import Pipeline
from slurm.profile import Profile


def follow(address: str, command: list[str], profile: Profile) -> int:
    """Attach to the job of a stage, submitting it where there is none; DVC's exit status.

    Raises:
        SlurmError: the stage is not in dvc.yaml, or the cluster refuses it.
    """
    workspace = workspace_of_stage()
    pipeline, task = _task_now(workspace, address, command)
    seen = _seen(workspace, task)
    garbage.after_commit(pipeline.jobs, pipeline.cache)
    job = _find(pipeline, task) or _submit(workspace, task, profile)

    def unchanged() -> bool:
        same = _seen(workspace, task) == seen
        return same or _task_now(workspace, address, command)[1].key() == task.key()

    return attach(pipeline.jobs, job, profile, unchanged)


def _task_now(workspace: Path, address: str, command: list[str]) -> tuple[Pipeline, Task]:
    pipeline = Pipeline(workspace)
    task = pipeline.task_now(pipeline.stage(address))
    if task is None or task.command != command:
        raise SlurmError(f"stage {address} of dvc.yaml has another command than this one")
    return pipeline, task


def _seen(workspace: Path, task: Task) -> dict[str, str]:
    return fingerprints(workspace, task.code, task.params)


def _find(pipeline: Pipeline, task: Task) -> Job | None:
    """The job to attach to: alive, done, or failed without having been reported.

    A failure is reported once; after that the job is sent off again.
    """
    job = pipeline.jobs.find(task)
    record = None if job is None else job.record()
    if job is None or record is None:
        return None
    if living(pipeline.jobs, [job]):
        return job
    reported = (job.path / "reported").exists()
    started = any(attempt["job"] == record.job_id for attempt in job.attempts())
    return job if started and not reported else None


def _submit(workspace: Path, task: Task, profile: Profile) -> Job:
    from slurm.submit import check, locked, submit

    jobs = Jobs(workspace)
    with locked(jobs):
        # Another process may have submitted while this one waited, or a file have changed.
        pipeline, now = _task_now(workspace, task.stage, task.command)
        if now.key() != task.key():
            raise SlurmError(f"{task.stage}: files have changed meanwhile; run `dvc repro` again")
        job = jobs.find(task)
        if job is not None and living(jobs, [job]):
            return job
        full = pipeline.with_inputs(now)
        check(jobs, [full], profile)
        job = jobs.place(full)
        (batch,) = submit(pipeline, [full], profile)
    print(f"{task.stage}: submitted as job {batch.ids[0]}", file=sys.stderr, flush=True)
    return job
