"""What runs on the node for a sweep: one `dvc exp run` in a clone of its own.

The clone shares DVC's cache with the workspace, so that a teacher that is there is not trained
again, and what the experiment makes need not be copied back: the workspace gets a git reference.
A job that is started again lays its clone out anew and keeps what git ignores, checkpoints above
all; stages that had ended come out of DVC's run cache.
"""

from __future__ import annotations

import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import DelayedSubmission, UncompletedJobError
from submitit.helpers import Checkpointable

from slurm.attempts import close_attempt, open_attempt
from slurm.commit import git
from slurm.errors import SlurmError
from slurm.job import belong_to_the_job
from slurm.jobs import read_json, tail, write_json
from slurm.snapshot import check_snapshot, files_of
from slurm.sweeps import Experiment, Order, revision_of

TICK = 0.05
# SIGTERM to all processes of a job may reach this one last.
SPREAD_SECONDS = 1.0
# The longest that SLURM takes, after SIGTERM, to end a job it takes the node from.
PATIENCE_SECONDS = 600.0
PUSHES = 12
SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh"})
METRICS = Path("results/experiment/metrics.json")
# A stage of the clone is no part of what was running where the sweep was typed.
FOREIGN = ("DVC_STAGE", "DVC_ROOT", "DVC_EXP_", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


class ExperimentError(RuntimeError):
    """The experiment failed, or cannot be run."""


class ExperimentJob(Checkpointable):  # type: ignore[misc]
    """Run one experiment of a sweep, .slurm/sweeps/<sweep>/<n>, and hand it to the workspace."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._status: int | None = None
        self._told_to_end = False

    def __getstate__(self) -> dict[str, Any]:
        # Pickled by the handler of SIGUSR2 while the experiment runs.
        return {"_process": None, "_status": None, "_told_to_end": False}

    def __call__(self, folder: str) -> str:
        """Run the experiment to its end.

        Returns:
            The experiment's folder.

        Raises:
            ExperimentError: it failed; failed.json says how.
        """
        experiment = Experiment(Path(folder))
        order = experiment.order()
        if order is None:
            raise ExperimentError(f"{folder} has no experiment.json")
        if experiment.result() is not None:
            # Preempted or requeued just as it ended.
            shutil.rmtree(experiment.spent, ignore_errors=True)
            return folder
        self._notice_sigterm()
        open_attempt(experiment, JobEnvironment())
        try:
            if experiment.spent.exists():
                # Stopped just before it said that it had succeeded.
                experiment.spent.replace(experiment.clone)
            if revision_of(experiment.clone, order) is None:
                lay_out_clone(experiment, order)
                self._run(experiment, order)
            result = deliver(experiment, order)
            # Before it says so: whoever reads that it has succeeded finds the clone gone.
            experiment.clone.replace(experiment.spent)
            close_attempt(experiment, "finished")
            write_json(experiment.path / "done.json", result)
        except (ExperimentError, SlurmError, UncompletedJobError, OSError) as error:
            time.sleep(SPREAD_SECONDS)
            if self._told_to_end:
                self._await_the_end(experiment)
            _fail(experiment, str(error), self._status)
        shutil.rmtree(experiment.spent, ignore_errors=True)
        return folder

    def checkpoint(self, folder: str) -> DelayedSubmission:
        """Have the stage that runs save and stop; called by submitit in the handler of SIGUSR2.

        DVC itself is left alone: it ends with the stage, and leaves nothing half-written.
        """
        experiment = Experiment(Path(folder))
        order = experiment.order()
        end = time.monotonic() + (order.grace_seconds if order else 0.0)
        told: set[int] = set()
        while self._process and self._status is None and time.monotonic() < end:
            for pid in stages_of(self._process.pid) - told:
                told.add(pid)
                try:
                    os.kill(pid, signal.SIGTERM)
                except ProcessLookupError:
                    continue
            time.sleep(TICK)
        stopped = self._process is None or self._status is not None
        close_attempt(
            experiment,
            "told to save, stopped and requeued"
            if stopped
            else "told to save, did not end in time, requeued",
        )
        return DelayedSubmission(self, folder)

    def _notice_sigterm(self) -> None:
        """SLURM sends it to every process of a job that is cancelled or preempted."""
        before = signal.getsignal(signal.SIGTERM)

        def notice(signum: int, frame: FrameType | None) -> None:
            self._told_to_end = True
            if callable(before):
                before(signum, frame)

        signal.signal(signal.SIGTERM, notice)

    def _run(self, experiment: Experiment, order: Order) -> None:
        words = [sys.executable, "-m", "dvc", "exp", "run", "--name", order.name]
        for override in order.overrides:
            words += ["--set-param", override]
        # DVC's notes on files are for this node alone, and SQLite is not for network drives.
        with (
            tempfile.TemporaryDirectory(prefix="ofq-sweep-", ignore_cleanup_errors=True) as notes,
            experiment.log.open("ab") as log,
        ):
            self._process = subprocess.Popen(
                [*words, *order.targets],
                cwd=experiment.clone,
                env=experiment_environment(experiment, order) | {"DVC_SITE_CACHE_DIR": notes},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=belong_to_the_job,
            )
            # A thread waits, so that the handler of a signal can look without taking a lock.
            threading.Thread(target=self._wait, args=(self._process,), daemon=True).start()
            while self._status is None:
                time.sleep(TICK)
        if self._status:
            raise ExperimentError(_why(self._status))

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        self._status = process.wait()

    def _await_the_end(self, experiment: Experiment) -> None:
        """SLURM takes the node, and kills what is left. SIGUSR2 may still come, and requeue."""
        close_attempt(experiment, "stopped by SLURM (SIGTERM)")
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(TICK)


def stages_of(dvc: int) -> set[int]:
    """The processes that DVC has started, and not the shells round them."""
    children: dict[int, list[tuple[int, str]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        # pid (name) state parent ...; the name may hold anything.
        name, _, rest = text.partition("(")[2].rpartition(")")
        children.setdefault(int(rest.split()[1]), []).append((int(path.parent.name), name))
    found: set[int] = set()
    waiting = [dvc]
    while waiting:
        for pid, name in children.get(waiting.pop(), []):
            if name in SHELLS and pid in children:
                waiting.append(pid)
            else:
                found.add(pid)
    return found


def experiment_environment(experiment: Experiment, order: Order) -> dict[str, str]:
    """The environment of `dvc exp run`: that of the job, the profile's, and what the job tells."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    told = {
        **order.environment,
        # Stages say `python`: the one that runs this.
        "PATH": path,
        "PYTHONPATH": str(experiment.clone),
        "OFQ_PROFILE": "local",
        "OFQ_WORKSPACE": order.workspace,
        "OFQ_PROGRESS": str(experiment.path / "progress.json"),
        "OFQ_ATTEMPTS": str(experiment.path / "attempts.json"),
        "OFQ_GIT_COMMIT": order.commit,
        "OFQ_GIT_DIRTY": str(order.dirty).lower(),
        "DVC_NO_ANALYTICS": "1",
    }
    return {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)} | told


def lay_out_clone(experiment: Experiment, order: Order) -> None:
    """Make the clone, or an earlier attempt's, what the workspace was when it was submitted.

    Raises:
        SlurmError: git refuses, or the snapshot was changed.
    """
    from dvc.config import Config

    workspace, clone = Path(order.workspace), experiment.clone
    if not (clone / ".git").exists():
        draft = clone.with_name("clone.draft")
        shutil.rmtree(draft, ignore_errors=True)
        # Quick: on one file system git links its files instead of copying them. No template, for
        # it may hold the user's hooks.
        words = ("clone", "--quiet", "--no-checkout", "--template=", str(workspace), str(draft))
        git(workspace, *words)
        draft.replace(clone)
    # Left by an attempt that was killed.
    for name in (".git/index.lock", ".dvc/tmp/lock", ".dvc/tmp/rwlock", ".dvc/tmp/rwlock.lock"):
        (clone / name).unlink(missing_ok=True)
    shutil.rmtree(clone / ".dvc/tmp/exps", ignore_errors=True)
    for line in git(clone, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines():
        git(clone, "update-ref", "--no-deref", "-d", line)
    git(clone, "checkout", "--quiet", "--force", "--detach", order.commit)
    snapshot = experiment.path.parent / "snapshots" / order.snapshot
    check_snapshot(snapshot)
    _overlay(snapshot, clone)
    settings = workspace / ".dvc" / "config.local"
    if settings.exists():
        shutil.copy2(settings, clone / ".dvc" / "config.local")
    with Config(str(clone / ".dvc"), validate=False).edit("local") as config:
        config.setdefault("cache", {})["dir"] = order.cache
    for key in ("user.name", "user.email"):
        # DVC commits the experiment.
        own = git(workspace, "config", "--default", "", "--get", key).strip()
        if own:
            git(clone, "config", key, own)


def _overlay(snapshot: Path, clone: Path) -> None:
    """Put the tracked files of the snapshot, and no others, in place of the commit's."""
    wanted = set(files_of(snapshot))
    for name in filter(None, git(clone, "ls-files", "-z").split("\0")):
        path = clone / name
        if name not in wanted and path.is_file() and not path.is_symlink():
            path.unlink()
    for name in sorted(wanted):
        source, target = snapshot / name, clone / name
        mode = source.stat().st_mode & 0o111
        same = target.is_file() and filecmp.cmp(source, target, shallow=False)
        # A link to a file of the same content stays a link.
        if same and (target.is_symlink() or target.stat().st_mode & 0o111 == mode):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copy2(source, target)


def deliver(experiment: Experiment, order: Order) -> dict[str, Any]:
    """Push the experiment to the workspace.

    Others of the array push at the same time: what git refuses then is tried again.

    Returns:
        What came of it, see `Experiment.result`.

    Raises:
        ExperimentError: the workspace would not take it.
    """
    workspace, clone = Path(order.workspace), experiment.clone
    made = revision_of(clone, order)
    words = [sys.executable, "-m", "dvc", "exp", "push", "--no-cache", str(workspace), order.name]
    environment = experiment_environment(experiment, order)
    for count in range(PUSHES if made is not None else 0):
        done = subprocess.run(
            words, cwd=clone, env=environment, capture_output=True, text=True, check=False
        )
        if revision_of(workspace, order) == made:
            break
        if count == PUSHES - 1:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise ExperimentError(
                f"it ran, but dvc exp push to {workspace} failed: {said[-1] if said else '?'}"
            )
        time.sleep(random.uniform(0.2, 1.0 + count))
    metrics = read_json(clone / METRICS)
    top1 = metrics.get("top1") if isinstance(metrics, dict) else None
    return {"revision": made, "top1": top1}


def _why(status: int) -> str:
    """Why `dvc exp run` ended as it did."""
    if status > 0:
        return f"dvc exp run ended with exit status {status}"
    name = signal.Signals(-status).name
    hint = ": most often memory ran out" if status == -signal.SIGKILL else ""
    return f"dvc exp run was killed ({name}){hint}"


def _fail(experiment: Experiment, message: str, status: int | None) -> None:
    """Write failed.json and end the job with an error, which SLURM takes for a failed one."""
    close_attempt(experiment, f"failed: {message}")
    write_json(
        experiment.path / "failed.json",
        {"message": message, "status": status, "log": tail(experiment)},
    )
    raise ExperimentError(f"{message}; the clone is kept in {experiment.clone}")
