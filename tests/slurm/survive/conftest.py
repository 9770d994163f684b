"""One cell of the tables as a job on the real cluster: long enough to be disturbed on the way."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from tests.patience import PATIENCE

CELL = "grid@ofq-2-0"
RESULT = "results/smoke/ofq-w2a2-s0"
# The last 120 are CGA's. 12-30 s on one thread, saved every second.
QAT_EPOCHS, EPOCHS = 80, 200
SETTINGS = (
    "preset=smoke",
    "grid.methods=[ofq]",
    "grid.seeds=[0]",
    f"recipe.epochs={QAT_EPOCHS}",
    f"recipe.cga_epochs={EPOCHS - QAT_EPOCHS}",
    "recipe.checkpoint_seconds=1.0",
)
# A limit of an hour: submitit takes whatever ends a job of ten minutes for its time limit.
RESOURCES = {"workers": 0, "memory_gb": 1.5, "time": "01:00:00"}
PROFILE = {"executor": "slurm", "poll_seconds": 0.5, "signal_delay_seconds": 60}
# What is measured, and so never the same twice.
MEASURED = ("seconds", "images_per_second", "train_seconds", "peak_memory_bytes")


class Following:
    """A command that runs beside the test."""

    def __init__(self, words, output, **options):
        self.output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, **options
            )

    @property
    def out(self):
        """What it has printed so far."""
        return self.output.read_text()

    def runs(self):
        """Whether it has not ended."""
        return self.process.poll() is None

    def ends(self):
        """Its exit status."""
        return self.process.wait(timeout=PATIENCE)


class Study:
    """A clone, and commands in it as a user would type them."""

    CELL = CELL
    # The epoch, counted from 1, in which CGA begins.
    CGA = QAT_EPOCHS + 1
    # How an attempt can end.
    SAVED = "told to save, stopped and requeued"
    STOPPED = "stopped by SLURM (SIGTERM) after saving"
    KILLED = "cut off without notice: killed, requeued or its node lost"

    def __init__(self, folder: Path, home: Path, environment) -> None:
        home.mkdir(exist_ok=True)
        self.folder, self.home = folder, home
        self.started: list[Following] = []
        # Files by which a test steers the stage, see hungry.py.
        self.hold, self.eat = home / "hold", home / "eat"
        self.steering = {"SURVIVE_HOLD": str(self.hold), "SURVIVE_EAT": str(self.eat)}
        self.environment = environment(
            home,
            OFQ_TRACKING="off",
            OFQ_PROFILE=str(home / "survive.yaml"),
            OMP_NUM_THREADS="1",
        )

    def profile(self, environment=None, signal_delay_seconds=60, **resources):
        """Write the profile."""
        profile = PROFILE | {
            "resources": RESOURCES | resources,
            "environment": self.steering | (environment or {}),
            "signal_delay_seconds": signal_delay_seconds,
        }
        (self.home / "survive.yaml").write_text(yaml.safe_dump(profile))

    def well(self, *words, **extra):
        """A command that must succeed; its output."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment | extra,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self, *words):
        """A command in the background."""
        output = self.home / f"output-{len(self.started)}"
        options = {"cwd": self.folder, "env": self.environment}
        self.started.append(Following(words, output, **options))
        return self.started[-1]

    def until(self, condition):
        """Wait for something, give it back."""
        end = time.monotonic() + PATIENCE
        while not (found := condition()):
            if time.monotonic() > end:
                said = self.started[-1].out if self.started else ""
                raise TimeoutError(f"it did not come within {PATIENCE} s\n{said}\n{self.log}")
            time.sleep(0.05)
        return found

    # The job of the cell

    @property
    def job(self):
        """The cell's job, or None before it has one."""
        from slurm.jobs import Jobs

        return next(iter(Jobs(self.folder).of_stage(CELL)), None)

    @property
    def id(self):
        """The cluster's name for it."""
        return self.job.record().job_id

    @property
    def log(self):
        """All that the stage printed."""
        return self.job.log.read_text() if self.job and self.job.log.exists() else ""

    @property
    def attempts(self):
        """Every start so far."""
        return self.job.attempts() if self.job else []

    def hold_at(self, epoch):
        """Have attempts stop in this epoch or a later one until they are told to save and end."""
        self.hold.with_suffix(".new").write_text(str(epoch))
        self.hold.with_suffix(".new").replace(self.hold)

    def let_go(self):
        """Have attempts train to the end."""
        self.hold.unlink()

    def trains(self, attempt, epoch=1):
        """Wait until this attempt, counted from 1, trains this epoch; give back the epoch."""

        def there():
            attempts = self.attempts
            assert len(attempts) <= attempt, attempts
            progress = self.job.progress() if len(attempts) == attempt else None
            if progress is None or progress["epoch"] < epoch:
                return None
            # Until the first step it is the attempt's before.
            began = datetime.fromisoformat(attempts[-1]["began"]).timestamp()
            return progress["epoch"] if progress["time"] > began + 1 else None

        return self.until(there)

    def stopped(self, attempt):
        """Wait until this attempt was seen to end, give back how."""
        return self.until(
            lambda: (
                len(self.attempts) >= attempt
                and self.attempts[attempt - 1]["ended"]
                and self.attempts[attempt - 1]["how"]
            )
        )

    def saved(self):
        """Wait until there is a checkpoint."""
        self.until(lambda: list(self.job.work.glob(".partial/*/checkpoint.pt")))

    def went_on(self):
        """After how many epochs each attempt but the first began, as the log says."""
        return [int(epoch) for epoch in re.findall(r"going on after epoch (\d+),", self.log)]

    def processes(self):
        """Processes that run in the job's private folder, with their command lines."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if (place / "cwd").readlink() == self.job.work:
                    found[int(place.name)] = (place / "cmdline").read_bytes().decode()
            except OSError:
                continue
        return found

    def workers(self):
        """Processes of submitit that run the job."""
        launch = str(self.job.path.parents[2] / "launches" / self.job.record().launch)
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                words = (place / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            # srun has the same words.
            if "submitit.core._submit" in words and launch in words and "srun" not in words[0]:
                found.append(int(place.name))
        return found

    # What came out of it

    def history(self):
        """Rows of history.csv, without what is measured."""
        with (self.folder / RESULT / "history.csv").open() as file:
            return [without_measured(row) for row in csv.DictReader(file)]

    def read(self, name):
        """A file of the result."""
        text = (self.folder / RESULT / name).read_text()
        return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)

    def told(self):
        """How each attempt ended, by env.json, which the last one wrote."""
        return [attempt["how"] for attempt in self.read("env.json")["attempts"]]

    def locked(self):
        """What dvc.lock has on the cell, but for the outputs."""
        lock = yaml.safe_load((self.folder / "dvc.lock").read_text())["stages"][CELL]
        return {key: lock[key] for key in ("cmd", "deps", "params")}


def without_measured(row):
    return {key: value for key, value in row.items() if key not in MEASURED}


@pytest.fixture(scope="session")
def same_run():
    """Assert that a run is, to the bit, that of another clone."""

    def check(one, other):
        files = [sorted(path.name for path in (s.folder / RESULT).iterdir()) for s in (one, other)]
        assert files[0] == files[1]
        figures = ("oscillation.json", "histogram.json", "trajectories.json")
        for name in ("student.pt", "settings.yaml", *figures):
            contents = [(s.folder / RESULT / name).read_bytes() for s in (one, other)]
            assert contents[0] == contents[1], name
        assert len(one.history()) == EPOCHS
        assert one.history() == other.history()
        metrics = [s.read("metrics.json") for s in (one, other)]
        for value in metrics:
            value["cost"] = without_measured(value["cost"])
        assert metrics[0] == metrics[1]
        assert one.locked() == other.locked()

    return check


@pytest.fixture(scope="session")
def make_study(user_environment):
    """Commands in a clone, with a home of their own."""
    return lambda folder, home: Study(folder, home, user_environment)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, copy_working_tree, make_study):
    """A clone of the working tree with data and teacher, without the cell; not to be changed."""
    folder = copy_working_tree(tmp_path_factory.mktemp("survive") / "clone")
    # Jobs have their own folder in PYTHONPATH, commands in the clone do not.
    shutil.copy(Path(__file__).with_name("hungry.py"), folder / "sitecustomize.py")
    study = make_study(folder, folder.parent / "home")
    study.well("git", "init", "-q")
    study.well("git", "add", "-A")
    study.well("git", "commit", "-qm", "Working tree")
    study.well("python", "-m", "pipelines.params", *SETTINGS)
    study.well("dvc", "repro", "teacher", OFQ_PROFILE="local")
    study.well("git", "add", "-A")
    study.well("git", "commit", "-qm", "Teacher")
    return folder


@pytest.fixture(scope="session")
def undisturbed(prepared, make_study):
    """Run the cell in place, in a copy below a folder."""

    def run(home, **environment):
        study = make_study(shutil.copytree(prepared, home / "clone", symlinks=True), home)
        study.well("dvc", "repro", CELL, OFQ_PROFILE="local", **environment)
        return study

    return run


@pytest.fixture(scope="session")
def reference(undisturbed, tmp_path_factory):
    """The cell's result when nothing disturbs it."""
    return undisturbed(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def reference_of_two(undisturbed, tmp_path_factory):
    """The same in two processes."""
    home = tmp_path_factory.mktemp("reference-of-two")
    return undisturbed(home, OFQ_PROCESSES="2", OFQ_WORKERS="0")


@pytest.fixture
def study(prepared, tmp_path, make_study):
    """A copy in which the cell has not run, with a profile for the real cluster."""
    clone = shutil.copytree(prepared, tmp_path / "clone", symlinks=True)
    study = make_study(clone, tmp_path / "home")
    study.profile()
    yield study
    for following in study.started:
        if following.runs():
            # dvc and the command that it runs.
            os.killpg(following.process.pid, 9)
            following.ends()
