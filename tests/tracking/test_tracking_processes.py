"""Logging processes: the command line, two at once, and the helper beside a stage."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.tracking import background
from tests.patience import PATIENCE

MakeRun = Callable[..., Path]
MakeTables = Callable[..., Path]
Cli = Callable[..., subprocess.CompletedProcess[str]]
CliStart = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def hanging_up() -> Iterator[tuple[str, list[object]]]:
    """Address of a server that takes every connection and closes it at once, and those it took."""
    taken: list[object] = []

    def answer(server: socket.socket) -> None:
        while True:
            try:
                connection, address = server.accept()
            except OSError:  # how it hears that the test is over
                return
            taken.append(address)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", taken
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def logged(root: Path) -> list[str]:
    """Names of the finished runs in the store, read without mlflow."""
    connection = sqlite3.connect(root / "mlflow.db")
    try:
        return sorted(
            name
            for (name,) in connection.execute(
                "select name from runs where lifecycle_stage = 'active' and status = 'FINISHED'"
            )
        )
    finally:
        connection.close()


def test_log_takes_all_finished_folders(
    repo: Path, make_run: MakeRun, make_tables: MakeTables, cli: Cli
) -> None:
    make_run(repo, "lsq")
    make_run(repo, "lsq", seed=1)
    make_run(repo, folder="experiment")
    make_run(repo, "lsq", folder="digits/teacher")
    (make_run(repo, "lsq", seed=2) / "metrics.json").unlink()
    done = cli(repo, "log")
    assert (done.returncode, done.stderr) == (0, "")
    assert logged(repo) == ["LSQ", "experiments", "lsq-w2a2-s0", "lsq-w2a2-s1", "ofq-w2a2-s0"]

    make_tables(repo)
    rows = cli(repo, "rows", "--study", "digits")
    assert rows.stdout.splitlines() == ["digits/lsq: logged", "digits/ofq: logged"]

    make_run(repo, "ofq", seed=7)
    status = cli(repo, "status")
    assert "result folders: 4, in MLflow: 3" in status.stdout
    assert f"not in MLflow: {repo}/results/digits/ofq-w2a2-s7" in status.stdout
    assert "#/experiments/1/runs?" in status.stdout


def test_a_broken_folder_fails_the_command_and_not_the_others(
    repo: Path, make_run: MakeRun, cli: Cli
) -> None:
    good, bad = make_run(repo, "lsq"), make_run(repo, "lsq", seed=1)
    (bad / "metrics.json").write_text('{"top1": 0.')
    done = cli(repo, "log", str(good), str(bad))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"{bad} is not a result folder" in done.stderr
    assert logged(repo) == ["LSQ", "lsq-w2a2-s0"]


def test_a_server_that_hangs_up_is_asked_once_by_the_command(
    repo: Path, make_run: MakeRun, cli: Cli, hanging_up: tuple[str, list[object]]
) -> None:
    """MLflow by itself would try again for minutes."""
    uri, taken = hanging_up
    folder = make_run(repo)
    done = cli(repo, "log", str(folder), MLFLOW_TRACKING_URI=uri)
    assert len(taken) == 1
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert uri in done.stderr
    assert "Traceback" not in done.stderr


def test_switched_off_the_command_does_nothing(repo: Path, make_run: MakeRun, cli: Cli) -> None:
    make_run(repo)
    done = cli(repo, "log", OFQ_TRACKING="off")
    assert (done.returncode, done.stdout) == (0, "tracking is off (OFQ_TRACKING=off)\n")
    assert logged(repo) == []


def test_two_processes_make_one_store_one_parent_and_no_duplicates(
    tmp_path: Path, make_run: MakeRun, cli_start: CliStart
) -> None:
    shared, first, second = (make_run(tmp_path, seed=seed) for seed in range(3))
    words = ("--root", str(tmp_path))
    both = [cli_start(tmp_path, "log", str(shared), str(own), *words) for own in (first, second)]
    for process in both:
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
    assert logged(tmp_path) == [
        "OFQ (StatsQ + QKR + CGA)",
        "ofq-w2a2-s0",
        "ofq-w2a2-s1",
        "ofq-w2a2-s2",
    ]
    assert not list(tmp_path.glob("mlflow.db.new*"))


def test_the_helper_logs_what_the_stage_hands_over(
    repo: Path, make_run: MakeRun, capfd: pytest.CaptureFixture[str]
) -> None:
    with background(wait_seconds=PATIENCE) as tracker:
        tracker.log(make_run(repo))
    assert logged(repo) == ["OFQ (StatsQ + QKR + CGA)", "ofq-w2a2-s0"]
    assert capfd.readouterr() == ("", "")


def test_a_temporary_experiment_logs_to_the_main_repository(
    repo: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = repo / ".dvc/tmp/exps/standalone/tmpabc"
    (workspace / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(workspace)
    folder = make_run(workspace, bits=3, folder="experiment")
    with background(wait_seconds=PATIENCE) as tracker:
        tracker.log(folder.relative_to(workspace))
    assert logged(repo) == ["experiments", "ofq-w3a3-s0"]
    assert not (workspace / "mlflow.db").exists()
    assert not (workspace / "mlruns").exists()
    assert list(repo.glob("mlruns/digits/*/artifacts/metrics.json"))


def test_a_server_that_is_down_costs_the_stage_one_message(
    repo: Path,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    hanging_up: tuple[str, list[object]],
) -> None:
    uri, taken = hanging_up
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with background(wait_seconds=PATIENCE) as tracker:
        tracker.log(make_run(repo))
    # At the beginning, if there was time for it, and for the folder.
    assert 1 <= len(taken) <= 2
    out, err = capfd.readouterr()
    assert out == ""
    (message,) = [line for line in err.splitlines() if "not logged" in line]
    assert uri in message
    assert "safe in results/digits/ofq-w2a2-s0" in message
    assert message.endswith("python -m pipelines.tracking log results/digits/ofq-w2a2-s0")
    assert "Traceback" not in err


def test_a_corrupt_database_is_left_alone(
    repo: Path, make_run: MakeRun, capfd: pytest.CaptureFixture[str]
) -> None:
    content = b"not a database " * 100
    (repo / "mlflow.db").write_bytes(content)
    with background(wait_seconds=PATIENCE) as tracker:
        tracker.log(make_run(repo))
    assert "file is not a database. The results are safe in" in capfd.readouterr().err
    assert (repo / "mlflow.db").read_bytes() == content


def test_a_broken_folder_does_not_fail_the_stage(
    repo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with background(wait_seconds=PATIENCE) as tracker:
        tracker.log(repo / "results/digits/none")
    assert "settings.yaml is missing" in capfd.readouterr().err


def test_a_slow_store_is_given_up(
    repo: Path, make_run: MakeRun, capfd: pytest.CaptureFixture[str]
) -> None:
    with background(wait_seconds=0.1) as tracker:
        tracker.log(make_run(repo))
    assert "took longer than 0.1 s. The results are safe in" in capfd.readouterr().err


def test_a_helper_that_died_is_reported(
    repo: Path, make_run: MakeRun, capfd: pytest.CaptureFixture[str]
) -> None:
    with background() as tracker:
        assert tracker._process is not None
        tracker._process.kill()
        tracker._process.wait()
        tracker.log(make_run(repo))
    assert "the logging process ended with status -9" in capfd.readouterr().err
    assert logged(repo) == []


def test_switched_off_there_is_no_process(
    repo: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFQ_TRACKING", "off")
    with background() as tracker:
        assert tracker._process is None
        tracker.log(make_run(repo))
    assert logged(repo) == []


def test_a_failing_stage_keeps_its_error_and_waits_for_nothing(repo: Path) -> None:
    tracker = background()

    def stage() -> None:
        with tracker:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage()
    process = tracker._process
    assert process is not None
    # Killed: one that is waited for ends with 0.
    assert process.returncode == -signal.SIGKILL


KILLED = """
import os, sys, time
from pipelines.tracking import background
with background() as tracker:
    if os.fork() == 0:          # like a data loader: it inherits the pipe and outlives the stage
        os.close(1)
        time.sleep(600)
        os._exit(0)
    print(tracker._process.pid, flush=True)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_the_helper_of_a_killed_stage_ends_and_logs_nothing(
    repo: Path, make_run: MakeRun, clean_environment: Callable[..., dict[str, str]]
) -> None:
    make_run(repo)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED],
        cwd=repo,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as stage:
        assert stage.stdout is not None
        helper = int(stage.stdout.readline())
        try:
            assert alive(helper)
            stage.kill()
            stage.wait()
            deadline = time.monotonic() + PATIENCE
            while alive(helper) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not alive(helper)
        finally:
            os.killpg(stage.pid, signal.SIGKILL)
    assert logged(repo) == []
