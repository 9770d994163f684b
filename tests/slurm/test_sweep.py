"""Whole sweeps, on this machine and on a real cluster."""

import json
import shutil
import sqlite3
import subprocess
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from slurm.jobs import Jobs
from slurm.sweeps import Sweeps
from tests.patience import PATIENCE

SMOKE = ("preset=smoke", "grid.seeds=[0]")
GRID = tuple(
    word for value in (*SMOKE, "quant.wbits=2,3", "method=lsq,ofq") for word in ("-S", value)
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, user_environment):
    """A command in a folder, as a user would type it."""
    home = tmp_path_factory.mktemp("home")
    everything = user_environment(home, OMP_NUM_THREADS="1")
    # Who commits stands in the configuration of the workspace, and must get to the clones.
    environment = {key: value for key, value in everything.items() if not key.startswith("GIT_")}

    def call(folder, *words, **extra):
        done = subprocess.run(
            words,
            cwd=folder,
            env=environment | extra,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    return call


@pytest.fixture(scope="module")
def bare(tmp_path_factory, run, copy_working_tree):
    """A clone of the working tree in which nothing has run; not to be changed."""
    folder = copy_working_tree(tmp_path_factory.mktemp("bare") / "work")
    for words in (
        ["git", "init", "-q"],
        ["git", "config", "user.name", "Test"],
        ["git", "config", "user.email", "test@example.invalid"],
        ["python", "-m", "pipelines.params", *SMOKE],
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "Working tree"],
    ):
        done = run(folder, *words)
        assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def work(bare, run):
    """A copy with a teacher, in which sweeps run."""
    folder = shutil.copytree(bare, bare.parent / "taught", symlinks=True)
    done = run(folder, "dvc", "repro", "teacher", OFQ_PROFILE="local", OFQ_TRACKING="off")
    assert done.code == 0, done.out + done.err
    return folder


def sweep(run, folder, *words, **extra):
    return run(folder, "python", "-m", "slurm.sweep", *words, **extra)


def listed(folder):
    """The experiments of the workspace's sweeps by their overrides beyond the smoke preset."""
    found = Sweeps(Jobs(folder)).everything()
    return {" ".join(item.order().overrides[len(SMOKE) :]): item for item in found}


@pytest.fixture
def local(tmp_path):
    """A profile whose jobs run on this machine."""
    path = tmp_path / "here.yaml"
    path.write_text("executor: local\nresources:\n  workers: 0\n  time: '01:00:00'\n")
    return str(path)


@pytest.mark.pipeline
def test_dry_run_submits_nothing_and_warns_of_the_teacher(bare, run, local):
    done = sweep(run, bare, *GRID, "-n", "try", "--profile", local, "--dry-run")
    assert done.code == 0, done.err
    assert "warning: 4 experiments would each train the same teacher" in done.err
    assert "`dvc repro teacher`" in done.err
    for number in (1, 2, 3, 4):
        assert f"try-{number} " in done.out
    assert not (bare / ".slurm/sweeps").exists()


@pytest.mark.pipeline
def test_mistakes_are_said_before_anything_is_submitted(bare, run, local):
    for words, said in (
        (["-S", "quant.wbit=2,3", "--profile", local], "did you mean 'wbits'"),
        (["-S", "seed=1", "--profile", "local"], "dvc exp run --queue"),
        (["-S", "seed=1", "--profile", local, "-n", "a/b"], "cannot be the name"),
        (["-S", "seed=1", "--profile", local, "evaluat"], "evaluat"),
        (["--list"], "no sweep was submitted"),
    ):
        done = sweep(run, bare, *words)
        assert done.code == 1, words
        assert done.err.startswith("error: ")
        assert said in done.err
        assert "Traceback" not in done.err
    assert not (bare / ".slurm/sweeps").exists()


@pytest.mark.pipeline
def test_on_this_machine(work, run, local):
    """Two experiments, one of which can only fail in its stage."""
    folder = shutil.copytree(work, Path(local).parent / "work", symlinks=True)
    # An edit that is in no commit counts.
    source = folder / "pipelines/evaluate.py"
    source.write_text(source.read_text() + "# edited\n")
    words = [w for value in (*SMOKE, "seed=5", "teacher.checkpoint=null,nowhere.pt")
             for w in ("-S", value)]  # fmt: skip
    done = sweep(run, folder, *words, "--profile", local, "--wait", OFQ_TRACKING="off")

    assert done.code == 1, done.err
    good, bad = (listed(folder)[f"seed=5 teacher.checkpoint={x}"] for x in ("null", "nowhere.pt"))
    assert good.result()["top1"] is not None
    assert not good.clone.exists()
    assert "nowhere.pt" in "\n".join(bad.failed()["log"])
    assert str(bad.clone) in done.out
    name = good.order().name
    assert not (folder / "results/experiment").exists()
    # Its status is not 0: DVC also looks for the results of the stages that have never run.
    run(folder, "dvc", "exp", "apply", name)
    metrics = json.loads((folder / "results/experiment/metrics.json").read_text())
    assert metrics["top1"] == good.result()["top1"]
    assert (
        "# edited"
        in run(folder, "git", "show", f"{good.result()['revision']}:pipelines/evaluate.py").out
    )

    again = sweep(run, folder, *words, "--profile", local, "--dry-run")
    assert [line.split()[-1] for line in again.out.splitlines()[1:3]] == ["done", "submitted"]
    assert bad.order().name in again.out
    run(folder, "dvc", "exp", "remove", name)
    again = sweep(run, folder, *words, "--profile", local, "--dry-run")
    assert "done" not in again.out


@pytest.mark.slurm
@pytest.mark.pipeline
def test_two_by_two_on_a_cluster(cluster, work, run):
    before = set(cluster.job_ids())
    done = sweep(run, work, *GRID, "-n", "two", "--profile", "generic")
    assert done.code == 0, done.err
    assert "warning" not in done.err
    (array,) = set(cluster.job_ids()) - before
    twice = sweep(run, work, *GRID, "--profile", "generic")
    assert "nothing to submit" in twice.out
    assert set(cluster.job_ids()) - before <= {array}
    ended = sweep(run, work, "--wait")
    assert ended.code == 0, ended.out

    assert "nothing to submit" in sweep(run, work, *GRID, "--profile", "generic").out
    shown = json.loads(run(work, "dvc", "exp", "show", "--json").out)
    found = {}
    for baseline in shown:
        for experiment in baseline.get("experiments") or []:
            (revision,) = experiment["revs"]
            data = revision["data"]
            params = data["params"]["params.yaml"]["data"]
            metrics = data["metrics"]["results/experiment/metrics.json"]["data"]
            assert 0 <= metrics["top1"] <= 100
            found[experiment["name"]] = (params["quant"]["wbits"], params["quant"]["weight"])
    assert sorted(found) == ["two-1", "two-2", "two-3", "two-4"]
    assert [bits for _, (bits, _) in sorted(found.items())] == [2, 2, 3, 3]
    assert len(set(found.values())) == 4
    with sqlite3.connect(work / "mlflow.db") as store:
        rows = store.execute("select value from tags where key = 'dvc.experiment'").fetchall()
    assert sorted(value for (value,) in rows) == ["two-1", "two-2", "two-3", "two-4"]
    assert run(work, "git", "status", "--porcelain", "--untracked-files=no").out == ""
    assert sweep(run, work, "--list").out.count(" done ") == 4
    assert not list((work / ".slurm/sweeps").glob("*/*/clone"))


@pytest.mark.slurm
@pytest.mark.pipeline
def test_requeued_and_failed_on_a_cluster(cluster, work, run):
    """One goes on from its checkpoint whenever SLURM starts it again, one fails, and is said to."""
    values = (*SMOKE, "recipe.epochs=300", "teacher.checkpoint=null,nowhere.pt")
    words = [word for value in values for word in ("-S", value)]
    done = sweep(run, work, *words, "--profile", "generic", OFQ_TRACKING="off")
    assert done.code == 0, done.err
    found = listed(work)
    good, bad = (found[f"recipe.epochs=300 teacher.checkpoint={x}"] for x in ("null", "nowhere.pt"))
    # With time to save, and without.
    ways = (["scancel", "--signal=USR2"], ["scontrol", "requeue"])
    for starts, way in enumerate(ways, 1):
        end = time.monotonic() + PATIENCE
        while not trains(good, starts):
            assert time.monotonic() < end, good.log.read_text()
            assert good.failed() is None, good.failed()
            time.sleep(0.05)
        cluster.run(*way, good.order().job_id)
    ended = sweep(run, work, "--wait")

    assert ended.code == 1
    assert bad.failed() is not None
    assert f"clone: {bad.clone}" in ended.out
    assert good.result() is not None, ended.out
    hows = [attempt["how"] for attempt in good.attempts()]
    assert hows[0] == "told to save, stopped and requeued"
    assert hows[2:] == ["finished"]
    assert good.log.read_text().count("cut off before, going on after epoch") == 2
    names = run(work, "dvc", "exp", "list", "--name-only").out.split()
    assert names.count(good.order().name) == 1
    assert bad.order().name not in names


def trains(experiment, starts):
    """Whether it has saved a checkpoint since it was started for the given time."""
    attempts = experiment.attempts()
    if len(attempts) < starts:
        return False
    began = datetime.fromisoformat(attempts[-1]["began"]).timestamp()
    saved = [path.stat().st_mtime for path in experiment.clone.glob(".partial/qat*/checkpoint.pt")]
    return any(when > began + 1 for when in saved)
