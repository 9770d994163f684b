"""Sweeps: combinations of settings and their checks, what a job asks for, its clone, waiting."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from slurm import experiment, sweep
from slurm.errors import SlurmError
from slurm.experiment import ExperimentJob, _overlay, stages_of
from slurm.jobs import write_json
from slurm.profile import Profile
from slurm.sweep_plan import commit_of, expand, resources_of, settings_of
from slurm.sweep_send import _move_clones
from slurm.sweeps import Experiment, Order
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]


# Combinations


@pytest.mark.parametrize(
    ("words", "combinations"),
    [
        (["quant.wbits=3"], [["quant.wbits=3"]]),
        (["quant.wbits=2,3"], [["quant.wbits=2"], ["quant.wbits=3"]]),
        (["seed=range(0,2)"], [["seed=0"], ["seed=1"]]),
        (["seed=choice(4,7)", "grid.seeds=[0,1]"],
         [["seed=4", "grid.seeds=[0,1]"], ["seed=7", "grid.seeds=[0,1]"]]),
        (["a=1,2", "b=x,y"], [["a=1", "b=x"], ["a=1", "b=y"], ["a=2", "b=x"], ["a=2", "b=y"]]),
        (["params.yaml:seed=1,2", "other.yaml:k=3"],
         [["seed=1", "other.yaml:k=3"], ["seed=2", "other.yaml:k=3"]]),
    ],
)  # fmt: skip
def test_combinations_are_those_of_dvc(words, combinations):
    assert expand(words) == combinations


@pytest.mark.parametrize("word", ["quant.wbits", "preset=glob(*)", "a=b=["])
def test_what_dvc_does_not_take_is_refused(word):
    with pytest.raises(SlurmError, match="-S "):
        expand([word])


def test_settings_are_composed_and_checked():
    found = settings_of(ROOT, [["quant.wbits=3"], ["preset=smoke", "other.yaml:x=1"]])
    assert [item["study"] for item in found] == ["digits", "smoke"]
    assert found[0]["quant"]["wbits"] == 3


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("quant.wbits=9", "quant.wbits = 9: expected 2, 3, 4, 5, 6, 7, 8 or 32"),
        ("quant.wbit=3", "quant.wbit: unknown key, did you mean 'wbits'?"),
        ("preset=smoek", "unknown preset 'smoek', did you mean 'smoke'?"),
        ("methd=lsq", "methd: unknown group, did you mean 'method'?"),
    ],
)
def test_every_wrong_combination_is_named(word, said):
    before = (ROOT / "params.yaml").read_bytes()
    with pytest.raises(SlurmError, match="nothing was submitted, 1 of 2 experiments") as caught:
        settings_of(ROOT, [["seed=1"], [word]])
    assert said in str(caught.value)
    assert (ROOT / "params.yaml").read_bytes() == before


def test_many_wrong_combinations_are_cut_short():
    with pytest.raises(SlurmError, match=r"\.\.\. and 3 more"):
        settings_of(ROOT, [[f"sed={number}"] for number in range(8)])


# Resources


def profile(**sweep):
    return Profile(name="p", executor="slurm", stages={"sweep": {"time": "01:00:00", **sweep}})


def test_a_job_is_one_task_whose_stages_take_all_gpus():
    resources, processes = resources_of(profile(gpus_per_node=4, workers=2))
    assert (resources.tasks, resources.cpus, resources.gpus_per_node) == (1, 12, 4)
    assert processes == 4


def test_one_process_unless_asked():
    resources, processes = resources_of(profile(workers=2))
    assert (resources.tasks, resources.cpus, processes) == (1, 3, 1)


def test_several_nodes_are_refused():
    with pytest.raises(SlurmError, match=r"nodes = 2 for sweep.*put nodes: 1 under stages, sweep"):
        resources_of(profile(nodes=2))


# In the job


def test_stages_are_found_behind_shells():
    script = "sh -c 'sleep 600; true' & sleep 601 & wait"
    with subprocess.Popen(["bash", "-c", script]) as shell:
        names = []
        end = time.monotonic() + PATIENCE
        while names != ["sleep", "sleep"]:
            assert time.monotonic() < end, names
            found = stages_of(shell.pid)
            names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in found]
            time.sleep(0.01)
        for pid in found:
            os.kill(pid, 9)


def test_the_clone_gets_the_files_of_the_snapshot(tmp_path):
    snapshot, clone = tmp_path / "snapshot", tmp_path / "clone"
    for folder in (snapshot, clone):
        (folder / "a").mkdir(parents=True)
    (clone / "same").write_text("1")
    (clone / "gone").write_text("2")
    (clone / "a/changed").write_text("3")
    (clone / "link").symlink_to("same")
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *words], cwd=clone, check=True)
    (clone / "ignored").write_text("kept")
    for name, text in (("same", "1"), ("a/changed", "4"), ("link", "1"), ("a/new", "5")):
        (snapshot / name).write_text(text)
    (snapshot / "a/new").chmod(0o755)

    _overlay(snapshot, clone)

    found = {path.relative_to(clone).as_posix() for path in clone.rglob("*") if path.is_file()}
    assert {name for name in found if not name.startswith(".git/")} == {
        "same", "a/changed", "a/new", "link", "ignored",
    }  # fmt: skip
    assert (clone / "a/changed").read_text() == "4"
    assert (clone / "link").is_symlink()
    assert os.access(clone / "a/new", os.X_OK)


def test_without_a_commit_there_are_no_experiments(tmp_path):
    with pytest.raises(SlurmError, match="no git repository"):
        commit_of(tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    with pytest.raises(SlurmError, match="no commit yet"):
        commit_of(tmp_path)


# The end of an experiment


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """An experiment that has run in its clone and has not said so; the workspace takes it."""
    done = Experiment(tmp_path / "0")
    done.clone.mkdir(parents=True)
    words = {"workspace": str(tmp_path), "commit": "c", "dirty": False, "snapshot": "s"}
    order = Order("one", "k", ["seed=1"], ["evaluate"], cache="", executor="local", **words)
    done.write_order(order)
    monkeypatch.setattr(experiment, "revision_of", lambda clone, _: "r" if clone.exists() else None)
    monkeypatch.setattr(experiment, "deliver", lambda one, order: {"revision": "r", "top1": 50.0})
    monkeypatch.setattr(ExperimentJob, "_notice_sigterm", lambda self: None)
    monkeypatch.setattr(experiment, "JobEnvironment", AnyEnvironment)
    monkeypatch.setattr(
        experiment, "lay_out_clone", lambda one, order: pytest.fail("it would run once more")
    )
    return done


class AnyEnvironment:
    """Where a job runs."""

    job_id, num_tasks, hostname = "7", 1, "node"


def test_who_reads_of_the_success_finds_the_clone_gone(ran, monkeypatch, capsys):
    def write(path, value):
        assert not ran.clone.exists()
        write_json(path, value)

    monkeypatch.setattr(experiment, "write_json", write)
    ExperimentJob()(str(ran.path))
    assert sweep.wait([ran]) == 0
    assert capsys.readouterr().out.split() == ["one", "seed=1", "done", "50.00", "%"]
    assert not list(ran.path.glob("clone*"))


class Killed(BaseException):
    """As by SIGKILL: nothing handles it."""


@pytest.mark.parametrize(
    ("what", "said"), [((experiment, "write_json"), False), ((shutil, "rmtree"), True)]
)
def test_killed_at_the_end_it_does_not_run_again(ran, monkeypatch, what, said):
    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*what, kill)
        with pytest.raises(Killed):
            ExperimentJob()(str(ran.path))
    assert (ran.result() is not None) == said

    ExperimentJob()(str(ran.path))
    assert ran.result() == {"revision": "r", "top1": 50.0}
    assert not list(ran.path.glob("clone*"))


@pytest.mark.parametrize("name", ["clone", "spent"])
def test_sent_off_again_it_goes_on_in_its_clone(ran, name):
    """Both as where the job was killed for good: in the middle, and just before it said so."""
    if name == "spent":
        ran.clone.replace(ran.spent)
    again = Experiment(ran.path.with_name("1"))
    again.path.mkdir()
    again.write_order(ran.order())

    _move_clones([ran], [again])
    ExperimentJob()(str(again.path))

    assert again.result() == {"revision": "r", "top1": 50.0}
    assert not list(ran.path.glob("clone*"))
