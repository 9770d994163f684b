"""What SLURM says of jobs: asked for all of a user's at once, and never taken for more than it is.

squeue is asked first: while it knows a job as waiting or running, the job is not done, whatever
accounting says (a job whose node failed is NODE_FAIL there, though it waits for another node).
Accounting (sacct) is asked for what squeue has forgotten, and need not exist.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
ANSWER_SECONDS = 40
# So many ids go on one command line.
MOST_IDS = 500


@dataclass(frozen=True)
class State:
    """One job. name: SLURM's word, GONE where neither squeue nor sacct knows it, UNKNOWN where
    SLURM does not answer. elapsed: as SLURM writes it."""

    name: str
    reason: str = ""
    node: str = ""
    elapsed: str = ""

    @property
    def ended(self) -> bool:
        """Whether SLURM has done with it."""
        return self.name in ENDED or self.name == "GONE"

    @property
    def waits(self) -> bool:
        """Whether it has not started, or is to start again."""
        return self.name in {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}


UNKNOWN, GONE = State("UNKNOWN"), State("GONE")


def states(ids: Iterable[str]) -> dict[str, State]:
    """The states of jobs by id; array elements as <array>_<index>."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    queue = _squeue()
    if queue is None:
        return dict.fromkeys(wanted, UNKNOWN)
    found = {job: queue[job] for job in wanted if job in queue}
    missing = [job for job in wanted if job not in found]
    if missing:
        accounted = _sacct(missing)
        found.update({job: accounted.get(job, GONE) for job in missing})
    return found


def _squeue() -> dict[str, State] | None:
    """All jobs of this user that the controller remembers; None when it does not answer."""
    words = ["squeue", "--noheader", "--array", "--all", "--states=all", f"--user={os.getuid()}"]
    output = _ask([*words, "--format=%i|%T|%r|%N|%M"])
    if output is None:
        return None
    found = {}
    for line in output.splitlines():
        job, name, reason, node, elapsed = line.split("|", 4)
        found[job] = State(name, "" if reason == "None" else reason, node, elapsed)
    return found


def _sacct(ids: list[str]) -> dict[str, State]:
    """What accounting has on jobs; nothing where there is no accounting."""
    found: dict[str, State] = {}
    for start in range(0, len(ids), MOST_IDS):
        some = ",".join(ids[start : start + MOST_IDS])
        words = ["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={some}"]
        output = _ask([*words, "--format=JobID,State,NodeList,Elapsed"])
        for line in (output or "").splitlines():
            job, name, node, elapsed = line.split("|", 3)
            # CANCELLED by <uid>
            found[job] = State(name.split()[0], "", node, elapsed)
    return found


def _ask(words: list[str]) -> str | None:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def cancel(ids: Iterable[str]) -> str | None:
    """Cancel jobs; what SLURM has against it, or None."""
    wanted, problem = sorted(set(ids)), None
    for start in range(0, len(wanted), MOST_IDS):
        try:
            done = subprocess.run(
                ["scancel", *wanted[start : start + MOST_IDS]],
                capture_output=True,
                text=True,
                check=False,
                timeout=ANSWER_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
            continue
        if done.returncode:
            problem = done.stderr.strip() or f"scancel: exit status {done.returncode}"
    return problem
