"""Which jobs are still to be reckoned with."""

from __future__ import annotations

from collections.abc import Iterable

from slurm.cluster import cancel, job_states
from slurm.ids import lost_ids
from slurm.jobs import Job, Jobs, Task
from slurm.pipeline import Plan
from slurm.states import State


def living(jobs: Jobs, asked: Iterable[Job | None]) -> set[str]:
    """The names of those jobs that were asked for and wait, run or have succeeded.

    A controller that does not answer is no reason to run anything twice.
    """
    alive: set[str] = set()
    open_ids: dict[str, str] = {}
    executors: dict[str, list[Job]] = {}
    launches: dict[str, dict[str, str] | None] = {}
    for job in asked:
        record = None if job is None else job.record()
        if job is None or record is None:
            continue
        if job.done() is not None:
            alive.add(job.name)
            continue
        if not record.job_id and record.executor == "slurm":
            if record.launch not in launches:
                launches[record.launch] = lost_ids(jobs, record.launch)
            lost = launches[record.launch]
            if lost is None:
                alive.add(job.name)
                continue
            if job.name in lost:
                record.job_id = lost[job.name]
                job.write(record)
        open_ids[job.name] = record.job_id
        executors.setdefault(record.executor, []).append(job)
    for executor, members in executors.items():
        states = job_states(executor, members, open_ids)
        alive.update(job.name for job in members if _lives(job, states[job.name]))
    return alive


def _lives(job: Job, state: State) -> bool:
    if job.failed() is not None:
        # A task may have failed because SLURM took the node of another, and starts the job again.
        return state.waits
    # The result of a job that ended well may not be seen yet; whoever attaches waits for it.
    return not state.ended or (state.name == "COMPLETED" and not (job.path / "reported").exists())


def dead(plan: Plan, alive: set[str]) -> tuple[list[Task], list[Job]]:
    """The tasks that need a job, upstream first, and the jobs that wait in vain.

    These wait for one that has failed: SLURM is about to cancel them, or lets them wait for ever.
    """
    names: set[str] = set()
    tasks: list[Task] = []
    in_vain: list[Job] = []
    for task in plan.tasks:
        job = plan.jobs[task.stage]
        waits = job.name in alive and job.done() is None
        if waits and names & {*task.late.values()}:
            in_vain.append(job)
        elif job.name in alive:
            continue
        names.add(job.name)
        tasks.append(task)
    return tasks, in_vain


def cancel_all(jobs: Iterable[Job]) -> None:
    """Cancel jobs that wait in vain; SLURM may have done so already."""
    for job in jobs:
        record = job.record()
        if record is not None and record.job_id:
            cancel(record.executor, [record.job_id])
