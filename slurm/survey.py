"""The jobs of a workspace and what SLURM says of them: what status, logs and cancel go by."""

from __future__ import annotations

import fnmatch
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from slurm import cluster
from slurm.errors import SlurmError, did_you_mean
from slurm.ids import SUBMITTING_SECONDS, lost_ids
from slurm.jobs import Job, Jobs, Record
from slurm.states import GONE, UNKNOWN, State

PATIENCE_SECONDS = 3.0

# SLURM's words for what a user sees as one.
WORDS = {
    "RUNNING": "running",
    "CONFIGURING": "starting",
    "COMPLETING": "ending",
    "SIGNALING": "ending",
    "SUSPENDED": "suspended",
    "CANCELLED": "cancelled",
    # It should have left a result. On a network file system that may be seen later.
    "COMPLETED": "ended",
    "GONE": "lost",
    "UNKNOWN": "unknown",
}
# States of jobs that SLURM has not done with.
ALIVE = frozenset({"waiting", "starting", "running", "ending", "suspended"})


@dataclass
class Row:
    """One job, and what SLURM says of it. id: also where it was never written down."""

    job: Job
    record: Record
    id: str
    slurm: State | None = None
    blame: str = ""

    @property
    def outcome(self) -> str:
        """How it ended as its files have it: collected, done or failed, else empty."""
        marker = self.job.path.parents[2] / "collected" / self.job.name
        if self.job.retired():
            return "collected"
        if (self.job.path / "done.json").exists():
            return "collected" if marker.exists() else "done"
        return "failed" if (self.job.path / "failed.json").exists() else ""

    @cached_property
    def state(self) -> str:
        """The state in a user's words."""
        if self.outcome or self.slurm is None:
            return self.outcome or "unknown"
        if not self.id and self.slurm is GONE:
            recent = time.time() - self.record.submitted < SUBMITTING_SECONDS
            return "submitting" if recent else "lost"
        other = "failed" if self.slurm.ended else self.slurm.name.lower()
        return "waiting" if self.slurm.waits else WORDS.get(self.slurm.name, other)

    @property
    def alive(self) -> bool:
        """Whether it waits or runs, as far as SLURM says."""
        return self.state in ALIVE

    @cached_property
    def attempts(self) -> list[dict[str, Any]]:
        """Every start, also those before it was last submitted."""
        return self.job.attempts()

    @property
    def started(self) -> bool:
        """Whether the stage has started since it was last submitted."""
        return any(attempt["job"] == self.id for attempt in self.attempts)

    @cached_property
    def progress(self) -> dict[str, Any]:
        """Where training stands, or stood."""
        return self.job.progress() or {}

    @property
    def node(self) -> str:
        """Where it runs or last ran."""
        if self.state == "waiting":
            return ""
        node = self.slurm.node if self.slurm else ""
        return node or (str(self.attempts[-1]["nodes"]) if self.attempts else "")

    @property
    def seconds(self) -> float | None:
        """How long it has run, over all starts whose end is known."""
        total = None
        for attempt in self.attempts:
            end = attempt["ended"]
            if end is None and (attempt is not self.attempts[-1] or self.state != "running"):
                continue
            ended = datetime.fromisoformat(end).timestamp() if end else time.time()
            began = datetime.fromisoformat(attempt["began"]).timestamp()
            total = (total or 0.0) + max(0.0, ended - began)
        return total


def find_root() -> Path:
    """The workspace: the folder with dvc.yaml that holds the current one.

    Raises:
        SlurmError: there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise SlurmError(f"{here}: no dvc.yaml here or above; run from a clone of the repository")


def survey(jobs: Jobs) -> list[Row]:
    """All jobs of a workspace with their states, in the order of the pipeline."""
    rows = []
    for job in jobs:
        record = job.record()
        if record is not None:
            rows.append(Row(job, record, record.job_id))
    rows.sort(key=lambda row: (row.record.submitted, _natural(row.job.stage)))
    with _patience():
        _ask(jobs, [row for row in rows if not row.outcome])
    states = {row.job.name: row for row in rows}
    for row in rows:
        late = [states[name] for name in row.record.task.late.values() if name in states]
        fine = ALIVE | {"done", "collected"}
        row.blame = next((up.job.stage for up in late if up.state not in fine), "")
    return rows


def refresh(jobs: Jobs, rows: Iterable[Row]) -> list[Row]:
    """The same jobs as they are now."""
    fresh = []
    for row in rows:
        record = row.job.record() or row.record
        fresh.append(Row(row.job, record, record.job_id or row.id, blame=row.blame))
    _ask(jobs, [row for row in fresh if not row.outcome])
    return fresh


def _natural(address: str) -> list[tuple[int, str]]:
    """For sorting: grid@lsq-4-2 before grid@lsq-4-10."""
    parts = re.split(r"(\d+)", address)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


@contextmanager
def _patience() -> Iterator[None]:
    """Say what is being waited for when SLURM takes its time."""
    said = "waiting for SLURM's answer ...\n"
    timer = threading.Timer(PATIENCE_SECONDS, sys.stderr.write, [said])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _ask(jobs: Jobs, rows: list[Row]) -> None:
    """Take in the states of jobs; one query for all whose ids are known, one per lost array."""
    known = [row for row in rows if row.id]
    for executor in {row.record.executor for row in known}:
        _take(executor, [row for row in known if row.record.executor == executor])
    nameless = [row for row in rows if not row.id]
    _recover(jobs, nameless, silent=any(row.slurm is UNKNOWN for row in known))
    _take("slurm", [row for row in nameless if row.id])
    for row in nameless:
        row.slurm = row.slurm or GONE


def _take(executor: str, rows: list[Row]) -> None:
    if rows:
        ids = {row.job.name: row.id for row in rows}
        found = cluster.job_states(executor, [row.job for row in rows], ids)
        for row in rows:
            row.slurm = found[row.job.name]


def _recover(jobs: Jobs, rows: list[Row], silent: bool) -> None:
    """Find the ids of jobs whose submitter was killed; unknown is what SLURM does not answer for.

    Args:
        silent: SLURM has not answered before. It is not asked again then.
    """
    launches: dict[str, dict[str, str]] = {}
    for row in rows:
        launch = row.record.launch
        if row.record.executor != "slurm":
            continue
        if launch not in launches and not silent:
            found = lost_ids(jobs, launch)
            silent = found is None
            launches[launch] = found or {}
        if silent:
            row.slurm = UNKNOWN
        else:
            row.id = launches[launch].get(row.job.name, "")


def matches(address: str, target: str) -> bool:
    """Whether the address of a stage is meant by a target."""
    return address.partition("@")[0] == target or fnmatch.fnmatchcase(address, target)


def select(rows: Sequence[Row], targets: Iterable[str]) -> list[Row]:
    """The jobs that targets mean, all without a target.

    Raises:
        SlurmError: a target means none.
    """
    wanted = list(targets)
    addresses = {row.job.stage for row in rows}
    names = sorted({address.partition("@")[0] for address in addresses})
    for target in wanted:
        if not any(matches(address, target) for address in addresses):
            known = addresses if "@" in target else names
            hint = did_you_mean(target, known)
            there = f"stages with jobs: {', '.join(names)}" if names else "no stage has one yet"
            raise SlurmError(f"no job of a stage {target!r}{hint} ({there})")
    return [row for row in rows if not wanted or any(matches(row.job.stage, t) for t in wanted)]
