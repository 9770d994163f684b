"""What runs on the node: a stage in a private folder, with its inputs, until it is done.

submitit starts a `StageJob` for every task of a job, and again after every requeue. SIGUSR2 comes
before the time limit and, on clusters that send it, before preemption: the stage is told to save
and stop (SIGTERM), and the job asks SLURM to be started again. Where only SIGTERM comes, it reaches
the stage as well, and SLURM itself starts the job again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import DelayedSubmission, UncompletedJobError
from submitit.helpers import Checkpointable, TorchDistributedEnvironment

from slurm.contents import link, list_path
from slurm.jobs import Job, Jobs, Record, tail, write_json
from slurm.snapshot import lay_out

# A stage that was told to stop and has saved ends with this status.
STOPPED = (143, -signal.SIGTERM)
# The longest that SLURM takes, after SIGTERM, to end a job it takes the node from.
PATIENCE_SECONDS = 600.0
READY_SECONDS = 600.0
TICK = 0.05


class StageError(RuntimeError):
    """The stage failed, or cannot be run."""


class StageJob(Checkpointable):  # type: ignore[misc]
    """Run one stage in the folder of its job, .slurm/jobs/<stage>/<key>."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._status: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Pickled by the handler of SIGUSR2 while the stage runs.
        return {"_process": None, "_status": None}

    def __call__(self, folder: str) -> str:
        """Run the stage to its end.

        Returns:
            The job's folder.

        Raises:
            StageError: it failed; failed.json says how.
        """
        job, environment = Job(Path(folder)), JobEnvironment()
        record = job.record()
        if record is None:
            raise StageError(f"{folder} has no job.json")
        if job.done() is not None:
            # Preempted or requeued just as it ended.
            return folder
        main = environment.global_rank == 0
        try:
            self._start(job, record, environment)
            while self._status is None:
                time.sleep(TICK)
            if self._status in STOPPED:
                self._await_the_end(job, main)
            if self._status:
                raise StageError(_why(self._status))
            if main:
                _finish(job, record)
        except (StageError, UncompletedJobError, OSError, subprocess.SubprocessError) as error:
            _fail(job, str(error), self._status, environment)
        return folder

    def checkpoint(self, folder: str) -> DelayedSubmission | None:
        """Have the stage save and stop; called by submitit in the handler of SIGUSR2.

        Returns:
            What to start again, None where the profile wants no requeue.
        """
        job = Job(Path(folder))
        record = job.record()
        grace = record.grace_seconds if record else 0.0
        how = "told to save, did not end in time, requeued"
        if self._process is not None:
            self._process.terminate()
            end = time.monotonic() + grace
            while self._status is None and time.monotonic() < end:
                time.sleep(TICK)
            if self._status in STOPPED:
                how = "told to save, stopped and requeued"
            elif self._status == 0 and record is not None:
                how = "finished while told to save"
                _finish(job, record)
        if record is not None and not record.requeue:
            _close_attempt(job, how.replace("requeued", "not requeued"))
            return None
        _close_attempt(job, how)
        return DelayedSubmission(self, folder)

    def _start(self, job: Job, record: Record, environment: JobEnvironment) -> None:
        ready = job.path / "ready"
        token = f"{environment.job_id}/{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        if environment.global_rank == 0:
            _open_attempt(job, environment)
            stage_inputs(job, record)
            ready.write_text(token)
        else:
            _wait_for(ready, token)
        command = record.task.command
        if command[0] == "python":
            command = [sys.executable, *command[1:]]
        name = "log.txt" if environment.global_rank == 0 else f"log-{environment.global_rank}.txt"
        with (job.path / name).open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=job.work,
                env=stage_environment(job, record, environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # SLURM sends SIGUSR2 to every process of the job; it is meant for this one alone.
                preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
            )
        # A thread waits, so that the handler of a signal can look without taking a lock.
        threading.Thread(target=self._wait, args=(self._process,), daemon=True).start()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        self._status = process.wait()

    def _await_the_end(self, job: Job, main: bool) -> None:
        """The stage was stopped by a SIGTERM that did not come from here: SLURM takes the node.

        The handler of SIGUSR2 may still come, too, and ask for the job to be requeued.
        """
        if main:
            _close_attempt(job, "stopped by SLURM (SIGTERM) after saving")
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(TICK)


def stage_environment(job: Job, record: Record, environment: JobEnvironment) -> dict[str, str]:
    """The environment of the stage: that of the job, the profile's, and what the job tells it."""
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
    if environment.num_tasks > 1:
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
        StageError: an input is gone.
    """
    jobs = Jobs(Path(record.workspace))
    task = record.task
    paths = [*task.outs, *(item.path for item in task.inputs)]
    lay_out(jobs.root / "snapshots" / record.snapshot, job.work, paths)
    for item in task.inputs:
        sources = {name: jobs.store.path(md5) for name, md5 in item.files.items()}
        for out, upstream in item.late.items():
            made = jobs.named(upstream).done()
            if made is None:
                raise StageError(f"{upstream}, which makes {out}, has no result")
            for name in made:
                if _inside(name, item.path):
                    sources[name] = jobs.named(upstream).work / name
        for name, source in sources.items():
            target = job.work / name
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                link(source, target)
            except FileNotFoundError as error:
                raise StageError(f"the input {name} is gone ({source})") from error


def _inside(name: str, path: str) -> bool:
    return name == path or name.startswith(path + "/")


def _wait_for(ready: Path, token: str) -> None:
    """Until the first task has laid out the folder for this start."""
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        try:
            if ready.read_text() == token:
                return
        except OSError:
            pass
        time.sleep(TICK)
    raise StageError(f"{ready} did not come within {READY_SECONDS:.0f} s from the first task")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _open_attempt(job: Job, environment: JobEnvironment) -> None:
    attempts = job.attempts()
    for attempt in attempts:
        if attempt["ended"] is None and attempt["how"] == "running":
            attempt["how"] = "cut off without notice: killed, requeued or its node lost"
    attempts.append(
        {
            "job": environment.job_id,
            "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            "nodes": os.environ.get("SLURM_JOB_NODELIST") or environment.hostname,
            "tasks": environment.num_tasks,
            "began": _now(),
            "ended": None,
            "how": "running",
            "log_offset": job.log.stat().st_size if job.log.exists() else 0,
        }
    )
    write_json(job.path / "attempts.json", attempts)


def _close_attempt(job: Job, how: str) -> None:
    attempts = job.attempts()
    if attempts and attempts[-1]["ended"] is None:
        attempts[-1] |= {"ended": _now(), "how": how}
        write_json(job.path / "attempts.json", attempts)


def _finish(job: Job, record: Record) -> None:
    """Say what was made. Outputs stay where they are: whoever attaches copies them."""
    files: dict[str, str] = {}
    for out in record.task.outs:
        made = list_path(job.work, out)
        if not made:
            raise StageError(f"the stage ended well, but made no {out}")
        files.update(made)
    _close_attempt(job, "finished")
    write_json(job.path / "done.json", {"files": files})


def _why(status: int) -> str:
    if status > 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    hint = ": most often memory ran out" if status == -signal.SIGKILL else ""
    return f"killed ({name}){hint}"


def _fail(job: Job, message: str, status: int | None, environment: JobEnvironment) -> NoReturn:
    """Write failed.json and end the task with an error, which SLURM takes for a failed job."""
    rank = environment.global_rank
    if rank:
        message = f"process {rank}: {message}"
    else:
        _close_attempt(job, f"failed: {message}")
    if job.failed() is None:
        lines = tail(job, rank)
        write_json(job.path / "failed.json", {"message": message, "status": status, "log": lines})
    raise StageError(message)
