"""A real SLURM cluster for the tests marked `slurm`, one pytest process on it at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

import pytest
from filelock import FileLock

from tests.patience import PATIENCE

FOREIGN = ("MLFLOW_", "DVC_", "GIT_", "OFQ_", "SLURM_", "SBATCH_", "SUBMITIT_")
SCRIPT = Path(__file__).with_name("cluster.sh")
HAS_OWN_SLURM = 3  # cluster.sh's exit status on a machine whose SLURM is not the tests'
# Held while tests are on the cluster. The kernel lets go of it when its process dies.
LOCK = FileLock(Path(tempfile.gettempdir()) / "ofq-slurm-tests.lock")


def no_cluster() -> str | None:
    """Why this machine cannot have the cluster, or None."""
    if os.geteuid() == 0 and (shutil.which("sbatch") or shutil.which("apt-get")):
        return None
    return "real SLURM needs root and Debian's packages"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Keep the cluster to one process while it runs tests marked `slurm`.

    They stop nodes and the controller, which would fail the tests of another xdist worker, or of
    another pytest beside this one. The lock covers fixtures of every scope, and is taken out here
    because pytest-timeout's clock, which starts inside, must not count the wait.
    """
    if item.get_closest_marker("slurm") and not no_cluster() and not LOCK.is_locked:
        LOCK.acquire()
    try:
        return (yield)
    finally:
        # nextitem may be of another folder, whose tests do not come by here.
        if LOCK.is_locked and not (nextitem and nextitem.get_closest_marker("slurm")):
            LOCK.release()


class Cluster:
    """The cluster of cluster.sh: SLURM's commands, and the script's own."""

    def run(self, *words: str | Path | int) -> str:
        """Run a command, give back what it printed, raise with what it complained about."""
        command = [str(word) for word in words]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise RuntimeError(
                f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}{done.stdout}"
            )
        return done.stdout

    def control(self, *words: str) -> str:
        """Run cluster.sh, e.g. `control("node-fail", "n1")`."""
        return self.run(SCRIPT, *words)

    def submit(self, command: str, *options: str | Path | int) -> str:
        """Submit a shell command with sbatch's options and give back the job's id."""
        if not any(str(word).startswith("--output=") for word in options):
            options += ("--output=/dev/null",)
        return self.run("sbatch", "--parsable", *options, "--wrap", command).strip()

    def state(self, job_id: str) -> str:
        """The job's state in one word; of an array, its tasks' states sorted and joined by +."""
        asked = ["squeue", "-h", "-r", "-t", "all", "-o", "%T", "-j", job_id]
        found = subprocess.run(asked, capture_output=True, text=True).stdout
        if not found.strip():
            # The controller forgets a job some time after its end.
            found = self.run("sacct", "-n", "-P", "-X", "-o", "State", "-j", job_id)
        # sacct says "CANCELLED by 0".
        return "+".join(sorted({line.split()[0] for line in found.splitlines()})) or "UNKNOWN"

    def wait(
        self, job_id: str, states: str | tuple[str, ...] | set[str], seconds: float = PATIENCE
    ):
        """Wait until the job, or each task of an array, is in one of `states`; give that back."""
        wanted = {states} if isinstance(states, str) else set(states)
        end = time.monotonic() + seconds
        while not set((state := self.state(job_id)).split("+")) <= wanted:
            if time.monotonic() > end:
                known = self.run("scontrol", "show", "job", job_id)
                raise TimeoutError(f"{job_id} is {state}, not {wanted}, after {seconds} s\n{known}")
            time.sleep(0.2)
        return state

    def wait_for_reason(self, job_id: str, reason: str, seconds: float = PATIENCE):
        """Wait until this is why the job, or each task of an array, waits: SLURM tells it late."""
        asked = ["squeue", "-h", "-r", "-o", "%r", "-j", job_id]
        end = time.monotonic() + seconds
        while (found := set(self.run(*asked).split("\n")) - {""}) != {reason}:
            if time.monotonic() > end:
                raise TimeoutError(f"{job_id} waits for {found}, not {reason}, after {seconds} s")
            time.sleep(0.2)

    def job_ids(self, name_prefix: str = "") -> list[str]:
        """Ids of the jobs that have not ended, oldest first, an array's tasks by its id."""
        rows = (line.split("|", 1) for line in self.run("squeue", "-h", "-o", "%F|%j").splitlines())
        return sorted({number for number, name in rows if name.startswith(name_prefix)}, key=int)

    def cancel_all(self, but: Collection[str] = ()):
        """Cancel every job, but those of these ids, and wait until none is left."""
        if ids := set(self.job_ids()) - set(but):
            self.run("scancel", *ids)
        end = time.monotonic() + PATIENCE
        while left := set(self.job_ids()) - set(but):
            if time.monotonic() > end:
                raise TimeoutError(f"jobs {left} do not end")
            time.sleep(0.2)


@pytest.fixture(scope="session")
def user_environment():
    """A user's environment with a home of its own: this interpreter first, nothing of ours set."""

    def make(home, **extra):
        kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        kept.pop("PYTHONPATH", None)
        who = {f"GIT_{part}_NAME": "Test" for part in ("AUTHOR", "COMMITTER")}
        where = {f"GIT_{part}_EMAIL": "test@example.invalid" for part in ("AUTHOR", "COMMITTER")}
        own = {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
        }
        return kept | who | where | own | extra

    return make


@pytest.fixture(scope="session")
def cluster():
    """The real cluster, brought up if need be; see cluster.sh.

    Nothing stops it when the tests end, so that the next run need not wait for it:
    `tests/slurm/cluster.sh down` does, and `wipe` also removes what it stored.
    """
    if why := no_cluster():
        pytest.skip(why)
    # One at a time, also where a test that is not marked asks for it.
    with FileLock(Path(tempfile.gettempdir()) / "ofq-slurm-up.lock"):
        done = subprocess.run([SCRIPT, "up"], capture_output=True, text=True)
    if done.returncode == HAS_OWN_SLURM:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return Cluster()


@pytest.fixture(autouse=True)
def cluster_put_right(request):
    """After a test marked `slurm`, mend what it left broken and cancel the jobs it left.

    So a test that fails half-way does not fail the next ones. Jobs that were there before, such
    as a module's fixture may have submitted, are let be.
    """
    if request.node.get_closest_marker("slurm") is None:
        yield
        return
    cluster = request.getfixturevalue("cluster")
    before = cluster.job_ids()
    yield
    if subprocess.run([SCRIPT, "status"], capture_output=True).returncode:
        cluster.control("up")
    cluster.cancel_all(but=before)


class Programs:
    """Stand-ins for SLURM's programs, the only ones in PATH, which note what they are asked."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.asked = folder, folder / "asked"
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder))

    def put(self, name, output="", status=0):
        draft = self.folder / f"{name}.draft"
        lines = ["#!/bin/sh", f'echo "{name} $*" >> {self.asked}', f"printf '{output}'"]
        draft.write_text("\n".join([*lines, f"exit {status}\n"]))
        draft.chmod(0o755)
        draft.replace(self.folder / name)

    @property
    def calls(self):
        return self.asked.read_text().splitlines() if self.asked.exists() else []


@pytest.fixture
def programs(tmp_path, monkeypatch):
    return Programs(tmp_path / "bin", monkeypatch)
