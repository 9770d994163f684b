"""Folders to run commands in, and ways to run them as a user would."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
# Seconds a stage, with one seed: the smoke preset has two.
SMOKE = ("preset=smoke", "grid.seeds=[0]")
# What decides a command besides its arguments; a test sets what it is about.
FOREIGN = ("MLFLOW_", "DVC_", "GIT_", "OFQ_", "SLURM_")


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """A user's environment: the interpreter of this test first in the path, no settings of ours."""
    home = tmp_path_factory.mktemp("home")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    return kept | {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "OFQ_TRACKING": "off",
        # In place, also where there is SLURM: that has tests of its own.
        "OFQ_PROFILE": "local",
    }


@pytest.fixture(scope="session")
def fresh_command(environment):
    """`python -m` with the given words, in a folder; environment as keywords."""

    def run(folder, *words, **extra):
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=folder,
            env=environment | extra,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="session")
def command(environment, tmp_path_factory):
    """As `fresh_command`, but what takes long to import is imported once for all commands.

    limit: no file may become larger, in bytes.
    """
    folder = tmp_path_factory.mktemp("output")
    script = Path(__file__).with_name("fork_commands.py")
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:

        def run(cwd, *words, limit=None, **extra):
            request = {
                "argv": words,
                "cwd": str(cwd),
                "env": extra,
                "limit": limit,
                "out": str(folder / "out"),
                "err": str(folder / "err"),
            }
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            answer = server.stdout.readline()
            assert answer, "the process that runs the commands has ended"
            out, err = ((folder / name).read_text() for name in ("out", "err"))
            return SimpleNamespace(code=int(answer), out=out, err=err)

        yield run
        # Not left to the end of its input, which readers of images of other tests may hold open.
        server.terminate()


@pytest.fixture(scope="session")
def smoke(tmp_path_factory, command):
    """A folder with the settings of the smoke preset, without data; not to be changed."""
    folder = tmp_path_factory.mktemp("smoke") / "work"
    folder.mkdir()
    shutil.copytree(ROOT / "conf", folder / "conf")
    shutil.copy(ROOT / "dvc.yaml", folder)
    done = command(folder, "pipelines.params", "preset=smoke")
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def trained(smoke, command):
    """The same with prepared data and a teacher; not to be changed."""
    folder = shutil.copytree(smoke, smoke.parent / "trained")
    for stage in ("prepare", "teacher"):
        done = command(folder, f"pipelines.{stage}")
        assert done.code == 0, done.err
    return folder


@pytest.fixture
def settings_only(smoke, tmp_path):
    """A copy of `smoke`."""
    return shutil.copytree(smoke, tmp_path / "work")


@pytest.fixture
def workspace(trained, tmp_path):
    """A copy of `trained`."""
    return shutil.copytree(trained, tmp_path / "work")


@pytest.fixture(scope="session")
def set_params():
    """Change dotted keys in a folder's params.yaml, as an editor would."""

    def change(folder, **changes):
        path = folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            *parents, leaf = key.split("__")
            place = params
            for parent in parents:
                place = place[parent]
            place[leaf] = value
        path.write_text(yaml.safe_dump(params, sort_keys=False))

    return change


@pytest.fixture(scope="session")
def snapshot():
    """Every file and folder below a folder, with the hashes of the files."""

    def take(folder):
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else "folder"
            for path in sorted(folder.rglob("*"))
        }

    return take


@pytest.fixture(scope="session")
def one_message():
    """The command failed with one message and nothing else; returns the message."""

    def check(done, lines=1):
        assert done.code not in (0, None)
        assert done.code > 0, f"killed by signal {-done.code}"
        assert "Traceback" not in done.err
        assert done.out == ""
        assert done.err.startswith("error: ")
        message = done.err.removeprefix("error: ").rstrip("\n")
        assert len(message.splitlines()) == lines, message
        return message

    return check


# A clone of the working tree in which DVC runs


@pytest.fixture(scope="session")
def clone_environment(environment):
    """The clone's own code, and an identity for its commits."""
    names = {f"GIT_{who}_NAME": "Test" for who in ("AUTHOR", "COMMITTER")}
    mails = {f"GIT_{who}_EMAIL": "test@example.invalid" for who in ("AUTHOR", "COMMITTER")}
    kept = {key: value for key, value in environment.items() if key != "PYTHONPATH"}
    return kept | names | mails | {"DVC_NO_ANALYTICS": "1"}


@pytest.fixture(scope="session")
def shell(clone_environment):
    """A command in a folder of the clone; output and errors in `out`, as a terminal shows them."""

    def run(folder, *words, **extra):
        done = subprocess.run(
            words,
            cwd=folder,
            env=clone_environment | extra,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout)

    return run


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory, shell, copy_working_tree):
    """A clone in which `dvc repro` has run the smoke preset with one seed; not to be changed."""
    folder = copy_working_tree(tmp_path_factory.mktemp("reproduced") / "clone")
    for words in (
        ["git", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "Working tree"],
        ["python", "-m", "pipelines.params", *SMOKE],
    ):
        done = shell(folder, *words)
        assert done.code == 0, done.out
    done = shell(folder, "dvc", "repro")
    assert done.code == 0, done.out
    for words in (["git", "add", "-A"], ["git", "commit", "-qm", "Results"]):
        assert shell(folder, *words).code == 0
    return SimpleNamespace(folder=folder, log=done.out)


@pytest.fixture
def clone(reproduced, tmp_path):
    """A copy of it."""
    return shutil.copytree(reproduced.folder, tmp_path / "clone", symlinks=True)
