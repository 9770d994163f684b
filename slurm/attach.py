"""Wait for a job, show how it gets on, and bring its outputs into the workspace."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TextIO

from slurm.cluster import cancel, job_states
from slurm.collect import DamagedError, NotOwnerError, collect, take_over
from slurm.ids import SUBMITTING_SECONDS, lost_ids
from slurm.jobs import Job, Jobs, Record, tail
from slurm.profile import Profile
from slurm.states import GONE, UNKNOWN, State
from slurm.words import how_ended

# Files are looked at this often; SLURM is asked less often, as the profile says.
TICK = 0.1
# On a network file system a result may be seen later than the end of its job.
SETTLE_SECONDS = 5.0
# One that ended well has a result, so it is worth waiting for.
COMPLETED_SECONDS = 90.0
# So long after a task failed SLURM may still say that it starts the job again.
REQUEUE_SECONDS = 10.0
LINE_SECONDS = 30.0
INTERRUPTED = 130
FAILED = 1


class InterruptedWait(Exception):  # noqa: N818 - no error
    """Ctrl-C, or SIGTERM."""


def attach(
    jobs: Jobs,
    job: Job,
    profile: Profile,
    unchanged: Callable[[], bool] = lambda: True,
    stream: TextIO | None = None,
) -> int:
    """Follow a job to its end.

    Args:
        unchanged: whether the workspace still asks for just this. DVC hashes dependencies after the
            command: it would record an edit of meanwhile as what the old result came from.

    Returns:
        Exit status for DVC: 0 with all outputs in place, 1 when the job failed (said on stderr),
        130 when interrupted, or when another process has attached since.
    """
    record = job.record()
    assert record is not None, job.path
    shown, token = (
        Display(job, sys.stderr if stream is None else stream),
        take_over(jobs, job.stage),
    )
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        failure = _wait(jobs, job, record, profile, shown)
    except (KeyboardInterrupt, InterruptedWait):
        shown.end()
        _leave(job, record, profile)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    shown.end()
    if failure is not None:
        (job.path / "reported").touch()
        print(failure, file=sys.stderr, flush=True)
        return FAILED
    if not unchanged():
        print(
            f"{job.stage}: its code, inputs or settings have changed while its job ran. Nothing "
            "was taken over; `dvc repro` runs the stage as it is now, and with the change undone "
            "takes the result of this job",
            file=sys.stderr,
        )
        return FAILED
    try:
        collect(jobs, job, token)
    except NotOwnerError:
        return INTERRUPTED
    except DamagedError as error:
        print(f"{error} with the next `dvc repro`", file=sys.stderr)
        return FAILED
    return 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise InterruptedWait


def _wait(jobs: Jobs, job: Job, record: Record, profile: Profile, shown: Display) -> str | None:
    """Until the job has ended: None when its outputs are complete, else what went wrong."""
    asked, ended_at, failed_at = 0.0, None, None
    state = State("UNKNOWN")
    while True:
        if job.done() is not None:
            return None
        now, failed = time.monotonic(), job.failed()
        failed_at = (failed_at or now) if failed is not None else None
        if failed is not None and failed_at is not None:
            # One of several tasks may fail because SLURM takes the node of another, and requeues.
            settled = record.tasks == 1 or state.ended or now - failed_at >= REQUEUE_SECONDS
            if settled and not _state(jobs, job, record).waits:
                return explain(job, record, failed["message"], failed["log"])
        if now - asked >= profile.poll_seconds or not asked:
            state = _state(jobs, job, record)
            asked = time.monotonic()
            shown.update(record, state)
            ended_at = (ended_at or now) if state.ended else None
            if state.ended:
                # Has a network file system look again for files that were not there.
                os.listdir(job.path)
        patience = COMPLETED_SECONDS if state.name == "COMPLETED" else SETTLE_SECONDS
        if ended_at is not None and now - ended_at >= patience:
            return explain(job, record, how_ended(state, record.job_id), None)
        time.sleep(TICK)


def _state(jobs: Jobs, job: Job, record: Record) -> State:
    """What SLURM says of a job. An id that the record lacks is looked for, and put there."""
    if not record.job_id:
        written = job.record()
        if written is None:  # SLURM has refused it.
            return GONE
        record.launch, record.submitted = written.launch, written.submitted
        record.job_id = written.job_id
    if not record.job_id and record.executor == "slurm":
        found = lost_ids(jobs, record.launch)
        if found is None:
            return UNKNOWN
        record.job_id = found.get(job.name, "")
    if not record.job_id and time.time() - record.submitted < SUBMITTING_SECONDS:
        return State("PENDING", "being submitted")
    return job_states(record.executor, [job], {job.name: record.job_id})[job.name]


def explain(job: Job, record: Record, message: str, lines: list[str] | None) -> str:
    """What is shown at the prompt of a job that failed."""
    here = [attempt for attempt in job.attempts() if attempt["job"] == record.job_id]
    if lines is None:
        # An older attempt's words would mislead.
        lines = tail(job) if here else []
    text = [f"{job.stage}: job {record.job_id or '?'} failed: {message}"]
    if lines:
        text += ["", *(f"    {line}" for line in lines), ""]
    launch = job.path.parents[2] / "launches" / record.launch
    where = job.log if job.log.exists() else launch
    text.append(f"log: {where}")
    if not here:
        text.append(f"It never started there; what SLURM and submitit printed is in {launch}")
    text.append("`dvc repro` submits it again and goes on from its last checkpoint.")
    return "\n".join(text)


def _leave(job: Job, record: Record, profile: Profile) -> None:
    if profile.on_interrupt == "leave" or not record.job_id:
        print(
            f"{job.stage}: job {record.job_id} goes on; `dvc repro` attaches to it again, "
            f"`python -m slurm.cancel {job.stage}` ends it",
            file=sys.stderr,
        )
        return
    problem = cancel(record.executor, [record.job_id])
    said = f"could not be cancelled: {problem}" if problem else "cancelled"
    print(f"{job.stage}: job {record.job_id} {said}", file=sys.stderr)
    # Ended on request: the next `dvc repro` need not report it before it starts anew.
    (job.path / "reported").touch()


class Display:
    """One line on a terminal that changes; elsewhere a line when something changes."""

    def __init__(self, job: Job, stream: TextIO) -> None:
        self.job, self.stream = job, stream
        self.terminal = stream.isatty()
        self._said, self._at, self._width = "", 0.0, 0

    def update(self, record: Record, state: State) -> None:
        """Show where the job is."""
        kind = f"{state.name} {state.node} {state.reason}"
        text = f"{self.job.stage}: job {record.job_id or '?'} {describe(self.job, state)}"
        if self.terminal:
            self.stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        elif kind != self._said or time.monotonic() - self._at >= LINE_SECONDS:
            print(text, file=self.stream)
            self._said, self._at = kind, time.monotonic()
        self.stream.flush()

    def end(self) -> None:
        """Leave the line."""
        if self.terminal and self._width:
            self.stream.write("\n")
            self.stream.flush()


def describe(job: Job, state: State) -> str:
    """State, and epoch, loss and time left from the run's own file."""
    name = state.name.lower()
    if state.name == "UNKNOWN":
        name = "not known: SLURM does not answer"
    text = name + (f" on {state.node}" if state.node else "")
    if state.waits and state.reason:
        text += f" ({state.reason})"
    progress = job.progress()
    if state.name == "RUNNING" and progress:
        text += ", " + describe_progress(progress)
    return text


def describe_progress(progress: dict[str, object]) -> str:
    """Epoch, loss, validation and time left."""
    parts = [f"epoch {progress.get('epoch')}/{progress.get('epochs')}"]
    loss, top1, left = (progress.get(key) for key in ("loss", "val_top1", "seconds_left"))
    if isinstance(loss, float):
        parts.append(f"loss {loss:.3f}")
    if isinstance(top1, int | float):
        parts.append(f"validation {top1:.2f} %")
    if isinstance(left, int | float):
        parts.append(f"{duration(left)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as 45 s, 12 min, 3 h 20 min or 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
