"""Send the experiments of a sweep off through submitit, as one array."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slurm.errors import SlurmError
from slurm.experiment import ExperimentJob
from slurm.launch import make_executor
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
    try:
        ids = _submit(launch, experiments, orders[0], profile, resources)
    except Exception as error:
        _move_clones(experiments, before)
        for experiment in experiments:
            shutil.rmtree(experiment.path, ignore_errors=True)
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[-1].removeprefix("sbatch: ").removeprefix("error: ") if lines else ""
        raise SlurmError(
            f"the cluster refuses the jobs: {reason or type(error).__name__}"
        ) from error
    for experiment, order, job_id in zip(experiments, orders, ids, strict=True):
        order.job_id = job_id
        experiment.write_order(order)


def _move_clones(
    sources: Sequence[Experiment | None], targets: Sequence[Experiment | None]
) -> None:
    for source, target in zip(sources, targets, strict=True):
        if source is not None and target is not None and source.clone.exists():
            source.clone.replace(target.clone)


def _submit(
    launch: str,
    experiments: Sequence[Experiment],
    order: Order,
    profile: Profile,
    resources: Resources,
) -> list[str]:
    sweep = experiments[0].path.parent
    snapshot = sweep / "snapshots" / order.snapshot
    executor: Any = make_executor(sweep / launch, snapshot, profile, resources)
    folders = [str(experiment.path) for experiment in experiments]
    with _inside(snapshot):
        if profile.executor == "slurm":
            return [str(job.job_id) for job in executor.map_array(ExperimentJob(), folders)]
        handles = [executor.submit(ExperimentJob(), path) for path in folders]
        if profile.executor == "debug":
            for handle in handles:
                # It has said so itself.
                with contextlib.suppress(Exception):
                    handle.result()
    return [str(handle.job_id) for handle in handles]


@contextlib.contextmanager
def _inside(snapshot: Path) -> Iterator[None]:
    """Jobs on this machine start here, and inherit where Python looks for modules."""
    here, path = Path.cwd(), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(snapshot)
    os.chdir(snapshot)
    try:
        yield
    finally:
        os.chdir(here)
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
