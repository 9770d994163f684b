"""`python -m slurm.status` on hand-made folders, and once on the real cluster."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from slurm import cluster as slurm_cluster
from slurm.jobs import Input, Job, Jobs, Record, Task, write_json
from slurm.states import GONE, UNKNOWN, State
from slurm.status import cells, clock, latest, main
from slurm.survey import Row, refresh, survey
from tests.clock import Clock

REPOSITORY = Path(__file__).parents[2]
PENDING = State("PENDING", "Priority")
RUNNING = State("RUNNING", node="n1", elapsed="0:07")


class Workspace:
    """A folder with jobs, and a stand-in for SLURM that answers from `states` by job id."""

    def __init__(self, path, monkeypatch):
        (path / "dvc.yaml").touch()
        monkeypatch.chdir(path)
        monkeypatch.setattr(slurm_cluster, "job_states", self.answer)
        monkeypatch.setattr(slurm_cluster, "cancel", self.cancel)
        self.path, self.jobs = path, Jobs(path)
        self.states, self.asked, self.cancelled, self.refused = {}, [], [], None
        self.submitted = time.time() - 1000

    def answer(self, executor, jobs, ids):
        self.asked.append(sorted(ids.values()))
        return {job.name: self.states.get(ids[job.name], GONE) for job in jobs}

    def cancel(self, executor, ids):
        self.cancelled += list(ids)
        if self.refused is None:
            self.states |= {job: State("CANCELLED") for job in self.cancelled}
        return self.refused

    def job(self, stage, job_id="", state=None, key="k", late=(), launch="l", **record):
        """Make a job; each is submitted a second after the one before."""
        job = self.jobs.job(stage, key)
        inputs = [Input("in", {}, {f"out{i}": name for i, name in enumerate(late)})]
        task = Task(stage, ["python"], {}, {}, inputs, ["out"])
        self.submitted += 1
        told = {"submitted": self.submitted} | record
        job.write(
            Record(task, str(self.path), "snap", {}, {}, job_id=job_id, launch=launch, **told)
        )
        if state is not None:
            self.states[job_id] = state
        return job


def attempt(job_id, began=100.0, ended=None, how="running", offset=0, nodes="n1", now=None):
    """One of attempts.json; times in seconds before now, or before another time."""
    now = now or datetime.now(UTC)
    then = {
        key: None
        if seconds is None
        else (now - timedelta(seconds=seconds)).isoformat(timespec="seconds")
        for key, seconds in (("began", began), ("ended", ended))
    }
    rest = {"job": job_id, "how": how, "log_offset": offset, "nodes": nodes}
    return {**then, **rest, "restart": 0, "tasks": 1}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return Workspace(tmp_path, monkeypatch)


def shown(capsys, *argv):
    """The lines of the table without its head, and the last line."""
    assert main(list(argv)) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line.split() for line in lines[1:-1]], lines[-1]


def row(job, state, job_id="7"):
    return Row(job, job.record(), job_id, state)


def test_no_jobs(workspace, capsys):
    assert main([]) == 0

    assert "python -m slurm.submit" in capsys.readouterr().out
    assert workspace.asked == []


def test_order_is_that_of_submission_then_stage(workspace, capsys):
    workspace.job("teacher", "2", PENDING, submitted=5.0)
    for number in (10, 9):
        workspace.job(f"grid@lsq-{number}", f"3_{number}", PENDING, submitted=6.0)
    workspace.job("prepare", "1", RUNNING, submitted=4.0)

    rows, last = shown(capsys)

    assert [cells[0] for cells in rows] == ["prepare", "teacher", "grid@lsq-9", "grid@lsq-10"]
    assert last == "1 running, 3 waiting"


def test_slurm_is_asked_once_and_only_for_what_has_not_ended(workspace):
    write_json(workspace.job("prepare", "1").path / "done.json", {"files": {}})
    write_json(workspace.job("teacher", "2").path / "failed.json", {"message": "m"})
    workspace.job("qat", "3", PENDING)
    workspace.job("tables", "4", PENDING)

    survey(workspace.jobs)

    assert workspace.asked == [["3", "4"]]


@pytest.fixture
def standing_still(monkeypatch):
    """A time at which the clock of the survey stands."""
    now = datetime.now(UTC).replace(microsecond=0)
    clock = Clock()
    clock.time = now.timestamp
    monkeypatch.setattr("slurm.survey.time", clock)
    return now


def test_running_job_with_its_progress(workspace, standing_still, capsys):
    job = workspace.job("qat", "5", RUNNING)
    write_json(job.path / "attempts.json", [attempt("5", 3723.0, now=standing_still)])
    progress = {"epoch": 3, "epochs": 9, "loss": 1.2344, "val_top1": 93.1, "seconds_left": 125.0}
    write_json(job.path / "progress.json", progress)

    ((stage, number, state, node, elapsed, *rest),), _ = shown(capsys)

    assert (stage, number, state, node) == ("qat", "5", "running", "n1")
    assert elapsed == "1:02:03"
    assert rest == ["3/9", "1.234", "93.10", "%", "2:05"]


def test_running_job_that_has_not_written_anything_has_slurms_time(workspace, capsys):
    workspace.job("qat", "5", RUNNING)

    ((*_, elapsed),), _ = shown(capsys)

    assert elapsed == "0:07"


def test_time_counts_over_all_starts(workspace, standing_still):
    job = workspace.job("qat", "5", RUNNING)
    starts = [
        attempt("5", 500.0, 400.0, "told to save, stopped and requeued", now=standing_still),
        attempt("5", 300.0, None, "cut off without notice: killed, requeued or its node lost"),
        attempt("5", 50.0, now=standing_still),
    ]
    write_json(job.path / "attempts.json", starts)

    (found,) = survey(workspace.jobs)

    assert found.seconds == 150.0
    assert cells(found)[5] == "3"
    workspace.states["5"] = PENDING
    (found,) = refresh(workspace.jobs, [found])
    assert found.seconds == 100.0
    assert found.node == ""  # it waits for another


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("COMPLETING", "ending"),
        ("CONFIGURING", "starting"),
        ("REQUEUED", "waiting"),
        ("SUSPENDED", "suspended"),
        ("CANCELLED", "cancelled"),
        ("COMPLETED", "ended"),
        ("GONE", "lost"),
        ("UNKNOWN", "unknown"),
        ("TIMEOUT", "failed"),
        ("OUT_OF_MEMORY", "failed"),
        ("BRAND_NEW", "brand_new"),
    ],
)
def test_words_for_states(workspace, name, word):
    assert row(workspace.job("qat", "7"), State(name)).state == word


def test_files_have_the_last_word(workspace):
    job = workspace.job("qat", "7", State("RUNNING"))
    (found,) = survey(workspace.jobs)
    # SLURM is asked before: what the job has written since counts.
    write_json(job.path / "done.json", {"files": {}})

    assert found.state == "done"


def test_collected_jobs_are_summed_up(workspace, capsys):
    for number in range(3):
        job = workspace.job(f"grid@{number}", f"1_{number}")
        write_json(job.path / "retired.json", {"files": {}})
    taken = workspace.job("prepare", "2")
    write_json(taken.path / "done.json", {"files": {}})
    marker = workspace.jobs.root / "collected" / taken.name
    marker.parent.mkdir(parents=True)
    marker.touch()
    workspace.job("qat", "3", RUNNING)

    rows, last = shown(capsys)
    assert [cells[0] for cells in rows] == ["qat"]
    assert last == "1 running, 4 collected"

    rows, last = shown(capsys, "--all")
    assert len(rows) == 5
    assert last == "4 collected, 1 running"


def test_only_collected(workspace, capsys):
    write_json(workspace.job("prepare", "1").path / "retired.json", {"files": {}})

    assert main([]) == 0

    assert capsys.readouterr().out == "1 collected\n"


def test_earlier_jobs_show_only_while_they_are_alive(workspace):
    workspace.job("qat", "1", State("FAILED"), key="a")
    workspace.job("qat", "2", RUNNING, key="b")
    workspace.job("qat", "3", State("CANCELLED"), key="c")

    rows = survey(workspace.jobs)

    assert [found.id for found in rows] == ["1", "2", "3"]
    assert [found.id for found in latest(rows)] == ["2", "3"]


def test_slurm_does_not_answer(workspace, capsys):
    ran = workspace.job("qat", "1", UNKNOWN)
    write_json(ran.path / "attempts.json", [attempt("1")])
    workspace.job("tables", "2", UNKNOWN)
    # Nobody looks for an id then.
    workspace.job("evaluate", "", UNKNOWN)

    assert main([]) == 0

    first, _, _, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith("SLURM does not answer")
    assert "unknown  n1    SLURM does not answer; it was running before" in lines[0]
    assert "it was waiting before" in lines[1]
    assert "?" in lines[2]
    assert last == "3 unknown"


def test_json(workspace, capsys):
    job = workspace.job("qat", "5_1", State("PENDING", "Dependency"))
    write_json(workspace.job("prepare", "1").path / "retired.json", {"files": {}})

    assert main(["--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["slurm_answers"], found["collected"]) == (True, 1)
    (one,) = found["jobs"]
    assert one["folder"] == str(job.path)
    asked = ("stage", "id", "state", "slurm", "reason", "node", "seconds", "progress")
    said = ("qat", "5_1", "waiting", "PENDING", "Dependency", None, None, None)
    assert tuple(one[key] for key in asked) == said


def test_job_that_ran_here_has_no_id(workspace, capsys):
    job = workspace.job("check", executor="here", launch="")
    write_json(job.path / "done.json", {"files": {}})

    assert shown(capsys)[0] == [["check", "here", "done"]]


def test_refresh_sees_what_was_sent_off_again(workspace):
    job = workspace.job("qat", "1", State("CANCELLED"))
    (before,) = survey(workspace.jobs)
    record = job.record()
    record.job_id = "2"
    job.write(record)
    workspace.states["2"] = RUNNING

    (after,) = refresh(workspace.jobs, [before])

    assert (before.state, after.state, after.id) == ("cancelled", "running", "2")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0, "0:00"), (59.6, "1:00"), (3723, "1:02:03"), (187200, "2-04:00:00")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("commands", "slow"),
    [
        ("slurm.status, slurm.logs, slurm.cancel", {"dvc", "torch", "submitit", "numpy"}),
        # DVC starts a process of these for every stage.
        ("slurm.run, slurm.collect", {"dvc", "torch", "submitit", "numpy", "pydantic", "ruamel"}),
    ],
)
def test_slow_modules_stay_out(commands, slow):
    code = f"import sys, {commands}; print({slow} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )

    assert done.stdout == "set()\n"


def test_a_thousand_jobs_are_quick(workspace, capsys):
    """One question to SLURM, and work that grows with the jobs and not with their square."""
    calls = []
    for many in (100, 1000):
        for number in range(many):
            job = workspace.job(f"grid@ofq-2-{number}", f"1_{number}", RUNNING)
            write_json(job.path / "attempts.json", [attempt(f"1_{number}")])
            write_json(job.path / "progress.json", {"epoch": 1, "epochs": 2, "loss": 1.0})
        workspace.asked.clear()
        count = 0

        def look(frame, event, argument):
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(look)
        try:
            _, last = shown(capsys)
        finally:
            sys.setprofile(None)
        calls.append(count)
        assert last == f"{many} running"
        assert len(workspace.asked) == 1
    assert calls[1] < 15 * calls[0]


@pytest.mark.slurm
def test_real_cluster(cluster, tmp_path, monkeypatch, capsys):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    jobs = Jobs(tmp_path)
    first = cluster.submit("sleep 600", "--job-name=ofq-status")
    after = f"--dependency=afterok:{first}"
    array = cluster.submit("true", "--array=0-1", "--job-name=ofq-status", after)
    ids = {"teacher": first, "grid@a": f"{array}_0", "grid@b": f"{array}_1"}
    for number, (stage, job_id) in enumerate(ids.items()):
        late = {"out": "teacher/k"} if number else {}
        task = Task(stage, ["python"], {}, {}, [Input("in", {}, late)], ["out"])
        record = Record(task, str(tmp_path), "", {}, {}, job_id=job_id, submitted=float(number))
        Job(jobs.folder / stage / "k").write(record)
    cluster.wait(first, "RUNNING")
    cluster.wait_for_reason(array, "Dependency")

    rows, last = shown(capsys)

    assert rows[0][:3] == ["teacher", first, "running"]
    assert rows[0][3] in ("n1", "n2")
    for line, stage in zip(rows[1:], ("grid@a", "grid@b"), strict=True):
        assert " ".join(line) == f"{stage} {ids[stage]} waiting Dependency: waits for teacher"
    assert last == "1 running, 2 waiting"

    cluster.run("scancel", first, array)
    cluster.wait(first, "CANCELLED")
    cluster.wait(array, "CANCELLED")
    assert [found.state for found in survey(jobs)] == ["cancelled"] * 3
