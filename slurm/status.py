"""What the jobs of a workspace are doing:

    python -m slurm.status [TARGET ...] [--all] [--json]

A TARGET is a stage (grid), the address of one (grid@ofq-2-0) or a pattern ('grid@ofq-*').
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from slurm.errors import command_main
from slurm.jobs import Jobs
from slurm.show import table
from slurm.states import UNKNOWN
from slurm.survey import Row, find_root, select, survey
from slurm.words import why

NONE_YET = "no jobs yet; `python -m slurm.submit` sends every changed stage to the cluster"

IDENTITY = ("stage", "job", "state", "node", "elapsed", "starts")
PROGRESS = ("epoch", "loss", "validation", "left", "why")


def cells(row: Row) -> tuple[str, ...]:
    """A job's line of the table."""
    epoch, epochs, loss, top1, left = (
        row.progress.get(key) for key in ("epoch", "epochs", "loss", "val_top1", "seconds_left")
    )
    elapsed = clock(row.seconds)
    if not elapsed and row.state == "running" and row.slurm is not None:
        elapsed = row.slurm.elapsed
    return (
        row.job.stage,
        row.id or ("here" if row.record.executor == "here" else "?"),
        row.state,
        row.node,
        elapsed,
        str(len(row.attempts)) if len(row.attempts) > 1 else "",
        f"{epoch}/{epochs}" if epochs else "",
        f"{loss:.3f}" if isinstance(loss, int | float) else "",
        f"{top1:.2f} %" if isinstance(top1, int | float) else "",
        clock(left) if row.state == "running" and isinstance(left, int | float) else "",
        why(row),
    )


def as_json(row: Row) -> dict[str, Any]:
    """A job for other programs."""
    return {
        "stage": row.job.stage,
        "folder": str(row.job.path),
        "id": row.id or None,
        "executor": row.record.executor,
        "submitted": row.record.submitted,
        "state": row.state,
        "slurm": None if row.slurm is None else row.slurm.name,
        "reason": (row.slurm.reason if row.slurm else "") or None,
        "why": why(row) or None,
        "node": row.node or None,
        "seconds": row.seconds,
        "starts": len(row.attempts),
        "progress": row.progress or None,
    }


def clock(seconds: float | None) -> str:
    """Seconds as SLURM writes a time: 0:45, 1:02:03, 2-04:00:00; empty for None."""
    if seconds is None:
        return ""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}-{hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last job of every stage, and older ones that still take up the cluster."""
    rows = list(rows)
    last = {row.job.stage: row for row in rows}
    return [row for row in rows if row.alive or last[row.job.stage] is row]


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m slurm.status")
    words = "a stage (grid), its address (grid@ofq-2-0) or a pattern ('grid@ofq-*')"
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=words)
    parser.add_argument("--all", action="store_true", help="also collected and earlier jobs")
    parser.add_argument("--json", action="store_true", help="for other programs")
    arguments = parser.parse_args(argv)
    rows = select(survey(Jobs(find_root())), arguments.targets)
    shown = rows if arguments.all else latest(rows)
    hidden = "" if arguments.all else "collected"
    collected = [row for row in shown if row.state == hidden]
    shown = [row for row in shown if row.state != hidden]
    silent = any(row.slurm is UNKNOWN for row in rows)
    if arguments.json:
        jobs = [as_json(row) for row in shown]
        found = {"slurm_answers": not silent, "collected": len(collected), "jobs": jobs}
        print(json.dumps(found, indent=1))
        return 0
    if silent:
        print("SLURM does not answer; this is what the jobs' files say\n")
    if shown:
        print(table(IDENTITY + PROGRESS, [cells(row) for row in shown]))
    count = Counter(row.state for row in [*shown, *collected])
    print(", ".join(f"{number} {state}" for state, number in count.items()) or NONE_YET)
    return 0


if __name__ == "__main__":
    command_main(main, sys.argv[1:])
