"""A finished run is put in place, whatever kills, meets or hinders the process that does it."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.alone import BusyError, alone
from pipelines.results import publish_files, publish_folder
from tests.patience import PATIENCE

CELL = ("pipelines.grid", "--method", "ofq", "--bits", "2", "--seed", "0")
STAGES = {
    "grid": (CELL, "results/smoke/ofq-w2a2-s0", "student.pt"),
    "qat": (("pipelines.qat",), "results/experiment", "student.pt"),
    "teacher": (("pipelines.teacher",), "results/teacher", "teacher.pt"),
}
WRITING = ["writing the student", "writing its environment"]
FOLDER = [
    "before the folder is moved",
    "after the folder is moved",
    "between former and new",
    "tidying up",
]
DEATHS = {
    "grid": [*WRITING, "removing what was there", *FOLDER],
    "qat": [
        *WRITING,
        "between two drafts",
        "between two files",
        "after the last file",
        "tidying up",
    ],
    "teacher": ["before the teacher is renamed", "after the teacher is renamed", *FOLDER],
}
# What a clock decides.
TIMED = {"env.json", "history.csv", "metrics.json", "training.json"}


@pytest.fixture(scope="module")
def published(trained, command):
    """A folder with the results of every stage; not to be changed."""
    folder = shutil.copytree(trained, trained.parent / "published")
    for stage in ("grid", "qat"):
        done = command(folder, *STAGES[stage][0])
        assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize(
    ("stage", "place"), [(stage, place) for stage, places in DEATHS.items() for place in places]
)
def test_killed_and_run_again(stage, place, published, tmp_path, command, snapshot):
    words, result, weights = STAGES[stage]
    folder = shutil.copytree(published, tmp_path / "work")
    before = snapshot(folder / result)
    died = command(folder, "tests.pipelines.dying", place, *words)
    assert died.code == -signal.SIGKILL, died.err
    done = command(folder, *words)
    assert done.code == 0, done.err
    after = snapshot(folder / result)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} <= TIMED
    assert after[weights] == before[weights]
    assert list((folder / ".partial").iterdir()) == []
    assert not list((folder / result).parent.glob(".*")), "nor is anything left beside it"


def test_a_checkpoint_belongs_to_the_code_that_wrote_it(tmp_path, monkeypatch):
    """The kernels' C is code as well."""
    from pipelines import training

    package = tmp_path / "ofq_core"
    (package / "quant").mkdir(parents=True)
    monkeypatch.setattr(training.ofq_core, "__file__", str(package / "__init__.py"))
    found = [training._code_sha()]
    for name in ("__init__.py", "quant/kernels.c", "quant/kernels.c"):
        with (package / name).open("a") as file:
            file.write("x")
        found.append(training._code_sha())
    (package / "notes.txt").touch()

    assert len(set(found)) == len(found)
    assert training._code_sha() == found[-1]


# From another file system


@pytest.fixture
def elsewhere(tmp_path):
    """A folder that no rename reaches from `tmp_path`."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no file system of its own here")
    folder = memory / f"ofq-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("stage", STAGES)
def test_private_folders_on_another_file_system(stage, published, tmp_path, command, elsewhere):
    words, result, weights = STAGES[stage]
    folder = shutil.copytree(published, tmp_path / "work")
    (folder / ".partial").rmdir()
    (folder / ".partial").symlink_to(elsewhere)
    before = (folder / result / weights).read_bytes()
    (folder / result / weights).write_bytes(b"of an earlier run")
    if stage == "qat":
        (folder / result / "metrics.json").touch()
    done = command(folder, *words)
    assert done.code == 0, done.err
    assert (folder / result / weights).read_bytes() == before
    assert not (stage == "qat" and (folder / result / "metrics.json").exists())
    assert not list((folder / "results").rglob(".*"))
    assert not list(elsewhere.iterdir())


def full_disk(monkeypatch):
    """There is room for one file more."""
    copied = []

    def fsync(descriptor):
        copied.append(descriptor)
        if len(copied) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("publish", [publish_folder, publish_files])
def test_a_full_disk_loses_nothing(publish, tmp_path, elsewhere, monkeypatch, snapshot):
    made, target = elsewhere / "result", tmp_path / "results/run"
    for folder, text in ((made, "new"), (target, "old")):
        folder.mkdir(parents=True)
        for name in ("a", "b", "metrics.json"):
            (folder / name).write_text(text)
    before = snapshot(elsewhere), snapshot(target)
    with monkeypatch.context() as patch:
        full_disk(patch)
        with pytest.raises(OSError, match="No space left"):
            publish(made, target)
    assert snapshot(elsewhere) == before[0]
    assert {name: md5 for name, md5 in snapshot(target).items() if name[0] != "."} == before[1]
    publish(made, target)
    assert {path.read_text() for path in target.iterdir()} == {"new"}
    assert [path.name for path in target.parent.iterdir()] == ["run"]


def test_files_that_are_out_of_date_go_with_the_former_ones(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made/student.pt").write_text("new")
    (tmp_path / "there").mkdir()
    for name in ("student.pt", "metrics.json", "notes.txt"):
        (tmp_path / "there" / name).write_text("old")
    publish_files(tmp_path / "made", tmp_path / "there", outdated=["metrics.json"])
    left = {path.name: path.read_text() for path in (tmp_path / "there").iterdir()}
    assert left == {"student.pt": "new", "notes.txt": "old"}


# Two processes at once

HOLDER = """
import os, sys, time
from pathlib import Path
from pipelines.alone import alone
with alone(Path(sys.argv[1])):
    # A process that reads images outlives a parent that is killed, for a while.
    if os.fork() == 0:
        time.sleep(600)
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""
SHARED = {
    "pipelines.prepare": "data/smoke",
    "pipelines.teacher": "results/teacher",
    "pipelines.qat": "results/experiment",
    "pipelines.evaluate": "results/experiment",
    CELL: "results/smoke/ofq-w2a2-s0",
}


@pytest.fixture
def hold(environment):
    """Start a process that holds a target in a folder; its number."""
    running = []

    def start(folder, target):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, target],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        running.append(process)
        assert int(process.stdout.readline()) == process.pid
        return process

    yield start
    for process in running:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("words", SHARED, ids=str)
def test_a_second_process_is_refused(words, published, tmp_path, command, hold, snapshot):
    folder = shutil.copytree(published, tmp_path / "work")
    target = SHARED[words]
    if words == "pipelines.prepare":
        (target,) = (str(path.relative_to(folder)) for path in folder.glob("data/*/"))
    process = hold(folder, target)
    before = snapshot(folder)
    done = command(folder, *([words] if isinstance(words, str) else words))
    assert done.code == 1
    assert done.err.startswith(f"error: another process works on {target} (process {process.pid} ")
    assert "Traceback" not in done.err
    assert snapshot(folder) == before
    process.kill()
    process.wait(PATIENCE)
    done = command(folder, *([words] if isinstance(words, str) else words))
    assert done.code == 0, "its death is seen at once, though a process of its own still lives"
    assert not list(folder.glob(".partial/*"))


def test_a_lock_that_was_removed_counts_for_nobody(tmp_path, monkeypatch, hold):
    """Who waits has the file of before open; the next one makes a new one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.alone.PATIENCE_SECONDS", 0)
    lock = fcntl.lockf

    def slow(file, flags):
        monkeypatch.setattr(fcntl, "lockf", lock)
        (tmp_path / ".partial/results-x.lock").unlink()
        hold(tmp_path, "results/x")
        lock(file, flags)

    monkeypatch.setattr(fcntl, "lockf", slow)
    with pytest.raises(BusyError), alone(Path("results/x")):
        pass


def test_a_lock_with_damaged_content_is_held_all_the_same(tmp_path, monkeypatch, hold):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.alone.PATIENCE_SECONDS", 0)
    hold(tmp_path, "results/x")
    (tmp_path / ".partial/results-x.lock").write_bytes(b"\xff\xfe")
    with pytest.raises(BusyError), alone(Path("results/x")):
        pass


@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_without_locks(code, tmp_path, monkeypatch):
    def refuse(file, flags):
        raise OSError(getattr(errno, code), "no locks here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    with alone(Path("results/x")):
        pass


@pytest.mark.parametrize("told", [("OFQ_ATTEMPTS", "attempts.json"), ("RANK", "1")])
def test_who_needs_no_lock(told, tmp_path, monkeypatch, hold):
    """A job on a cluster has a folder of its own; of several processes the main one has locked."""
    monkeypatch.chdir(tmp_path)
    hold(tmp_path, "results/x")
    monkeypatch.setenv(*told)
    # Without others a rank is a left-over and says nothing.
    monkeypatch.setenv("WORLD_SIZE", "2")
    with alone(Path("results/x")):
        pass
