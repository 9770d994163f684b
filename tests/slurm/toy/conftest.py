"""A pipeline with the shape of the suite's and stages that take no time, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[3]
PIPELINE = Path(__file__).with_name("pipeline")
# Small, so that many run at once; asked often, so that tests do not wait.
PROFILE = {
    "executor": "slurm",
    "resources": {"workers": 0, "memory_gb": 0.2, "time": "00:10:00"},
    "poll_seconds": 0.5,
    "signal_delay_seconds": 60,
}


class Toy:
    """The folder, and commands in it as a user would type them."""

    def __init__(self, folder: Path, home: Path, environment) -> None:
        self.folder = folder
        self.log = home / "log"
        # A stage that is `slow` until this is there: `toy.gate.touch()` lets it end.
        self.gate = home / "gate"
        self.started = []
        self.environment = environment(
            home, TOY_LOG=str(self.log), OFQ_PROFILE=str(home / "toy.yaml")
        )
        self.profile_path = home / "toy.yaml"

    def profile(self, **changes):
        """Write the profile, the default one with changes."""
        self.profile_path.write_text(yaml.safe_dump(PROFILE | changes))

    def start(self, *words, **extra):
        """A command in a process group of its own, as a shell starts one."""
        process = subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.environment | extra,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *words, **extra):
        """A command; its output as a terminal shows it."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment | extra,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout)

    def well(self, *words, **extra):
        """A command that must succeed; its output."""
        done = self.run(*words, **extra)
        assert done.code == 0, done.out
        return done.out

    def submit(self, *words, **extra):
        """`python -m slurm.submit`."""
        return self.well("python", "-m", "slurm.submit", *words, **extra)

    def repro(self, *words, **extra):
        """`dvc repro`."""
        return self.well("dvc", "repro", *words, **extra)

    def set(self, **values):
        """Change params.yaml."""
        path = self.folder / "params.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))

    def ran(self):
        """Every stage that ran since this was last asked."""
        lines = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return sorted(lines)

    def text(self, path):
        """Content of a file."""
        return (self.folder / path).read_text()

    def jobs(self):
        """The workspace's jobs."""
        from slurm.jobs import Jobs

        return Jobs(self.folder)

    def job(self, stage):
        """The latest job of a stage."""
        return self.jobs().of_stage(stage)[0]

    def until(self, condition):
        """Wait for something."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "it did not come"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def toy_template(tmp_path_factory, user_environment):
    """The folder as a user commits it."""
    folder = tmp_path_factory.mktemp("toy-template") / "work"
    shutil.copytree(PIPELINE, folder)
    # Under its own name DVC would take it for a part of the suite's pipeline.
    (folder / "stages.yaml").rename(folder / "dvc.yaml")
    shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".gitignore").write_text("/data\n/results\n/tables/rendered\n/.slurm\n__pycache__\n")
    (folder / ".dvcignore").write_text(".slurm\n__pycache__\n")
    (folder / "notes.txt").write_text("tracked, but no stage's code\n")
    toy = Toy(folder, folder.parent, user_environment)
    toy.well("git", "init", "-q")
    toy.well("dvc", "init", "-q")
    toy.well("git", "add", "-A")
    toy.well("git", "commit", "-qm", "Toy")
    return folder


@pytest.fixture
def toy(toy_template, tmp_path, user_environment):
    """A copy, with a profile for the real cluster."""
    folder = shutil.copytree(toy_template, tmp_path / "work")
    home = tmp_path / "home"
    home.mkdir()
    toy = Toy(folder, home, user_environment)
    toy.profile()
    yield toy
    for process in toy.started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture
def local_toy(toy):
    """The same with submitit's local executor: jobs are processes on this machine."""
    toy.profile(executor="local")
    return toy
