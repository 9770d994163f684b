"""The starts of a job, in its attempts.json: env.json of the run lists them."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from slurm.jobs import Job, write_json

if TYPE_CHECKING:
    from submitit.core.job_environment import JobEnvironment


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def open_attempt(job: Job, environment: JobEnvironment) -> None:
    """Note that a job starts, and with it that the attempt before has ended."""
    # What an attempt that SLURM has started again said of its end no longer holds.
    for name in ("failed.json", "reported"):
        (job.path / name).unlink(missing_ok=True)
    close_attempt(job, "cut off without notice: killed, requeued or its node lost", seen=False)
    attempt = {
        "job": environment.job_id,
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "nodes": os.environ.get("SLURM_JOB_NODELIST") or environment.hostname,
        "tasks": environment.num_tasks,
        "began": _now(),
        "ended": None,
        "how": "running",
        "log_offset": job.log.stat().st_size if job.log.exists() else 0,
    }
    write_json(job.path / "attempts.json", [*job.attempts(), attempt])


def close_attempt(job: Job, how: str, seen: bool = True) -> None:
    """Note how the attempt that runs came to its end; seen False: nobody knows when."""
    attempts = job.attempts()
    if attempts and attempts[-1]["how"] == "running":
        attempts[-1] |= {"ended": _now() if seen else None, "how": how}
        write_json(job.path / "attempts.json", attempts)
