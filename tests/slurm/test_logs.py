"""`python -m slurm.logs` on hand-made folders, and on the real cluster."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slurm import logs
from slurm.errors import SlurmError
from slurm.jobs import Job, Jobs, Record, Task, write_json
from slurm.logs import Printer, main
from slurm.states import GONE, State
from tests.clock import Clock
from tests.patience import PATIENCE
from tests.slurm.test_status import PENDING, RUNNING, Workspace, attempt

REPOSITORY = Path(__file__).parents[2]
ANNOUNCED = re.compile(r"--- attempt (\d+): job (\S+) on (\S+) since .*\d\d:\d\d:\d\d")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return Workspace(tmp_path, monkeypatch)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(logs, "time", clock)
    return clock


def started(workspace, stage="qat", job_id="1", state=RUNNING, log="one\n", **record):
    job = workspace.job(stage, job_id, state, **record)
    write_json(job.path / "attempts.json", [attempt(job_id)])
    job.log.write_text(log)
    return job


def launch_log(workspace, name, text):
    folder = workspace.jobs.root / "launches" / "l"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


# The log


def test_log_of_one_attempt(workspace, capsys):
    started(workspace)

    assert main(["qat"]) == 0

    said = capsys.readouterr()
    first, *rest = said.out.splitlines()
    assert ANNOUNCED.match(first).groups() == ("1", "1", "n1")
    assert rest == ["one"]
    assert said.err == ""


def test_attempts_are_told_apart(workspace, capsys):
    job = started(workspace, job_id="2_4", log="one\ncut o\nthree\n")
    how = "told to save, stopped and requeued"
    attempts = [
        attempt("2_4", 90.0, 80.0, how),
        # Printed nothing, and began where the next one did.
        attempt("2_4", 70.0, 60.0, "cut off", offset=9, nodes="n2"),
        attempt("2_4", 50.0, offset=9, nodes="n[1-2]"),
    ]
    write_json(job.path / "attempts.json", attempts)
    job.log.write_bytes(b"one\ncut othree\n")

    main(["qat"])

    lines = capsys.readouterr().out.splitlines()
    assert [ANNOUNCED.match(line) is not None for line in lines] == [1, 0, 0, 1, 1, 0]
    assert [lines[1], lines[2], lines[5]] == ["one", "cut o", "three"]
    assert lines[3].endswith(f"(the one before: {how}) ---")
    assert ANNOUNCED.match(lines[4]).groups() == ("3", "2_4", "n[1-2]")


def test_attempt_of_another_day_has_its_date(workspace, capsys):
    job = started(workspace)
    write_json(job.path / "attempts.json", [attempt("1", 3 * 86400.0)])

    main(["qat"])

    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d ---", capsys.readouterr().out)


def test_growing_log_is_printed_once_and_byte_by_byte(workspace, capfdbinary):
    job = started(workspace, log="")
    printer = Printer(job, 0)
    text = "µ one\ntwo\n".encode()
    for at in range(len(text)):
        with job.log.open("ab") as file:
            file.write(text[at : at + 1])
        assert printer.print_new()
    write_json(job.path / "attempts.json", [attempt("1"), attempt("1", offset=len(text))])
    assert printer.print_new()
    assert not printer.print_new()

    lines = capfdbinary.readouterr().out.splitlines()
    assert lines[1:3] == ["µ one".encode(), b"two"]
    assert lines[3].startswith(b"--- attempt 2: ")
    assert len(lines) == 4


def test_attempt_whose_log_is_not_seen_yet_waits(workspace, capsys):
    job = started(workspace, log="one\n")
    write_json(job.path / "attempts.json", [attempt("1"), attempt("1", offset=8)])
    printer = Printer(job, 0)
    printer.print_new()
    job.log.write_text("one\ntwo\n3\n")
    printer.print_new()

    lines = capsys.readouterr().out.splitlines()
    assert [line[:13] for line in lines] == ["--- attempt 1", "one", "two", "--- attempt 2", "3"]


def test_logs_of_other_processes(workspace, capsys):
    job = started(workspace, tasks=2)
    (job.path / "log-1.txt").write_text("of rank 1\n")

    main(["qat", "--rank", "1"])
    assert capsys.readouterr().out == "of rank 1\n"

    with pytest.raises(SlurmError, match="--rank 2: qat has 2 tasks"):
        main(["qat", "--rank", "2"])


def test_failed_job_says_so_after_its_log(workspace, capsys):
    job = started(workspace, state=State("FAILED"))
    write_json(job.path / "failed.json", {"message": "exit status 1", "log": ["boom"]})

    assert main(["qat"]) == 0

    said = capsys.readouterr()
    assert said.out.endswith("one\n")
    assert said.err == "qat: job 1 failed: exit status 1: boom\n"


def test_waiting_job_has_a_reason(workspace, capsys):
    workspace.job("qat", "1", PENDING)

    assert main(["qat"]) == 0

    said = capsys.readouterr()
    assert said.out == ""
    told, where = said.err.splitlines()
    assert told == "qat: job 1 waiting: Priority: others go first"
    assert where.endswith(".slurm/launches/l")


def test_requeued_job_shows_log_and_reason(workspace, capsys):
    started(workspace, state=State("PENDING", "BeginTime"))

    main(["qat"])

    said = capsys.readouterr()
    assert said.out.endswith("one\n")
    assert said.err == "qat: job 1 waiting: BeginTime: requeued, starts again soon\n"


def test_job_that_died_before_its_stage_shows_submitits_log(workspace, capsys):
    # An earlier submission of the same job got somewhere.
    job = started(workspace, job_id="1", state=None)
    record = job.record()
    record.job_id = "2"
    job.write(record)
    workspace.states["2"] = State("FAILED")
    launch_log(workspace, "2_0_log.out", "module: command not found\n")
    launch_log(workspace, "22_0_log.out", "another job\n")

    main(["qat"])

    said = capsys.readouterr()
    assert "one" in said.out
    assert said.out.endswith("2_0_log.out ---\nmodule: command not found\n")
    assert "job 2 failed: killed without a word" in said.err


def test_lost_job_without_id(workspace, capsys, monkeypatch):
    monkeypatch.setattr("slurm.survey.lost_ids", lambda *_: {})
    workspace.job("qat")

    assert main(["qat"]) == 0

    assert "job ? lost: it never reached SLURM" in capsys.readouterr().err


# Which job


def test_several_stages_match(workspace):
    for cell in ("lsq-2-0", "ofq-2-0"):
        started(workspace, f"grid@{cell}")

    with pytest.raises(SlurmError, match=r"grid means several.*\n  grid@lsq-2-0\n  grid@ofq-2-0"):
        main(["grid"])


def test_stage_that_is_unknown(workspace):
    started(workspace, "teacher")

    with pytest.raises(SlurmError, match="did you mean 'teacher'"):
        main(["techer"])


def test_latest_job_or_the_one_asked_for(workspace, capsys):
    started(workspace, job_id="11", key="a", log="old\n")
    started(workspace, job_id="12_0", key="b", log="new\n")

    for argv, text in ((["qat"], "new"), (["--job", "11"], "old"), (["--job", "12"], "new")):
        main(argv)
        assert capsys.readouterr().out.splitlines()[1:] == [text]
    with pytest.raises(SlurmError, match="no job 13 of qat here"):
        main(["qat", "--job", "13"])
    with pytest.raises(SystemExit):
        main([])


# Following


def test_follow_until_it_succeeds(workspace, clock, capsys):
    job = started(workspace)

    def finish():
        with job.log.open("a") as log:
            log.write("two\n")
        write_json(job.path / "done.json", {"files": {}})

    clock.later(3, finish)
    assert main(["qat", "-f"]) == 0

    said = capsys.readouterr()
    assert said.out.splitlines()[1:] == ["one", "two"]
    assert said.err == ""


def test_follow_until_it_fails(workspace, clock, capsys):
    job = started(workspace)
    failure = {"message": "exit status 1", "log": []}
    clock.later(3, lambda: write_json(job.path / "failed.json", failure))

    assert main(["qat", "-f"]) == 1

    assert capsys.readouterr().err == "qat: job 1 failed: exit status 1\n"


@pytest.mark.parametrize("end", [State("CANCELLED"), GONE, State("OUT_OF_MEMORY")])
def test_follow_a_job_that_ends_without_a_word(workspace, clock, capsys, end):
    started(workspace)
    clock.later(3, lambda: workspace.states.update({"1": end}))

    assert main(["qat", "-f"]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("qat: job 1 ")


def test_follow_tells_once_why_a_job_waits(workspace, clock, capsys):
    job = workspace.job("qat", "1", PENDING)
    clock.later(8, lambda: workspace.states.update({"1": State("PENDING", "Resources")}))
    clock.later(20, lambda: write_json(job.path / "done.json", {"files": {}}))

    assert main(["qat", "-f"]) == 0

    reasons = [line.split(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert reasons == ["Priority", "Resources"]


def test_ctrl_c_is_quiet(workspace, tmp_path):
    started(workspace, executor="local", job_id="1")
    write_json(workspace.jobs.job("qat", "k").path / "attempts.json", [attempt("1")])
    # The local executor's job 1 is a process that is none of submitit's: ended, but not settled.
    process = subprocess.Popen(
        [sys.executable, "-m", "slurm.logs", "qat", "-f"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("--- attempt 1")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)

    assert process.returncode == 130
    assert err == ""


@pytest.mark.slurm
def test_real_cluster(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    job = Job(Jobs(tmp_path).folder / "qat" / "k")
    folder = tmp_path / ".slurm" / "launches" / "l"
    folder.mkdir(parents=True)
    died = cluster.submit("echo no such module; exit 1", f"--output={folder}/%j_0_log.out")
    task = Task("qat", ["python"], {}, {}, [], ["out"])
    record = Record(task, str(tmp_path), "", {}, {}, job_id=died, launch="l", submitted=1.0)
    job.write(record)

    assert main(["qat", "-f"]) == 1

    said = capsys.readouterr()
    assert said.out.endswith("no such module\n")
    assert f"qat: job {died} failed: killed without a word" in said.err
