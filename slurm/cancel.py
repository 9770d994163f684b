"""Cancel jobs that wait or run:

    python -m slurm.cancel TARGET ... | --all

A TARGET is a stage (grid), the address of one (grid@ofq-2-0) or a pattern ('grid@ofq-*'). What has
been saved stays: the next `dvc repro` submits the stage anew and goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from slurm import cluster
from slurm.errors import SlurmError, command_main
from slurm.jobs import Jobs
from slurm.states import UNKNOWN
from slurm.survey import Row, find_root, refresh, select, survey
from slurm.sweeps import Sweeps, stands

# More jobs than these are counted, not listed.
MOST_LINES = 20


def cancel(jobs: Jobs, rows: list[Row]) -> None:
    """Cancel jobs, and see to it that `dvc repro` submits them anew instead of reporting them.

    Raises:
        SlurmError: SLURM refuses; what it has cancelled by then is marked.
    """
    problems = []
    for executor in sorted({row.record.executor for row in rows}):
        ids = [row.id for row in rows if row.record.executor == executor]
        problem = cluster.cancel(executor, ids)
        if problem:
            problems.append(problem)
    # One that ended by itself in between is no failure.
    left = [row for row in refresh(jobs, rows) if row.alive] if problems else []
    names = {row.job.name for row in left}
    for row in rows:
        if row.job.name not in names and row.outcome != "failed":
            (row.job.path / "reported").touch()
    if left:
        listed = ", ".join(f"{row.job.stage} (job {row.id})" for row in left[:MOST_LINES])
        raise SlurmError(f"could not cancel {listed}: {'; '.join(problems)}")


def dependents(rows: list[Row], gone: list[Row]) -> list[Row]:
    """Jobs that wait for some which will not succeed, directly or through others."""
    names = {row.job.name for row in gone}
    found: list[Row] = []
    # Upstream first, as `survey` has them.
    for row in rows:
        waits = row.state == "waiting" and row.job.name not in names
        if waits and names & set(row.record.task.late.values()):
            names.add(row.job.name)
            found.append(row)
    return found


def listed(rows: list[Row]) -> str:
    """Jobs by stage: 'teacher, grid (12)'."""
    count = Counter(row.job.stage.partition("@")[0] for row in rows)
    return ", ".join(f"{stage} ({n})" if n > 1 else stage for stage, n in count.items())


def report(rows: list[Row]) -> None:
    """Say what was cancelled."""
    if len(rows) > MOST_LINES:
        print(f"cancelled {len(rows)} jobs: {listed(rows)}")
        return
    for row in rows:
        where = f" on {row.node}" if row.node else ""
        ended = f"had ended already: {row.outcome}" if row.outcome else ""
        print(f"{row.job.stage}: job {row.id} {ended or f'cancelled, was {row.state}{where}'}")


def cancel_sweeps(jobs: Jobs) -> int:
    """Cancel the experiments of sweeps that wait or run; how many.

    Raises:
        SlurmError: SLURM has something against it.
    """
    experiments = Sweeps(jobs).everything()
    found = stands(experiments)
    open_ids: dict[str, list[str]] = {}
    for experiment in experiments:
        order = experiment.order()
        if order is not None and order.job_id and not found[experiment.path].ended:
            open_ids.setdefault(order.executor, []).append(order.job_id)
    for executor, ids in open_ids.items():
        problem = cluster.cancel(executor, ids)
        if problem:
            raise SlurmError(f"experiments of sweeps could not be cancelled: {problem}")
    return sum(map(len, open_ids.values()))


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m slurm.cancel")
    words = "a stage (grid), its address (grid@ofq-2-0) or a pattern ('grid@ofq-*')"
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=words)
    parser.add_argument("--all", action="store_true", help="every job of this workspace")
    arguments = parser.parse_args(argv)
    if bool(arguments.targets) == arguments.all:
        parser.error("name what to cancel, or --all" if not arguments.all else "a TARGET or --all")
    jobs = Jobs(find_root())
    rows = survey(jobs)
    meant = select(rows, arguments.targets)
    if any(row.slurm is UNKNOWN for row in meant):
        raise SlurmError("SLURM does not answer, nothing was cancelled; is its controller up?")
    wanted = [row for row in meant if row.alive and row.state != "ending"]
    underway = [row for row in meant if row.state == "submitting"]
    swept = cancel_sweeps(jobs) if arguments.all else 0
    if swept:
        print(f"cancelled: {swept} experiments of sweeps")
    if wanted:
        cancel(jobs, wanted)
        report(wanted)
    elif not underway and not swept:
        print("nothing to cancel: no such job waits or runs")
    if underway:
        print(f"still being submitted, try again in a moment: {listed(underway)}")
    also = [row for row in dependents(rows, wanted) if row.record.executor == "slurm"]
    if also:
        print(f"SLURM cancels what waits for them, too: {listed(also)}")
    return 0


if __name__ == "__main__":
    command_main(main, sys.argv[1:])
