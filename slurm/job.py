"""What runs on the node: a stage in a private folder, with its inputs, until it is done.

submitit starts a `StageJob` for every task of a job, and again after every requeue. SIGUSR2 comes
before the time limit and, on clusters that send it, before preemption: the stage is told to save
and stop (SIGTERM), and the job asks SLURM to be started again. Where only SIGTERM comes, it reaches
the stage as well, and SLURM itself starts the job again.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import DelayedSubmission, UncompletedJobError
from submitit.helpers import Checkpointable

from slurm.attempts import close_attempt, open_attempt
from slurm.jobs import Job, Record, tail, write_json
from slurm.layout import (
    StageError,
    command_of,
    stage_environment,
    stage_inputs,
    write_done,
)
from slurm.states import states

# A stage that was told to stop and has saved ends with this status.
STOPPED = (143, -signal.SIGTERM)
# The longest that SLURM takes, after SIGTERM, to end a job it takes the node from.
PATIENCE_SECONDS = 600.0
READY_SECONDS = 600.0
TICK = 0.05
# How often it is looked at whether a later attempt has started.
LOOK_SECONDS = 2.0
# How often SLURM is asked again for a requeue that it refused or did not hear of.
AGAIN_SECONDS = 5.0
# prctl's word for the signal that a process gets when its parent dies. Linux alone has it.
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class StageJob(Checkpointable):  # type: ignore[misc]
    """Run one stage in the folder of its job, .slurm/jobs/<stage>/<key>."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._status: int | None = None
        self._token = ""

    def __getstate__(self) -> dict[str, Any]:
        # Pickled by the handler of SIGUSR2 while the stage runs.
        return {"_process": None, "_status": None, "_token": ""}

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
            self._watch(job)
            if self._status in STOPPED:
                self._await_the_end(job, main)
            if self._status:
                raise StageError(_why(self._status))
            if main:
                self._finish(job, record)
        except subprocess.SubprocessError as error:
            # `scontrol requeue`, in the handler of SIGUSR2, had no success.
            if _requeued_after_all(error, environment.job_id, record.grace_seconds):
                self._await_the_end(job, main)
            self._fail(job, str(error), environment)
        except (StageError, UncompletedJobError, OSError) as error:
            self._fail(job, str(error), environment)
        return folder

    def _fail(self, job: Job, message: str, environment: JobEnvironment) -> None:
        """End with an error, which SLURM takes for a failed job, unless all was done.

        Said in failed.json, unless another attempt has taken the folder over.

        Raises:
            StageError: always but where all was done.
        """
        if job.done() is not None:
            return
        rank = environment.global_rank
        if rank:
            message = f"process {rank}: {message}"
        if self._owns(job):
            if not rank:
                close_attempt(job, f"failed: {message}")
            if job.failed() is None:
                said = {"message": message, "status": self._status, "log": tail(job, rank)}
                write_json(job.path / "failed.json", said)
        raise StageError(message)

    def _owns(self, job: Job) -> bool:
        """Whether no later attempt has started: SLURM may take a node for lost that still runs."""
        try:
            return not self._token or (job.path / "ready").read_text() == self._token
        except FileNotFoundError:
            # Sent off again, and not started yet.
            return False
        except OSError:
            # The network drive hiccups.
            return True

    def _watch(self, job: Job) -> None:
        """Until the stage has ended."""
        looked = time.monotonic()
        while self._status is None:
            time.sleep(TICK)
            if time.monotonic() - looked < LOOK_SECONDS:
                continue
            looked = time.monotonic()
            if not self._owns(job) and self._process is not None:
                self._process.kill()
                raise StageError("another attempt of this job has taken over")

    def _finish(self, job: Job, record: Record) -> None:
        if not self._owns(job):
            raise StageError("another attempt of this job has taken over")
        write_done(job, record.task)

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
                # Requeued all the same: the next attempt finds that all is done.
                self._finish(job, record)
                return DelayedSubmission(self, folder)
        if record is not None and not record.requeue:
            close_attempt(job, how.replace("requeued", "not requeued"))
            return None
        close_attempt(job, how)
        return DelayedSubmission(self, folder)

    def _start(self, job: Job, record: Record, environment: JobEnvironment) -> None:
        ready = job.path / "ready"
        self._token = token = f"{environment.job_id}/{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        if environment.global_rank == 0:
            open_attempt(job, environment)
            stage_inputs(job, record)
            ready.write_text(token)
        else:
            _wait_for(ready, token)
        name = "log.txt" if environment.global_rank == 0 else f"log-{environment.global_rank}.txt"
        with (job.path / name).open("ab") as log:
            self._process = subprocess.Popen(
                command_of(record.task),
                cwd=job.work,
                env=stage_environment(job, record, environment.num_tasks),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=belong_to_the_job,
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
            close_attempt(job, "stopped by SLURM (SIGTERM) after saving")
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(TICK)


def _requeued_after_all(
    error: subprocess.SubprocessError, job_id: str, grace_seconds: float
) -> bool:
    """Whether the job starts again though asking for it failed; asks again for a while.

    SLURM refuses where it takes the node already and the job waits again, the SIGTERM for all of
    the job may end scontrol, and the controller may be down.
    """
    end = time.monotonic() + grace_seconds
    while True:
        if getattr(error, "returncode", None) == -signal.SIGTERM:
            return True
        state = states([job_id])[job_id]
        if state.waits or state.name in ("COMPLETING", "PREEMPTED"):
            return True
        if time.monotonic() > end:
            return False
        time.sleep(AGAIN_SECONDS)
        try:
            subprocess.run(["scontrol", "requeue", job_id], check=True, timeout=60)
            return True
        except subprocess.SubprocessError as again:
            error = again


def belong_to_the_job() -> None:
    """In the stage's process, before it becomes the stage."""
    # SLURM sends SIGUSR2 to every process of the job; it is meant for the parent alone.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    # Where SLURM has no cgroups, a stage whose parent was killed would train on without a job, in
    # the folder in which the next attempt trains.
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


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


def _why(status: int) -> str:
    if status > 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    hint = ": most often memory ran out" if status == -signal.SIGKILL else ""
    return f"killed ({name}){hint}"
