"""Send the experiments of a sweep off through submitit, as one array."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from slurm.errors import SlurmError
from slurm.experiment import ExperimentJob
from slurm.launch import submit_calls
from slurm.profile import Profile, Resources
from slurm.sweeps import Experiment, Order


def send(
    folder: Path,
    orders: Sequence[Order],
    before: Sequence[Experiment | None],
    profile: Profile,
    resources: Resources,
) -> list[Experiment]:
    """Submit experiments to run in folders below the sweep's; their records are on disk then.

    Args:
        before: experiments of the same key that failed; their clones are taken over, so that they
            go on from their checkpoints.

    Raises:
        SlurmError: the cluster refuses. No record of what it refused is left then.
    """
    experiments = [Experiment(folder / str(index)) for index in range(len(orders))]
    size = profile.max_array_size
    for start in range(0, len(orders), size):
        part = slice(start, start + size)
        launch = f"sweep-{folder.name}" + (f"-{start // size + 1}" if start else "")
        _send_array(launch, experiments[part], orders[part], before[part], profile, resources)
    return experiments


def _send_array(
    launch: str,
    experiments: Sequence[Experiment],
    orders: Sequence[Order],
    before: Sequence[Experiment | None],
    profile: Profile,
    resources: Resources,
) -> None:
    for index, (experiment, order) in enumerate(zip(experiments, orders, strict=True)):
        order.launch, order.index, order.of = launch, index, len(orders)
        order.submitted = time.time()
        experiment.write_order(order)
    _move_clones(before, experiments)
    sweep, folders = experiments[0].path.parent, [experiment.path for experiment in experiments]
    snapshot = sweep / "snapshots" / orders[0].snapshot
    try:
        ids = submit_calls(ExperimentJob(), folders, sweep / launch, snapshot, profile, resources)
    except SlurmError:
        _move_clones(experiments, before)
        for experiment in experiments:
            shutil.rmtree(experiment.path, ignore_errors=True)
        raise
    for experiment, order, job_id in zip(experiments, orders, ids, strict=True):
        order.job_id = job_id
        experiment.write_order(order)


def _move_clones(
    sources: Sequence[Experiment | None], targets: Sequence[Experiment | None]
) -> None:
    for source, target in zip(sources, targets, strict=True):
        if source is None or target is None:
            continue
        for old, new in ((source.clone, target.clone), (source.spent, target.spent)):
            if old.exists():
                old.replace(new)
