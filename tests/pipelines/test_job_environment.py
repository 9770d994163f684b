"""A job runs in a folder of its own: what it is told, and where it finds what the user named."""

import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from ofq_core.data.environment import data_root, user_file
from ofq_core.distributed import World
from pipelines.environment import describe_environment
from slurm.snapshot import describe_git

OURS = ("OFQ_ATTEMPTS", "OFQ_GIT_COMMIT", "OFQ_GIT_DIRTY", "OFQ_WORKSPACE", "OFQ_DATA_DIR")
THEIRS = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURMD_NODENAME")


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    for name in OURS + THEIRS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")


@pytest.fixture
def described(monkeypatch):
    """The facts for env.json with these environment variables."""

    def describe(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        return describe_environment(World())

    return describe


def test_without_a_cluster(described):
    facts = described()
    assert (facts["slurm_job"], facts["attempts"]) == (None, [])
    assert facts["node"] == platform.node()
    assert facts["git"] == {"commit": None, "dirty": None}, "this folder is no repository"


def test_job_and_node(described):
    facts = described(SLURM_JOB_ID="1234", SLURMD_NODENAME="gpu07")
    assert (facts["slurm_job"], facts["node"]) == ("1234", "gpu07")


def test_task_of_an_array(described):
    ids = {"SLURM_JOB_ID": "1240", "SLURM_ARRAY_JOB_ID": "1234", "SLURM_ARRAY_TASK_ID": "0"}
    assert described(**ids)["slurm_job"] == "1234_0"


def test_array_alone_is_no_task(described):
    assert described(SLURM_JOB_ID="1240", SLURM_ARRAY_JOB_ID="1234")["slurm_job"] == "1240"


def test_attempts(described, tmp_path):
    attempts = [{"job": "1", "end": "NODE_FAIL"}, {"job": "2", "end": None}]
    path = tmp_path / "attempts.json"
    path.write_text(json.dumps(attempts))
    assert described(OFQ_ATTEMPTS=path)["attempts"] == attempts


@pytest.mark.parametrize("content", [None, b"", b"[{", b'{"job": 1}', b"[1]", b"\xff"])
def test_attempts_that_cannot_be_read(content, described, tmp_path):
    path = tmp_path / "attempts.json"
    if content is not None:
        path.write_bytes(content)
    assert described(OFQ_ATTEMPTS=path)["attempts"] == []


@pytest.mark.parametrize(("text", "dirty"), [("true", True), ("false", False), ("", None)])
def test_commit_that_is_told(text, dirty, described):
    facts = described(OFQ_GIT_COMMIT="abc123", OFQ_GIT_DIRTY=text)
    assert facts["git"] == {"commit": "abc123", "dirty": dirty}


def test_commit_that_is_told_counts_more_than_git(described):
    subprocess.run(["git", "init", "-q"], check=True)
    assert described(OFQ_GIT_COMMIT="abc123")["git"] == {"commit": "abc123", "dirty": None}


# Paths


def test_data_root_without_a_workspace(monkeypatch):
    assert str(data_root("pets")) == "datasets/pets"
    monkeypatch.setenv("OFQ_DATA_DIR", "sets")
    assert str(data_root("pets")) == "sets/pets"


def test_data_root_below_the_workspace(monkeypatch):
    monkeypatch.setenv("OFQ_WORKSPACE", "/srv/study")
    assert str(data_root("pets")) == "/srv/study/datasets/pets"
    monkeypatch.setenv("OFQ_DATA_DIR", "../sets")
    assert str(data_root("pets")) == "/srv/study/../sets/pets"
    monkeypatch.setenv("OFQ_DATA_DIR", "/data/sets")
    assert str(data_root("pets")) == "/data/sets/pets"


def test_a_file_here_comes_before_one_in_the_workspace(monkeypatch, tmp_path):
    name = Path("weights.pt")
    assert user_file(name) == name
    monkeypatch.setenv("OFQ_WORKSPACE", str(tmp_path))
    assert user_file(name) == tmp_path / name
    name.write_bytes(b"")
    assert user_file(name) == name
    assert user_file(tmp_path / "gone.pt") == tmp_path / "gone.pt"


def test_teacher_named_from_the_workspace(workspace, set_params, command, tmp_path):
    """The job's folder has settings and data; the weights stay where the user has them."""
    (workspace / "given").mkdir()
    (workspace / "results/teacher/teacher.pt").rename(workspace / "given/weights.pt")
    set_params(workspace, teacher__checkpoint="given/weights.pt")
    job = tmp_path / "job"
    shutil.copy(workspace / "params.yaml", job)
    shutil.copytree(workspace / "data", job / "data")
    lost = command(job, "pipelines.teacher")
    assert lost.code == 1
    assert lost.err == "error: given/weights.pt: no such file\n"
    lost = command(job, "pipelines.teacher", OFQ_WORKSPACE=str(tmp_path))
    assert lost.err == f"error: {tmp_path}/given/weights.pt: no such file\n"
    done = command(job, "pipelines.teacher", OFQ_WORKSPACE=str(workspace))
    assert done.code == 0, done.err
    adopted = job / "results/teacher"
    assert json.loads((adopted / "metrics.json").read_text())["source"] == "given/weights.pt"
    given = workspace / "given/weights.pt"
    assert adopted.joinpath("teacher.pt").stat().st_size == given.stat().st_size


@pytest.mark.parametrize(
    ("name", "dirty"), [("params.yaml", False), ("dvc.lock", False), ("code.py", True)]
)
def test_code_alone_makes_a_commit_dirty(name, dirty, described):
    """Settings that were dialled are in settings.yaml; dvc.lock is written by the run itself."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    Path(name).write_text("one")
    for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], check=True)
    assert described()["git"]["dirty"] is False
    Path(name).write_text("two")
    assert described()["git"]["dirty"] is dirty
    assert describe_git(Path.cwd())["dirty"] is dirty
