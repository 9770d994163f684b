"""What was submitted, as a table."""

from __future__ import annotations

from slurm.jobs import Task
from slurm.pipeline import Plan
from slurm.profile import Profile, Resources
from slurm.show import table


def report(plan: Plan, sent: list[Task], profile: Profile, dry: bool) -> str:
    """The plan: a row per stage and kind of job."""
    lines = []
    rows: dict[tuple[str, ...], list[str]] = {}
    fresh = {task.stage for task in sent}
    for task in plan.tasks:
        job = plan.jobs[task.stage]
        record = job.record()
        job_id = record.job_id.partition("_")[0] if record else ""
        verb = "would be submitted" if dry else "submitted"
        state = verb if task.stage in fresh else "done" if job.done() is not None else "has a job"
        if task.stage not in fresh and record is None:
            state = "later"
        stage = task.stage.partition("@")[0]
        after = sorted({name.partition("/")[0].partition("@")[0] for name in task.late.values()})
        asked = describe(profile.resources_of(task.stage))
        rows.setdefault((stage, job_id, asked, ", ".join(after), state), []).append(task.stage)
    cells = [
        (stage, str(len(members)), job_id, asked, after, state)
        for (stage, job_id, asked, after, state), members in rows.items()
    ]
    if cells:
        lines.append(table(("stage", "jobs", "id", "resources of a job", "after", ""), cells))
    for what, names in (
        ("from the run cache", plan.cached),
        ("not before its inputs exist", plan.blocked),
    ):
        if names:
            lines.append(f"{what}: {', '.join(names)}")
    if not plan.tasks:
        lines.append("nothing to submit: everything is up to date or in the run cache")
    elif not dry:
        lines.append("`dvc repro` attaches to the jobs; `python -m slurm.status` shows them")

    return "\n".join(lines)


def describe(resources: Resources) -> str:
    """Resources in a few words."""
    words = [resources.partition or "default partition"]
    if resources.nodes > 1:
        words.append(f"{resources.nodes} nodes")
    if resources.gpus_per_node:
        words.append(f"{resources.gpus_per_node} GPUs")
    words += [f"{resources.tasks} x {resources.cpus} CPUs", f"{resources.memory_gb:g} GB"]
    return ", ".join([*words, resources.time])
