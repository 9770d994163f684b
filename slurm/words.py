"""Plain words for why jobs wait and how they ended."""

from __future__ import annotations

from typing import Any

from slurm.jobs import Job
from slurm.states import State
from slurm.survey import Row

WHY_LENGTH = 100

REASONS = {
    "None": "just submitted",
    "Priority": "others go first",
    "Resources": "waits for free nodes",
    "Dependency": "waits for jobs before it",
    "DependencyNeverSatisfied": "a job before it failed, so that SLURM will cancel this one",
    "BeginTime": "requeued, starts again soon",
    "Cleaning": "its last start is still being cleaned up",
    "launch_failed_requeued_held": "its node could not start it; `scontrol release {id}`",
    "job_requeued_in_held_state": "requeued, but held; `scontrol release {id}`",
    "JobHeldUser": "held by its user; `scontrol release {id}`",
    "JobHeldAdmin": "held by an administrator",
    "JobArrayTaskLimit": "array_parallelism in the profile lets no more run at once",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is not in use",
    "PartitionTimeLimit": "the partition does not allow that long: lower time in the profile",
    "PartitionNodeLimit": "the partition does not allow so many nodes",
    "ReqNodeNotAvail": "a node that it needs is down or reserved",
    "Reservation": "waits for its reservation",
    "NodeDown": "its node is down",
    "BadConstraints": "no node is like that: see constraint in the profile",
    "QOSMaxJobsPerUserLimit": "the QOS lets no more of your jobs run at once",
    "QOSMaxSubmitJobPerUserLimit": "the QOS takes no more jobs of yours",
}
# Where a word is none of these, what it begins with.
KINDS = {"QOS": "a limit of the QOS", "Max": "a limit of your account"}
KINDS |= {"Assoc": KINDS["Max"], "ReqNode": REASONS["ReqNodeNotAvail"]}
ENDS = {
    "CANCELLED": "it was cancelled",
    "COMPLETED": "SLURM says COMPLETED, but no result is seen (yet)",
    "FAILED": "killed without a word: most often memory ran out (memory_gb in the profile)",
    "GONE": "SLURM no longer knows it",
    "NODE_FAIL": "its node failed, and it was not requeued",
    "OUT_OF_MEMORY": "memory ran out: raise memory_gb in the profile",
    "PREEMPTED": "it was preempted and not requeued: set requeue in the profile",
    "TIMEOUT": "its time was up: raise time or signal_delay_seconds in the profile",
}


def why(row: Row) -> str:
    """Why a job waits, or how it failed; empty where there is nothing to say."""
    if row.outcome == "failed":
        return _own_words(row.job.failed() or {})
    if row.state == "waiting" and row.slurm is not None:
        return why_waiting(row, row.slurm.reason)
    if row.state == "unknown":
        ran = row.attempts and row.attempts[-1]["ended"] is None
        return f"SLURM does not answer; it {'was running' if ran else 'was waiting'} before"
    if row.state == "cancelled":
        return f"by SLURM, since {row.blame} did not succeed" if row.blame else ""
    if row.state in ("failed", "ended", "lost") and row.slurm is not None:
        return how_ended(row.slurm, row.id)
    return ""


def how_ended(state: State, job_id: str) -> str:
    """How a job ended that could not say so itself."""
    if not job_id:
        return "it never reached SLURM, or was forgotten before its id was written down"
    return ENDS.get(state.name, f"SLURM says {state.name}")


def _own_words(failed: dict[str, Any]) -> str:
    """The job's own message, and the last line it printed: that is where errors stand."""
    said = [line.strip() for line in failed.get("log") or [] if line.strip()]
    first = str(failed.get("message", "")).partition("\n")[0]
    text = f"{first}: {said[-1]}" if said else first
    return text if len(text) <= WHY_LENGTH else text[: WHY_LENGTH - 1] + "…"


def why_waiting(row: Row, reason: str) -> str:
    """Why SLURM lets a job wait, in its word and in plain ones."""
    # "ReqNodeNotAvail, UnavailableNodes:n1", "launch failed requeued held"
    word = reason.partition(",")[0].strip().replace(" ", "_") or "None"
    plain = REASONS.get(word) or next((KINDS[k] for k in KINDS if word.startswith(k)), "")
    if word == "Dependency":
        root = row.job.path.parents[1]
        late = {name for name in row.record.task.late.values() if Job(root / name).made() is None}
        stages = sorted({name.partition("/")[0].partition("@")[0] for name in late})
        plain = f"waits for {', '.join(stages)}" if stages else plain
    if word == "BeginTime" and not row.attempts:
        plain = "may not start yet"
    if word == "None":
        return plain
    return f"{word}: {plain.format(id=row.id)}" if plain else word
