"""Where the jobs of an executor are asked about and cancelled."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from slurm import states as slurm_states
from slurm.jobs import Job
from slurm.states import GONE, State


def job_states(executor: str, jobs: Iterable[Job], ids: dict[str, str]) -> dict[str, State]:
    """The states of jobs.

    Args:
        ids: job id by the job's name.

    Returns:
        State by the job's name.
    """
    names = [job.name for job in jobs]
    if executor == "slurm":
        found = slurm_states.states(ids[name] for name in names if ids[name])
        return {name: found.get(ids[name], GONE) for name in names}
    return {name: _local_state(ids[name]) for name in names}


def cancel(executor: str, ids: Iterable[str]) -> str | None:
    """Cancel jobs; what is against it, or None."""
    if executor == "slurm":
        return slurm_states.cancel(ids)
    for job_id in ids:
        with contextlib.suppress(OSError, ValueError):
            # submitit's controller passes it on to the tasks.
            os.kill(int(job_id), signal.SIGINT)
    return None


def _local_state(job_id: str) -> State:
    """The state of a job of submitit's local executor, whose id is that of a process."""
    if not job_id.isdecimal():
        return GONE
    with contextlib.suppress(OSError):
        # Ours, if it is: then it must not stay as a zombie that looks alive.
        os.waitpid(int(job_id), os.WNOHANG)
    words = Path(f"/proc/{job_id}/cmdline")
    try:
        alive = b"submitit" in words.read_bytes()
    except OSError:
        alive = False
    return State("RUNNING", node=os.uname().nodename) if alive else GONE
