"""SIGTERM to a stage: 143 and a checkpoint; run again, the student is that of a run left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.patience import PATIENCE

CELL = ("pipelines.grid", "--method", "ofq", "--bits", "2", "--seed", "0")
STUDENT = "results/smoke/ofq-w2a2-s0/student.pt"
# Steps are short: so many that there is time to aim. No checkpoint but the one asked for.
LONG = {"recipe__epochs": 60, "recipe__cga_epochs": 2, "recipe__checkpoint_seconds": 1e9}


@pytest.fixture
def start(environment):
    """A stage that trains, once its progress file shows that it is past its first epoch."""
    running = []

    def run(folder, *words):
        path = folder / "progress.json"
        path.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=folder,
            env=environment | {"OFQ_PROGRESS": str(path), "OFQ_DEVICE": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        until = time.monotonic() + PATIENCE
        while not (path.exists() and json.loads(path.read_text())["epoch"] > 1):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.01)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def undisturbed(workspace, command, set_params):
    """Bytes of the student of one process that nobody asked anything."""
    set_params(workspace, **LONG)
    done = command(workspace, *CELL)
    assert done.code == 0, done.err
    student = workspace / STUDENT
    content = student.read_bytes()
    student.unlink()
    return content


def stopped(process):
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, err
    lines = err.splitlines()
    # Between them how far it is, if it takes long.
    assert lines[0] == "grid ofq-w2a2-s0: training"
    assert all(line.startswith("grid ofq-w2a2-s0: epoch ") for line in lines[1:-1])
    words = lines[-1].split()
    message = "stopped on request after epoch {}, step {}; run the same command again to go on"
    epoch, step = words[5].rstrip(","), words[7].rstrip(";")
    assert lines[-1] == message.format(epoch, step)
    return f"after epoch {epoch}, step {step}"


def test_one_process(undisturbed, workspace, start, command):
    process = start(workspace, *CELL)
    process.send_signal(signal.SIGTERM)
    where = stopped(process)
    assert len(list(workspace.glob(".partial/*/checkpoint.pt"))) == 1
    assert not (workspace / STUDENT).exists()
    done = command(workspace, *CELL)
    assert done.code == 0, done.err
    assert f"going on {where}" in done.out
    assert (workspace / STUDENT).read_bytes() == undisturbed


@pytest.mark.parametrize("whom", ["launcher", "one of two"])
def test_two_processes(whom, workspace, set_params, start, command):
    """Whoever gets the signal, all stop after the same step."""
    set_params(workspace, **LONG)
    process = start(workspace, "pipelines.processes", "2", *CELL)
    if whom == "launcher":
        process.send_signal(signal.SIGTERM)
    else:
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        with open(children, encoding="ascii") as file:
            found = [int(pid) for pid in file.read().split()]
        (second,) = [pid for pid in found if "RANK=1" in environ(pid)]
        os.kill(second, signal.SIGTERM)
    where = stopped(process)
    done = command(workspace, *CELL)
    assert done.code == 0, done.err
    assert f"going on {where}" in done.out


def environ(pid):
    with open(f"/proc/{pid}/environ", encoding="utf-8") as file:
        return file.read().split("\0")


def test_before_training_it_dies_at_once(environment, workspace):
    """There is nothing to save."""
    with subprocess.Popen(
        [sys.executable, "-m", *CELL], cwd=workspace, env=environment, stderr=subprocess.PIPE
    ) as process:
        # Python has started and loads torch, which takes it a while.
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == -signal.SIGTERM
        assert process.stderr.read() == b""
    assert not [path for path in workspace.glob(".partial/*") if path.is_dir()]
