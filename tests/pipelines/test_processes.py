"""A stage in several processes: how it ends and what it says is that of one process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import processes
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
# Every process says its rank into a file of its own; rank 1 then does what the test asks.
PROGRAM = """
import os, pathlib, signal, sys, time
from ofq_core.errors import DataError
from pipelines import stage
rank = os.environ["RANK"]
def run(argv):
    pathlib.Path(f"rank-{rank}").write_text(
        " ".join([str(os.getpid()), os.environ["WORLD_SIZE"], os.environ["OMP_NUM_THREADS"], *argv])
    )
    if argv[0] == "all":
        # The launcher ends rank 1 when rank 0 has said it, however much later that starts.
        stage.PATIENCE_SECONDS = 600
        raise DataError("data: gone")
    if argv[0] == "one" and rank == "1":
        stage.PATIENCE_SECONDS = 0.1
        while not pathlib.Path("rank-0").exists():
            time.sleep(0.01)
        raise DataError("data: gone")
    if argv[0].startswith("leave"):
        # While the other one waits for this one's part of a sum.
        from ofq_core.distributed import join_world
        stage.PATIENCE_SECONDS = 600 if rank != argv[0][-1] else 0.1
        with join_world() as world:
            world.wait()
            if rank == argv[0][-1]:
                raise DataError("data: gone")
            world.wait()
    if argv[0] == "status" and rank == "1":
        os._exit(7)
    if argv[0] != "end":
        time.sleep(600)
stage.stage_main(run, sys.argv[1:])
"""


@pytest.fixture
def start(environment, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    running = []

    def run(*words):
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.processes", "2", "program", *words],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def ended(process):
    out, err = process.communicate(timeout=PATIENCE)
    assert out == ""
    return process.returncode, err


def pids(folder):
    """Of both processes, once they run."""
    for _ in range(int(PATIENCE / 0.1)):
        files = [folder / f"rank-{rank}" for rank in range(2)]
        if all(file.exists() and file.read_text().count(" ") >= 3 for file in files):
            return [int(file.read_text().split()[0]) for file in files]
        signal.sigtimedwait([], 0.1)
    raise AssertionError("they did not start")


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_both_run_with_the_arguments(start, tmp_path):
    assert ended(start("end", "--seed", "0")) == (0, "")
    said = [(tmp_path / f"rank-{rank}").read_text().split()[1:] for rank in range(2)]
    assert said == [["2", "1", "end", "--seed", "0"]] * 2


def test_an_error_of_all_is_one_message(start):
    assert ended(start("all")) == (1, "error: data: gone\n")


def test_an_error_of_one_ends_all_and_says_which(start, tmp_path):
    process = start("one")
    assert ended(process) == (1, "error: process 1: data: gone\n")
    assert all(gone(pid) for pid in pids(tmp_path))


@pytest.mark.parametrize(("rank", "who"), [(0, ""), (1, "process 1: ")])
def test_who_waits_for_one_that_ended_says_nothing(rank, who, start):
    """No stack trace of the process that is left, and no second message."""
    assert ended(start(f"leave-{rank}")) == (1, f"error: {who}data: gone\n")


def test_exit_status_is_that_of_the_first_that_failed(start):
    assert ended(start("status")) == (7, "")


def test_a_process_that_is_killed(start, tmp_path):
    """For example by the system, for want of memory: nobody hangs, and the user is told."""
    process = start("sleep")
    main, other = pids(tmp_path)
    os.kill(other, signal.SIGKILL)
    code, err = ended(process)
    assert code == 128 + signal.SIGKILL
    assert err == "error: process 1 was killed (SIGKILL): run the same command again to go on\n"
    assert gone(main)


@pytest.mark.parametrize("number", ["0", "-1", "1000", "two", "²", "9" * 5000])
def test_a_number_of_processes_that_cannot_be(number, capsys):
    with pytest.raises(SystemExit):
        processes.main([number, "pipelines.qat"])
    assert "expected a whole number from 1 to 999" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ending_the_launcher_ends_all(number, start, tmp_path):
    process = start("sleep")
    both = pids(tmp_path)
    process.send_signal(number)
    code, _ = ended(process)
    assert code == 128 + number
    assert all(gone(pid) for pid in both)
