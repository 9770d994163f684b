"""Run many experiments on a cluster, one job each:

    python -m slurm.sweep -S 'quant.wbits=2,3,4' -S 'method=lsq,ofq' [TARGET ...]
                          [-n PREFIX] [--profile NAME] [--dry-run] [--wait]
    python -m slurm.sweep --list | --wait [--sweep SWEEP]

-S is that of `dvc exp run --queue`: lists and ranges become one experiment per combination. Each
runs as `dvc exp run` would, in a clone of the repository as it is now, and comes back as an
experiment of DVC's: `dvc exp show`, `dvc exp apply`. What has been sent off, or is done, is not
sent off again; what failed goes on from its last checkpoint.

The profile's resources are those of `sweep`. A job is one task on one node; where the profile asks
for several GPUs, or tasks, its stages run in as many processes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from slurm.commit import describe_commit
from slurm.errors import SlurmError, command_main
from slurm.jobs import Jobs
from slurm.launch import check_accepted, check_shared, grace_seconds
from slurm.pipeline import Pipeline
from slurm.profile import load_profile
from slurm.show import table
from slurm.snapshot import take_snapshot
from slurm.submit import locked
from slurm.survey import find_root
from slurm.sweep_plan import (
    Item,
    code_of,
    commit_of,
    digest_of,
    expand,
    match,
    name_all,
    resources_of,
    settings_of,
    teacher_remarks,
)
from slurm.sweep_send import send
from slurm.sweeps import SETTLE_SECONDS, Experiment, Order, Stand, Sweeps, stands

TARGETS = ["evaluate"]
POLL_SECONDS = 0.5


def submit(arguments: argparse.Namespace) -> int:
    """Send the experiments off that have not been."""
    profile = load_profile(arguments.profile)
    if profile.executor == "in_place":
        raise SlurmError(
            f"profile {profile.name} has no cluster (executor in_place): use `dvc exp run --queue "
            "-S ...` and `dvc queue start`, or name another profile (--profile, OFQ_PROFILE)"
        )
    resources, processes = resources_of(profile)
    root, targets = find_root(), arguments.targets or TARGETS
    commit, combinations = commit_of(root), expand(arguments.set_param)
    checked = settings_of(root, combinations)
    pipeline = Pipeline(root)
    sweeps = Sweeps(pipeline.jobs)
    code = code_of(pipeline, targets)
    with locked(pipeline.jobs):
        items = match(sweeps, root, commit, combinations, digest_of(root, code), targets)
        name_all(items, root, commit, sweeps, arguments.name_prefix)
        wanted = [item for item in items if item.wanted]
        by_words = dict(zip(map(json.dumps, combinations), checked, strict=True))
        settings = {item.key: by_words[json.dumps(item.overrides)] for item in items}
        for warning in teacher_remarks(pipeline, items, settings):
            print(f"warning: {warning}", file=sys.stderr)
        experiments = {item.key: item.found for item in items if item.found is not None}
        if wanted and not arguments.dry_run:
            if profile.executor == "slurm":
                check_accepted(profile, {"sweep": resources})
                remark = check_shared(pipeline.jobs, profile, resources)
                if remark:
                    print(remark, file=sys.stderr)
            sweep = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
            folder = sweeps.root / sweep
            common: dict[str, Any] = {
                "targets": targets,
                "workspace": str(root),
                "commit": commit,
                "dirty": describe_commit(root)["dirty"],
                "snapshot": take_snapshot(root, folder / "snapshots", code),
                "cache": str(pipeline.repo.cache.local_cache_dir),
                "executor": profile.executor,
                "environment": {
                    **profile.environment,
                    "OFQ_WORKERS": str(resources.workers),
                    "OFQ_PROCESSES": str(processes),
                },
                "grace_seconds": grace_seconds(profile),
            }
            orders = [Order(i.name, i.key, i.overrides, **common) for i in wanted]
            sent = send(folder, orders, [i.found for i in wanted], profile, resources)
            experiments |= {item.key: one for item, one in zip(wanted, sent, strict=True)}
            sweeps.remove_old()
    report(items, experiments, arguments.dry_run)
    if arguments.wait and not arguments.dry_run:
        return wait(list(experiments.values()))
    return 0


def report(items: list[Item], experiments: dict[str, Experiment], dry: bool) -> None:
    """Print all experiments with their jobs."""
    rows = []
    for item in items:
        order = experiments[item.key].order() if item.key in experiments else None
        state = "would be submitted" if dry else "submitted"
        if not item.wanted:
            state = "done" if item.stand and item.stand.ended else "has a job"
        job = order.job_id if order and not (dry and item.wanted) else ""
        rows.append((item.name, " ".join(item.overrides), job, state))
    print(table(("experiment", "overrides", "job", ""), rows))
    if not any(item.wanted for item in items):
        print("nothing to submit")
    elif not dry:
        print("`python -m slurm.sweep --list` shows how they get on, `dvc exp show` the results")


def wait(experiments: list[Experiment]) -> int:
    """Until all have ended; 0 when all succeeded, else 1."""
    left, failed = {item.path: item for item in experiments}, 0
    doubtful: dict[Path, float] = {}
    while left:
        for path, stand in stands(left.values()).items():
            now = time.monotonic()
            if not stand.ended:
                doubtful.pop(path, None)
                continue
            # On a network file system what a job says may be seen later than its end.
            unsettled = not stand.good and left[path].failed() is None
            if unsettled and now - doubtful.setdefault(path, now) < SETTLE_SECONDS:
                continue
            print("  ".join(filter(None, row_of(left.pop(path), stand))), flush=True)
            failed += not stand.good
        time.sleep(POLL_SECONDS)
    return 1 if failed else 0


def row_of(experiment: Experiment, stand: Stand) -> tuple[str, ...]:
    """A line of the list."""
    order, result, progress = experiment.order(), experiment.result(), experiment.progress()
    assert order is not None, experiment.path
    remark = stand.remark
    if result is not None and result["revision"] is None:
        remark = "DVC saw no experiment in it: nothing differs from the commit"
    elif stand.word == "failed":
        where = experiment.log if experiment.log.exists() else experiment.path.parent / order.launch
        remark += f" (log: {where}"
        remark += f", clone: {experiment.clone})" if experiment.clone.exists() else ")"
    elif stand.word == "running" and progress:
        remark = f"epoch {progress.get('epoch')}/{progress.get('epochs')}"
    top1 = result.get("top1") if result else None
    shown = f"{top1:.2f} %" if isinstance(top1, int | float) else ""
    return (order.name, " ".join(order.overrides), order.job_id, stand.word, shown, remark)


def chosen(sweeps: Sweeps, name: str | None, latest: bool) -> list[Experiment]:
    """The experiments of a sweep, of the latest one, or all.

    Raises:
        SlurmError: there is no such sweep.
    """
    names = sweeps.names()
    if name is not None and name not in names:
        raise SlurmError(f"there is no sweep {name!r} (sweeps: {', '.join(names) or 'none'})")
    if name is None and not names:
        raise SlurmError("no sweep was submitted from this workspace")
    if name is not None:
        return sweeps.experiments(name)
    wanted = names[-1:] if latest else names
    return [item for sweep in wanted for item in sweeps.experiments(sweep)]


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m slurm.sweep")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: evaluate")
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUES")
    parser.add_argument(
        "-n", "--name-prefix", metavar="PREFIX", help="names PREFIX-1, PREFIX-2 ..."
    )
    parser.add_argument("--profile", help="of slurm/profiles (default: $OFQ_PROFILE)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be submitted")
    parser.add_argument("--wait", action="store_true", help="until all have ended; 1 if one failed")
    parser.add_argument("--list", action="store_true", help="show sweeps and what came of them")
    parser.add_argument("--sweep", help="for --list and --wait: one of them (default: all, latest)")
    arguments = parser.parse_args(argv)
    if arguments.set_param and not arguments.list and arguments.sweep is None:
        return submit(arguments)
    if arguments.set_param or arguments.targets or not (arguments.list or arguments.wait):
        parser.error("say what to vary (-S KEY=VALUE,VALUE), or --list or --wait without -S")
    sweeps = Sweeps(Jobs(find_root()))
    experiments = chosen(sweeps, arguments.sweep, latest=arguments.wait)
    if arguments.wait:
        return wait(experiments)
    found = stands(experiments)
    rows = [(item.path.parent.name, *row_of(item, found[item.path])) for item in experiments]
    print(table(("sweep", "experiment", "overrides", "job", "state", "top-1", ""), rows))
    return 0


if __name__ == "__main__":
    command_main(main, sys.argv[1:])
