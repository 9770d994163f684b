"""What is known of sweeps, in files below .slurm/sweeps of the workspace.

<sweep>/snapshots/<hash>/   tracked files as they were when it was submitted
<sweep>/sweep-<sweep>/      submitit's files
<sweep>/<n>/                one experiment
    experiment.json         what is to be run, and the cluster's job id
    attempts.json, progress.json, log.txt   as of the jobs of single stages, see slurm.jobs
    done.json | failed.json how it ended
    clone/                  where it runs; removed (as clone.spent/) once the workspace has it
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slurm.cluster import job_states
from slurm.commit import git
from slurm.ids import SUBMITTING_SECONDS, array_id
from slurm.jobs import Job, Jobs, read_json, write_json
from slurm.states import State
from slurm.words import how_ended

KEEP_SECONDS = 14 * 24 * 3600.0
# On a network file system a result may be seen later than the end of its job.
SETTLE_SECONDS = 5.0


@dataclass
class Order:
    """experiment.json: an experiment and how it was sent off.

    key: hash of all that decides it. overrides: words after -S. index: its place in the array
    `launch` of `of` jobs. submitted: Unix seconds.
    """

    name: str
    key: str
    overrides: list[str]
    targets: list[str]
    workspace: str
    commit: str
    dirty: bool | None
    snapshot: str
    cache: str
    executor: str
    environment: dict[str, str] = field(default_factory=dict)
    grace_seconds: float = 60.0
    launch: str = ""
    index: int = 0
    of: int = 1
    job_id: str = ""
    submitted: float = 0.0

    @property
    def reference(self) -> str:
        """The git reference that DVC keeps such an experiment under."""
        return f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/{self.name}"


class Experiment(Job):
    """The folder of one experiment of a sweep."""

    @property
    def clone(self) -> Path:
        """The clone of the repository it runs in."""
        return self.path / "clone"

    @property
    def spent(self) -> Path:
        """The clone once the workspace has what came of it; about to be removed."""
        return self.path / "clone.spent"

    def order(self) -> Order | None:
        """What is to be run; None where the folder is no experiment's."""
        raw = read_json(self.path / "experiment.json")
        return Order(**raw) if isinstance(raw, dict) else None

    def write_order(self, order: Order) -> None:
        """Write experiment.json."""
        write_json(self.path / "experiment.json", asdict(order))

    def result(self) -> dict[str, Any] | None:
        """What came of it once it has succeeded: `revision` (None where DVC saw no experiment in
        it) and `top1`."""
        value = read_json(self.path / "done.json")
        return value if isinstance(value, dict) else None


def revision_of(repository: Path, order: Order) -> str | None:
    """The commit of the experiment in a repository that has it; DVC makes it last of all."""
    if not (repository / ".git").exists():
        return None
    words = ("for-each-ref", "--format=%(objectname)", order.reference)
    return git(repository, *words).strip() or None


class Sweeps:
    """All sweeps of a workspace."""

    def __init__(self, jobs: Jobs) -> None:
        self.root = jobs.root / "sweeps"

    def names(self) -> list[str]:
        """The sweeps, the oldest first."""
        return sorted(path.name for path in self.root.glob("*") if path.is_dir())

    def experiments(self, sweep: str) -> list[Experiment]:
        """The experiments of a sweep in order."""
        found = [Experiment(path.parent) for path in (self.root / sweep).glob("*/experiment.json")]
        return sorted(found, key=lambda experiment: int(experiment.path.name))

    def everything(self) -> list[Experiment]:
        """All experiments, the oldest first."""
        return [item for sweep in self.names() for item in self.experiments(sweep)]

    def remove_old(self) -> None:
        """Remove sweeps that ended long ago, clones that were kept for a look included."""
        for sweep in self.names():
            experiments = self.experiments(sweep)
            orders = [order for item in experiments if (order := item.order()) is not None]
            newest = max((order.submitted for order in orders), default=0.0)
            if not orders or time.time() - newest < KEEP_SECONDS:
                continue
            if all(stand.ended for stand in stands(experiments).values()):
                shutil.rmtree(self.root / sweep, ignore_errors=True)


@dataclass(frozen=True)
class Stand:
    """How an experiment stands. word: done, failed, or SLURM's state in small letters."""

    word: str
    ended: bool
    remark: str = ""

    @property
    def good(self) -> bool:
        """Whether it waits, runs or has succeeded."""
        return self.word == "done" or not self.ended


def stands(experiments: Iterable[Experiment], submitting: bool = True) -> dict[Path, Stand]:
    """How experiments stand, by folder; the cluster is asked once for all.

    Args:
        submitting: whether another process may be submitting some of them right now.
    """
    found: dict[Path, Stand] = {}
    running: dict[str, list[tuple[Experiment, Order]]] = {}
    for experiment in experiments:
        order, failed = experiment.order(), experiment.failed()
        if experiment.result() is not None:
            found[experiment.path] = Stand("done", True)
        elif failed is not None:
            found[experiment.path] = Stand("failed", True, failed["message"])
        elif order is not None:
            if not order.job_id and order.executor == "slurm":
                array = array_id(order.launch, order.submitted)
                if array is None:
                    found[experiment.path] = Stand("unknown", False, "SLURM does not answer")
                    continue
                if array:
                    order.job_id = array if order.of == 1 else f"{array}_{order.index}"
            young = time.time() - order.submitted < SUBMITTING_SECONDS
            if not order.job_id and submitting and young:
                found[experiment.path] = Stand("submitting", False)
                continue
            running.setdefault(order.executor, []).append((experiment, order))
    for executor, some in running.items():
        ids = {experiment.name: order.job_id for experiment, order in some}
        states = job_states(executor, [experiment for experiment, _ in some], ids)
        for experiment, _ in some:
            state = states[experiment.name]
            found[experiment.path] = _stand(experiment, state, ids[experiment.name])
    return found


def _stand(experiment: Experiment, state: State, job_id: str) -> Stand:
    # It may have said so itself while SLURM was asked.
    if experiment.result() is not None:
        return Stand("done", True)
    failed = experiment.failed()
    if failed is not None:
        return Stand("failed", True, failed["message"])
    if state.ended:
        return Stand("failed", True, how_ended(state, job_id))
    return Stand(state.name.lower(), False, state.reason if state.waits else "")
