"""A job runs in a folder of its own: what it is told, and where it finds what the user named."""

import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from ofq_core.data.environment import data_root, user_file
from ofq_core.distributed import World
from pipelines import environment
from pipelines.environment import describe_environment
from slurm.commit import describe_commit

OURS = ("OFQ_ATTEMPTS", "OFQ_GIT_COMMIT", "OFQ_GIT_DIRTY", "OFQ_WORKSPACE", "OFQ_DATA_DIR")
THEIRS = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURMD_NODENAME")


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    for name in OURS + THEIRS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    # As if the code were here.
    monkeypatch.setattr(environment, "ROOT", tmp_path / "job")


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
    assert "not a git repository" in facts["git_problem"]


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
    assert facts["git_problem"] is None


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


@pytest.mark.parametrize(
    ("root", "here", "told", "found"),
    [
        (None, ".dvc/tmp/exps/standalone/x", None, "."),
        ("", "", None, "."),
        ("", ".dvc/tmp/exps/standalone/x", None, ""),
        ("", ".dvc/tmp/exps/x/suite", None, ""),
        ("", ".dvc/tmp/exps/x", "/srv/study", "/srv/study"),
        ("other", "", None, "."),
    ],
)
def test_a_copy_of_dvcs_belongs_to_a_workspace(root, here, told, found, monkeypatch, tmp_path):
    """`dvc exp run --temp` and `--queue` run in a copy of what git tracks."""
    (tmp_path / here).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / here)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    if root is not None:
        monkeypatch.setenv("DVC_ROOT", str(tmp_path / root))
    if told:
        monkeypatch.setenv("OFQ_WORKSPACE", told)
    place = Path(found) if found in (".", told) else tmp_path / found
    assert data_root("pets") == place / "datasets/pets"
    assert user_file(Path("weights.pt")) == place / "weights.pt"


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


def git(*words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *words], check=True)


def unpack(folder="."):
    """Some of the suite, as an archive has it."""
    for name in ("ofq_core/nn/weight.py", "ofq_core/quant/kernels.c", "slurm/commit.py"):
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one")
    for name in ("params.yaml", "dvc.lock", "README.md"):
        (Path(folder) / name).write_text("one")


def commit_all():
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "one")


@pytest.mark.parametrize(
    ("name", "dirty"),
    [
        ("params.yaml", False),
        ("dvc.lock", False),
        ("notes.txt", False),
        ("ofq_core/__pycache__/weight.pyc", False),
        ("README.md", True),
        ("ofq_core/nn/weight.py", True),
        ("ofq_core/quant/kernels.c", True),
        ("ofq_core/methods/mine.py", True),
        ("pipelines/ignored.py", True),
    ],
)
def test_code_alone_makes_a_commit_dirty(name, dirty, described):
    """Settings that were dialled are in settings.yaml; dvc.lock is written by the run itself."""
    unpack()
    Path(".gitignore").write_text("ignored.py\n")
    commit_all()
    facts = described()
    assert facts["git"]["dirty"] is False
    assert len(facts["git"]["commit"]) == 40
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("two")
    assert described()["git"] == facts["git"] | {"dirty": dirty}
    assert describe_commit(Path.cwd())["dirty"] is dirty


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_code_that_git_was_told_not_to_look_at_is_dirty(flag):
    unpack()
    commit_all()
    git("update-index", flag, "ofq_core/nn/weight.py")
    Path("ofq_core/nn/weight.py").write_text("two")
    assert describe_commit(Path.cwd())["dirty"] is True


def test_the_repository_of_a_hook_is_not_that_of_the_code(monkeypatch, tmp_path):
    """Git tells its hooks by variables which repository it means."""
    unpack()
    commit_all()
    before = describe_commit(Path.cwd())
    unpack(tmp_path / "other")
    git("-C", str(tmp_path / "other"), "init", "-q")
    git("-C", str(tmp_path / "other"), "add", "-A")
    git("-C", str(tmp_path / "other"), "commit", "-qm", "another")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other" / ".git" / "index"))
    assert describe_commit(Path.cwd()) == before


@pytest.mark.parametrize("ignored", [False, True])
def test_code_unpacked_inside_another_repository(ignored, monkeypatch):
    """Its commit says nothing about this code."""
    Path("theirs.py").write_text("one")
    Path(".gitignore").write_text("suite\n" if ignored else "")
    commit_all()
    unpack("suite")
    found = describe_commit(Path("suite"))
    assert (found["commit"], found["dirty"]) == (None, None)
    assert found["problem"].endswith("does not track the code there")
    # Nor does where the command is typed.
    monkeypatch.setattr(environment, "ROOT", Path("suite").resolve())
    assert describe_environment(World())["git"] == {"commit": None, "dirty": None}


def test_code_in_a_folder_of_a_repository():
    """What differs elsewhere in it does not matter."""
    unpack("suite")
    Path("theirs.py").write_text("one")
    commit_all()
    Path("theirs.py").write_text("two")
    found = describe_commit(Path("suite"))
    assert (len(found["commit"]), found["dirty"]) == (40, False)


def test_code_in_a_worktree_a_shallow_clone_and_a_submodule(tmp_path):
    unpack()
    commit_all()
    commit = describe_commit(Path.cwd())["commit"]
    git("worktree", "add", "-q", str(tmp_path / "tree"))
    git("clone", "-q", "--depth=1", f"file://{Path.cwd()}", str(tmp_path / "shallow"))
    git("init", "-q", str(tmp_path / "super"))
    words = ("submodule", "--quiet", "add", str(Path.cwd()), "suite")
    git("-C", str(tmp_path / "super"), "-c", "protocol.file.allow=always", *words)
    for place in ("tree", "shallow", "super/suite"):
        found = describe_commit(tmp_path / place)
        assert (found["commit"], found["dirty"]) == (commit, False), place


@pytest.mark.parametrize(
    ("trouble", "problem"),
    [
        ("no git", "git is not installed"),
        ("another owner", "dubious ownership"),
        ("no commit yet", "git rev-parse"),
        ("a damaged repository", "git rev-parse"),
    ],
)
def test_a_commit_that_cannot_be_known(trouble, problem, tmp_path, monkeypatch):
    unpack()
    if trouble == "no commit yet":
        git("init", "-q")
    else:
        commit_all()
    if trouble == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif trouble == "another owner":
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    elif trouble == "a damaged repository":
        Path(".git/HEAD").write_text("nonsense")
    found = describe_commit(Path.cwd())
    assert (found["commit"], found["dirty"]) == (None, None)
    assert problem in found["problem"]
    assert len(found["problem"].splitlines()) == 1
