"""What a job has printed, or why it has printed nothing:

    python -m slurm.logs STAGE [-f] [--job ID] [--rank N]

STAGE is the address of one (grid@ofq-2-0), or a stage that has only one (teacher).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from slurm.errors import SlurmError, command_main, did_you_mean
from slurm.jobs import Job, Jobs
from slurm.survey import Row, find_root, refresh, select, survey
from slurm.words import why

TICK = 0.2
POLL_SECONDS = 5.0
# On a network file system a result may be seen later than the end of its job.
SETTLE_SECONDS = 5.0
FAILED = 1
SUCCEEDED = ("done", "collected")


def find(jobs: Jobs, stage: str | None, job_id: str | None) -> Row:
    """The job whose log is wanted: the stage's latest, or the one with an id.

    Raises:
        SlurmError: there is none, or several stages match.
    """
    rows = select(survey(jobs), [stage] if stage else [])
    if job_id:
        # Of an array as well, and of a job that was sent off again since.
        ids = {id(row): {row.id, *(attempt["job"] for attempt in row.attempts)} for row in rows}
        everything = sorted(set().union(*ids.values()) - {""})
        rows = [r for r in rows if job_id in ids[id(r)] or row_of_array(ids[id(r)], job_id)]
        if not rows:
            of = f" of {stage}" if stage else ""
            raise SlurmError(f"no job {job_id}{of} here{did_you_mean(job_id, everything)}")
    addresses = list(dict.fromkeys(row.job.stage for row in rows))
    if len(addresses) > 1:
        several = "\n".join(f"  {address}" for address in addresses)
        raise SlurmError(f"{job_id or stage} means several jobs, name one of them:\n{several}")
    return rows[-1]


def row_of_array(ids: Iterable[str], array: str) -> bool:
    """Whether one of the ids is of a job of the array."""
    return any(known.partition("_")[0] == array for known in ids)


class Printer:
    """Prints what a log has got, with a line where another attempt begins."""

    def __init__(self, job: Job, rank: int) -> None:
        self.job, self.rank = job, rank
        self.path = job.log if rank == 0 else job.path / f"log-{rank}.txt"
        self._at, self._attempts, self._line = 0, 0, True

    def print_new(self) -> bool:
        """Print what has come since the last call; whether anything did."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                new = file.read()
        except OSError:
            new = b""
        begun = self._begun(self._at + len(new))
        for place, line in begun:
            cut = max(0, place - self._at)
            self._write(new[:cut])
            self._write((b"" if self._line else b"\n") + line.encode() + b"\n")
            new, self._at = new[cut:], self._at + cut
        self._write(new)
        self._at += len(new)
        sys.stdout.flush()
        return bool(begun or new)

    def _begun(self, end: int) -> list[tuple[int, str]]:
        """Where attempts began that were not announced yet, and the lines for it.

        Asked for after the log was read: what an attempt printed is never seen before the attempt.
        """
        if self.rank:  # attempts note where they begin in the first task's log only
            return []
        attempts = self.job.attempts()
        fresh = []
        for number, attempt in list(enumerate(attempts, 1))[self._attempts :]:
            if attempt["log_offset"] > end:
                break
            fresh.append((attempt["log_offset"], announce(number, attempt, attempts)))
        self._attempts += len(fresh)
        return fresh

    def _write(self, text: bytes) -> None:
        # Bytes: a log may be cut anywhere while it is followed, also inside a character.
        if text:
            sys.stdout.flush()
            sys.stdout.buffer.write(text)
            self._line = text.endswith(b"\n")


def announce(number: int, attempt: dict[str, Any], attempts: list[dict[str, Any]]) -> str:
    """The line before what an attempt printed."""
    began = datetime.fromisoformat(attempt["began"]).astimezone()
    today = began.date() == datetime.now().astimezone().date()
    since = began.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")
    before = f" (the one before: {attempts[number - 2]['how']})" if number > 1 else ""
    job = f"job {attempt['job']} on {attempt['nodes']}"
    return f"--- attempt {number}: {job} since {since}{before} ---"


def print_launch_log(row: Row, rank: int) -> None:
    """Print what submitit wrote of a job that died before its stage could print anything."""
    folder = launch_folder(row)
    for path in sorted(folder.glob(f"{row.id}_{rank}_log.*")) if row.id else ():
        print(f"--- {path} ---")
        print(path.read_text(errors="replace").rstrip("\n"))


def launch_folder(row: Row) -> Path:
    """Where submitit's files of a job are."""
    return row.job.path.parents[2] / "launches" / row.record.launch


def describe(row: Row) -> str:
    """A job and its state in one line."""
    reason = why(row)
    where = f" on {row.node}" if row.state == "running" and row.node else ""
    said = f": {reason}" if reason else ""
    return f"{row.job.stage}: job {row.id or '?'} {row.state}{where}{said}"


def tell(text: str) -> None:
    """Say something that is not the log's."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def explain_end(row: Row, rank: int) -> None:
    """Say how a job ended that did not succeed, with submitit's log where its stage never began."""
    if row.state in SUCCEEDED:
        return
    tell(describe(row))
    if not row.started:
        print_launch_log(row, rank)
        if row.record.launch:
            tell(f"submitit's own log: {launch_folder(row)}")


def follow(jobs: Jobs, row: Row, rank: int) -> int:
    """Print the log as it grows until the job ends; 0 where it succeeded, else 1."""
    printer, said, asked = Printer(row.job, rank), "", time.monotonic()
    ended_at: float | None = None
    while True:
        outcome = row.outcome
        # After that look: what the job printed last is seen as well.
        printed = printer.print_new()
        if outcome:
            (row,) = refresh(jobs, [row])
            explain_end(row, rank)
            return FAILED if outcome == "failed" else 0
        over = not row.alive and row.state not in ("unknown", "submitting")
        text = describe(row)
        if text != said and row.state != "running" and not over:
            tell(text)
        said, now = text, time.monotonic()
        ended_at = (ended_at or now) if over and not printed else None
        if ended_at is not None and now - ended_at >= SETTLE_SECONDS:
            # Asked for with all others: why it ended may be another job.
            row = next((r for r in survey(jobs) if r.job.name == row.job.name), row)
            explain_end(row, rank)
            return 0 if row.state in SUCCEEDED else FAILED
        time.sleep(TICK)
        if now - asked >= POLL_SECONDS:
            (row,), asked = refresh(jobs, [row]), now


def show(row: Row, rank: int) -> None:
    """Print the log as it is now, and what is to be known where there is none."""
    printed = Printer(row.job, rank).print_new()
    if row.state not in SUCCEEDED and not row.alive:
        explain_end(row, rank)
    elif (row.state != "running" and row.alive) or not printed:
        tell(describe(row))
        if row.record.launch and not row.started:
            tell(f"submitit's own log: {launch_folder(row)}")


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m slurm.logs")
    parser.add_argument("stage", nargs="?", metavar="STAGE", help="such as grid@ofq-2-0")
    parser.add_argument("-f", "--follow", action="store_true", help="until the job ends")
    parser.add_argument("--job", metavar="ID", help="not the latest job, but this one of SLURM's")
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="of several processes")
    arguments = parser.parse_args(argv)
    if not (arguments.stage or arguments.job):
        parser.error("name a STAGE or a --job")
    jobs = Jobs(find_root())
    row = find(jobs, arguments.stage, arguments.job)
    if not 0 <= arguments.rank < row.record.tasks:
        raise SlurmError(f"--rank {arguments.rank}: {row.job.stage} has {row.record.tasks} tasks")
    if arguments.follow:
        return follow(jobs, row, arguments.rank)
    show(row, arguments.rank)
    return 0


if __name__ == "__main__":
    command_main(main, sys.argv[1:])
