"""The private folder of a job, and the environment in which its stage runs."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from submitit.helpers import TorchDistributedEnvironment

from slurm.attempts import close_attempt
from slurm.contents import link, list_path, md5_file, within
from slurm.errors import SlurmError
from slurm.jobs import Job, Jobs, Record, Task, write_json
from slurm.snapshot import check_snapshot, lay_out


class StageError(RuntimeError):
    """The stage failed, or cannot be run."""


def command_of(task: Task) -> list[str]:
    """The stage's command with this interpreter for `python`."""
    first, *rest = task.command
    return [sys.executable if first == "python" else first, *rest]


def stage_environment(job: Job, record: Record, tasks: int = 1) -> dict[str, str]:
    """The environment of the stage: that of the job, the profile's, and what the job tells it.

    Args:
        tasks: of this job; of several, submitit knows which this is.
    """
    git = record.git
    told = {
        **record.environment,
        "PYTHONPATH": str(job.work),
        "DVC_STAGE": record.task.stage,
        "OFQ_PROFILE": "local",
        "OFQ_WORKSPACE": record.workspace,
        "OFQ_PROGRESS": str(job.path / "progress.json"),
        "OFQ_ATTEMPTS": str(job.path / "attempts.json"),
        "OFQ_GIT_DIRTY": str(bool(git.get("dirty"))).lower(),
    }
    if git.get("commit"):
        told["OFQ_GIT_COMMIT"] = git["commit"]
    if tasks > 1:
        world = TorchDistributedEnvironment()
        told |= {
            "MASTER_ADDR": world.master_addr,
            "MASTER_PORT": str(world.master_port),
            "RANK": str(world.rank),
            "WORLD_SIZE": str(world.world_size),
            "LOCAL_RANK": str(world.local_rank),
            "LOCAL_WORLD_SIZE": str(world.local_world_size),
        }
    # One task per process here; and a stage that draws must not look like a task of submitit's.
    dropped = ("OFQ_PROCESSES", "DVC_ROOT")
    return {key: value for key, value in os.environ.items() if key not in dropped} | told


def stage_inputs(job: Job, record: Record) -> None:
    """Lay out the private folder: tracked files, and the inputs that other stages made.

    Raises:
        StageError: an input is gone, or the snapshot was changed.
    """
    jobs = Jobs(Path(record.workspace))
    task = record.task
    sources: dict[str, Path] = {}
    wanted: dict[str, str] = {}
    for item in task.inputs:
        wanted |= item.files
        sources |= {name: jobs.store.path(md5) for name, md5 in item.files.items()}
        for out, upstream in item.late.items():
            made = jobs.named(upstream).made()
            if made is None:
                raise StageError(f"{upstream}, which makes {out}, has no result")
            inside = within(made, item.path)
            wanted |= inside
            sources |= {name: jobs.named(upstream).work / name for name in inside}
    given = job.inputs()
    if given is not None and given != wanted:
        # Sent off again for other inputs: checkpoints are of the former ones.
        shutil.rmtree(job.work, ignore_errors=True)
    paths = [*task.outs, *(item.path for item in task.inputs)]
    snapshot = jobs.root / "snapshots" / record.snapshot
    try:
        check_snapshot(snapshot)
    except SlurmError as error:
        raise StageError(str(error)) from error
    lay_out(snapshot, job.work, paths)
    write_json(job.path / "inputs.json", wanted)
    for name, source in sources.items():
        target = job.work / name
        # Laid out by an earlier attempt; the source may be gone by now, if it was another job's.
        if target.is_file() and md5_file(target) == wanted[name]:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            link(source, target)
        except FileNotFoundError as error:
            raise StageError(f"the input {name} is gone ({source})") from error


def write_done(job: Job, task: Task) -> None:
    """Say what was made. Outputs stay where they are: whoever attaches copies them.

    Raises:
        StageError: an output is missing.
    """
    files: dict[str, str] = {}
    for out in task.outs:
        made = list_path(job.work, out)
        if not made:
            raise StageError(f"the stage ended well, but made no {out}")
        files.update(made)
    close_attempt(job, "finished")
    write_json(job.path / "done.json", {"files": files})
