"""Send every changed stage to the cluster, ahead of `dvc repro`, which then attaches to the jobs:

    python -m slurm.submit [TARGET ...] [--profile NAME] [--dry-run]

Stages that want the same of the cluster and wait for the same jobs go out as one array. Stages
whose inputs other stages still have to make wait for those stages' jobs (afterok); where one fails,
SLURM cancels what depends on it. What has a job already gets no second one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from slurm import garbage
from slurm.commit import describe_commit
from slurm.errors import SlurmError, command_main
from slurm.fingerprints import DEFINITION, fingerprint, fingerprints
from slurm.jobs import Jobs, Record, Task, exclusive, make_private, read_json
from slurm.launch import check_accepted, check_shared, grace_seconds, send
from slurm.living import cancel_all, dead, living
from slurm.pipeline import Pipeline, Plan
from slurm.profile import Profile, Resources, load_profile
from slurm.report import report
from slurm.snapshot import take_snapshot
from slurm.survey import find_root

Say = Callable[[str], None]
# The longest that another process may take to submit.
SUBMITTING_SECONDS = 300.0


@dataclass
class Batch:
    """Jobs that go out as one array. after: jobs that they wait for, by name."""

    resources: Resources
    after: frozenset[str]
    tasks: list[Task]
    ids: list[str]


@contextmanager
def locked(jobs: Jobs) -> Iterator[None]:
    """One process at a time submits jobs of a workspace.

    Raises:
        SlurmError: another one takes too long, or the folder for jobs cannot be private.
    """
    make_private(jobs.root)
    with exclusive(jobs.root / "lock", SUBMITTING_SECONDS) as held:
        if not held:
            minutes = SUBMITTING_SECONDS / 60
            raise SlurmError(f"another process has been submitting for {minutes:.0f} minutes")
        yield


def make_records(pipeline: Pipeline, tasks: Iterable[Task], profile: Profile) -> dict[str, Record]:
    """How tasks are to be run, by stage, on a snapshot of the tracked files as they are now.

    Raises:
        SlurmError: they are no longer what the tasks were made from.
    """
    jobs, tasks = pipeline.jobs, list(tasks)
    code = {path for task in tasks for path in task.code}
    params = {path for task in tasks for path in task.params}
    snapshot = take_snapshot(jobs.workspace, jobs.root / "snapshots", code)
    git, seen = describe_commit(jobs.workspace), fingerprints(jobs.workspace, code, params)
    changed = sorted(path for path, was in pipeline.seen.items() if seen.get(path, was) != was)
    if changed:
        raise SlurmError(
            f"{', '.join(changed)} changed while this was being submitted, nothing more was; "
            "run it again"
        )
    for path in {item.path for task in tasks for item in task.inputs if not item.late}:
        seen[path] = fingerprint(jobs.workspace / path)
    records = {}
    for task in tasks:
        records[task.stage] = make_record(jobs, task, profile, snapshot, git)
        known = [item.path for item in task.inputs if not item.late]
        own = {path: seen[path] for path in (*task.code, *task.params, *DEFINITION, *known)}
        records[task.stage].seen, records[task.stage].cache = own, str(pipeline.cache)
    return records


def make_record(
    jobs: Jobs, task: Task, profile: Profile, snapshot: str, git: dict[str, Any]
) -> Record:
    """How a task is to be run."""
    resources = profile.resources_of(task.stage)
    return Record(
        task=task,
        workspace=str(jobs.workspace),
        snapshot=snapshot,
        git=git,
        environment={**profile.environment, "OFQ_WORKERS": str(resources.workers)},
        tasks=resources.tasks,
        executor=profile.executor,
        grace_seconds=grace_seconds(profile),
        requeue=profile.requeue,
    )


def group(tasks: Iterable[Task], profile: Profile) -> list[Batch]:
    """Arrays of tasks with the same resources that wait for the same jobs, in order."""
    batches: dict[tuple[str, frozenset[str]], Batch] = {}
    full: list[Batch] = []
    for task in tasks:
        resources, after = profile.resources_of(task.stage), frozenset(task.late.values())
        key = (resources.model_dump_json(), after)
        batch = batches.get(key)
        if batch is not None and len(batch.tasks) == profile.max_array_size:
            full.append(batches.pop(key))
            batch = None
        if batch is None:
            batches[key] = batch = Batch(resources, after, [], [])
        batch.tasks.append(task)
    return [*full, *batches.values()]


def submit(pipeline: Pipeline, tasks: list[Task], profile: Profile) -> list[Batch]:
    """Submit tasks that have no job; they may depend on each other, upstream first.

    Raises:
        SlurmError: an input is nowhere, or the cluster refuses.
    """
    jobs, records = pipeline.jobs, make_records(pipeline, tasks, profile)
    for task in tasks:
        pipeline.keep(task)
    waiting, sent = group(tasks, profile), list[Batch]()
    places = {task.stage: jobs.place(task) for task in tasks}
    ours = {job.name for job in places.values()}
    while waiting:
        # Every job of a batch waits for the same ones, so some batch can always go.
        batch = next(b for b in waiting if not b.after & ours)
        waiting.remove(batch)
        pairs = []
        for task in batch.tasks:
            job = places[task.stage]
            pairs.append((job, records[task.stage]))
            garbage.mark_needed(jobs, job, task)
        after = after_ids(jobs, batch.after)
        try:
            batch.ids = send(jobs, pairs, profile, batch.resources, after)
        except SlurmError as error:
            raise SlurmError(f"{error}{_already(sent)}") from error
        ours -= {job.name for job, _ in pairs}
        sent.append(batch)
    return sent


def _already(sent: list[Batch]) -> str:
    if not sent:
        return ""
    ids = ", ".join(batch.ids[0].partition("_")[0] for batch in sent)
    return f". Submitted before that: {ids}; submitting again sends the rest"


def after_ids(jobs: Jobs, names: Iterable[str]) -> list[str]:
    """Ids of jobs to wait for; one id for an array all of which is waited for."""
    by_launch: dict[str, list[str]] = {}
    for name in names:
        record = jobs.named(name).record()
        if record is not None and jobs.named(name).done() is None:
            by_launch.setdefault(record.launch, []).append(record.job_id)
    ids = []
    for launch, members in sorted(by_launch.items()):
        launched = read_json(jobs.root / "launches" / launch / "launch.json")
        whole = isinstance(launched, dict) and len(launched["jobs"]) == len(members) > 1
        ids += [members[0].partition("_")[0]] if whole else sorted(members)
    return ids


def run_here(pipeline: Pipeline, profile: Profile, targets: list[str], say: Say) -> Plan:
    """The plan, after changed stages that the profile wants to run at once have run.

    They run in a private folder, from which `dvc repro` takes the result as from a job's. They are
    quick, and what they make decides what else has changed.

    Raises:
        SlurmError: one failed.
    """
    while True:
        plan = pipeline.plan(targets)
        ready = [
            task
            for task in plan.tasks
            if profile.runs_here(task.stage)
            and not task.late
            and plan.jobs[task.stage].done() is None
        ]
        if not ready:
            return plan
        for task in ready:
            say(f"{task.stage}: running here")
            execute_here(pipeline, task, profile)


def execute_here(pipeline: Pipeline, task: Task, profile: Profile) -> None:
    """Run one stage in its job's folder, in this process's environment."""
    from slurm.layout import StageError, command_of, stage_environment, stage_inputs, write_done

    jobs = pipeline.jobs
    pipeline.keep(task)
    job = jobs.place(task)
    record = make_records(pipeline, [task], profile)[task.stage]
    record.executor, record.submitted = "here", time.time()
    stage_inputs(job, record)
    done = subprocess.run(
        command_of(task),
        cwd=job.work,
        env=stage_environment(job, record),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        job.forget_files()
        said = (done.stderr or done.stdout).strip()
        raise SlurmError(f"{task.stage} failed, nothing was submitted\n{said}")
    job.write(record)
    try:
        write_done(job, task)
    except StageError as error:
        raise SlurmError(f"{task.stage}: {error}, nothing was submitted") from error


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m slurm.submit")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="as for dvc repro")
    parser.add_argument("--profile", help="of slurm/profiles (default: $OFQ_PROFILE)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be submitted")
    arguments = parser.parse_args(argv)
    profile = load_profile(arguments.profile)
    if profile.executor == "in_place":
        raise SlurmError(
            f"profile {profile.name} has no cluster (executor in_place): just run `dvc repro`, or "
            "name another profile (--profile, OFQ_PROFILE)"
        )
    pipeline = Pipeline(find_root())
    jobs = pipeline.jobs
    with locked(jobs):
        plan = run_here(pipeline, profile, arguments.targets, print)
        alive = living(jobs, plan.jobs.values())
        wanted, in_vain = dead(plan, alive)
        wanted = submittable(wanted, plan, profile)
        if not arguments.dry_run and wanted:
            check(jobs, wanted, profile)
            cancel_all(in_vain)
            submit(pipeline, wanted, profile)
            garbage.sweep_up(jobs, pipeline.cache, living(jobs, list(jobs)))
    print(report(plan, wanted, profile, arguments.dry_run))
    return 0


def submittable(tasks: list[Task], plan: Plan, profile: Profile) -> list[Task]:
    """The tasks that can go out now: not those that run here, and nothing that waits for them."""
    out: list[Task] = []
    left: set[str] = set()
    for task in tasks:
        waits = (
            bool(task.late) if profile.executor != "slurm" else bool(left & {*task.late.values()})
        )
        # submitit's local executors know no dependencies between jobs.
        if waits or profile.runs_here(task.stage):
            left.add(plan.jobs[task.stage].name)
        else:
            out.append(task)
    return out


def check(jobs: Jobs, tasks: list[Task], profile: Profile) -> None:
    """Find out what would go wrong before anything is submitted.

    Raises:
        SlurmError: SLURM refuses the resources, or nodes do not see the workspace.
    """
    if profile.executor != "slurm":
        return
    wanted = {task.stage.partition("@")[0]: profile.resources_of(task.stage) for task in tasks}
    check_accepted(profile, wanted)
    for resources in {r.partition: r for r in wanted.values()}.values():
        remark = check_shared(jobs, profile, resources)
        if remark:
            print(remark, file=sys.stderr)


if __name__ == "__main__":
    command_main(main, sys.argv[1:])
