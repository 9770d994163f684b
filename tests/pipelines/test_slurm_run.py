"""Without a cluster `slurm.run` becomes the command: same process, same exit status."""

import os
import signal
import subprocess
import sys

import pytest

from slurm.run import spread
from tests.patience import PATIENCE


@pytest.fixture
def slurm_run(environment, tmp_path):
    def run(*words, **options):
        return subprocess.run(
            [sys.executable, "-m", "slurm.run", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            **options,
        )

    return run


@pytest.mark.parametrize("code", [0, 1, 3, 130, 255])
def test_exit_status_is_that_of_the_command(code, slurm_run):
    assert slurm_run("--", "sh", "-c", f"exit {code}").returncode == code


def test_output_input_and_folder_are_those_of_the_command(slurm_run, tmp_path):
    done = slurm_run("--", "sh", "-c", "cat; pwd; echo problem >&2", input="typed\n")
    assert done.stdout == f"typed\n{tmp_path}\n"
    assert done.stderr == "problem\n"


def test_arguments_arrive_as_they_are(slurm_run):
    words = ["a b", "--", "$HOME", "*", "", "--seed", "0"]
    done = slurm_run("--", "python", "-c", "import sys; print(sys.argv[1:])", *words)
    assert done.stdout == f"{words}\n"


def test_python_is_this_interpreter(slurm_run):
    """Whatever `python` means in the path of the shell that started DVC."""
    done = slurm_run("--", "python", "-c", "import sys; print(sys.executable)")
    assert done.stdout.strip() == sys.executable


def test_signals_reach_the_command_and_its_death_is_seen(environment, tmp_path):
    """There is no process in between that would swallow them."""
    with subprocess.Popen(
        [sys.executable, "-m", "slurm.run", "--", "sh", "-c", "echo $$; exec sleep 60"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert int(process.stdout.readline()) == process.pid
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.parametrize("words", [[], ["--"], ["python"], ["python", "--", "x"]])
def test_usage(words, slurm_run):
    done = slurm_run(*words)
    assert done.returncode == 2
    assert done.stderr == "usage: python -m slurm.run -- COMMAND [ARGUMENT ...]\n"


def test_a_command_that_does_not_exist(slurm_run):
    done = slurm_run("--", "no-such-command")
    assert done.returncode == 127
    assert done.stderr == "error: cannot run no-such-command: No such file or directory\n"


PYTHON = ["python", "-m"]


@pytest.mark.parametrize("stage", ["teacher", "full_precision", "grid", "qat"])
def test_stages_that_train_are_spread_over_processes(stage):
    words = [f"pipelines.{stage}", "--seed", "0"]
    assert spread([*PYTHON, *words], 2) == [*PYTHON, "pipelines.processes", "2", *words]
    assert spread([*PYTHON, *words], 1) == [*PYTHON, *words]


@pytest.mark.parametrize(
    "command",
    [
        *([*PYTHON, f"pipelines.{name}"] for name in ("check", "prepare", "evaluate", "tables")),
        ["python", "pipelines.qat"],
        ["sh", "-m", "pipelines.qat"],
        PYTHON,
    ],
)
def test_other_commands_are_not(command):
    assert spread(command, 8) == command


@pytest.mark.parametrize("number", ["0", "-1", "2.0", "two", "", "²", "99999999999"])
def test_a_number_of_processes_that_cannot_be(number, environment, tmp_path):
    """Said before anything starts, whatever the command."""
    done = subprocess.run(
        [sys.executable, "-m", "slurm.run", "--", "touch", "started"],
        cwd=tmp_path,
        env=environment | {"OFQ_PROCESSES": number},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"error: OFQ_PROCESSES = {number!r}: expected a whole number of processes, 1 to 999\n"
    )
    assert not (tmp_path / "started").exists()
