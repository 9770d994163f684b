"""A stage under `dvc repro` with a cluster: attach to its job, or submit it first."""

from __future__ import annotations

import sys

from slurm import garbage
from slurm.attach import attach
from slurm.collect import workspace_of_stage
from slurm.errors import SlurmError
from slurm.jobs import Job, Task
from slurm.pipeline import Pipeline
from slurm.profile import Profile


def follow(address: str, command: list[str], profile: Profile) -> int:
    """Attach to the job of a stage, submitting it where there is none; DVC's exit status.

    Raises:
        SlurmError: the stage is not in dvc.yaml, or the cluster refuses it.
    """
    pipeline = Pipeline(workspace_of_stage())
    stage = pipeline.stage(address)
    task = pipeline.task_now(stage)
    if task is None or task.command != command:
        raise SlurmError(f"stage {address} of dvc.yaml has another command than this one")
    garbage.after_commit(pipeline.jobs, pipeline.cache)
    job = _find(pipeline, task)
    if job is None:
        job = _submit(pipeline, task, profile)
    return attach(pipeline.jobs, job, profile)


def _find(pipeline: Pipeline, task: Task) -> Job | None:
    """The job to attach to: alive, done, or failed without having been reported.

    A failure is reported once; after that the job is sent off again.
    """
    from slurm.submit import living

    job = pipeline.jobs.find(task)
    if job is None:
        return None
    if living(pipeline.jobs, [job]):
        return job
    reported = (job.path / "reported").exists()
    started = bool(job.attempts()) or job.failed() is not None
    return job if started and not reported else None


def _submit(pipeline: Pipeline, task: Task, profile: Profile) -> Job:
    from slurm.submit import check, living, locked, submit

    full = pipeline.with_inputs(task)
    with locked(pipeline.jobs):
        job = pipeline.jobs.find(task)
        if job is not None and living(pipeline.jobs, [job]):
            return job
        check(pipeline.jobs, [full], profile)
        job = pipeline.jobs.place(full)
        (batch,) = submit(pipeline, [full], profile)
    print(f"{task.stage}: submitted as job {batch.ids[0]}", file=sys.stderr, flush=True)
    return job
