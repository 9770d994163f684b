"""Ids that were never written down: `slurm.ids.lost_ids`, and how `attach` waits for them."""

import time
from datetime import datetime

import pytest

from slurm import attach as slurm_attach
from slurm.attach import attach
from slurm.ids import PREFIX, lost_ids
from slurm.jobs import write_json
from slurm.profile import load_profile
from slurm.states import State
from slurm.status import cells
from slurm.survey import survey
from tests.clock import Clock
from tests.slurm.test_status import PENDING, RUNNING, Workspace

LAUNCH = "20250102-030405-abcdef01"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return Workspace(tmp_path, monkeypatch)


def launched(workspace, *names):
    path = workspace.jobs.root / "launches" / LAUNCH / "launch.json"
    write_json(path, {"jobs": list(names)})
    return workspace.jobs


def test_slurm_knows_none(workspace, programs):
    programs.put("squeue")
    programs.put("sacct")

    assert lost_ids(launched(workspace, "qat/k"), LAUNCH) == {}

    queue, accounts = programs.calls
    assert "--states=all" in queue
    for asked in (queue, accounts):
        assert asked.endswith(f"--name={PREFIX}{LAUNCH}")


def test_single_job(workspace, programs):
    programs.put("squeue", "12\\n")

    assert lost_ids(launched(workspace, "qat/k"), LAUNCH) == {"qat/k": "12"}
    assert len(programs.calls) == 1


def test_array(workspace, programs):
    programs.put("squeue", "12\\n12\\n")
    jobs = launched(workspace, "grid@a/k", "grid@b/k")

    assert lost_ids(jobs, LAUNCH) == {"grid@a/k": "12_0", "grid@b/k": "12_1"}


@pytest.mark.parametrize(
    ("output", "ids"),
    [
        ("12\\n", ["12"]),
        ("12_1\\n12_0\\n", ["12_0", "12_1"]),
        ("12_[0-1%%1]\\n", ["12_0", "12_1"]),
    ],
)
def test_only_accounting_remembers(workspace, programs, output, ids):
    programs.put("squeue")
    programs.put("sacct", output)
    names = [f"grid@{index}/k" for index in range(len(ids))]

    found = lost_ids(launched(workspace, *names), LAUNCH)

    assert found == dict(zip(names, ids, strict=True))
    # By itself sacct looks back to midnight only.
    (since,) = (word for word in programs.calls[1].split() if word.startswith("--starttime="))
    then = datetime.fromisoformat(since.partition("=")[2])
    assert 1 <= (datetime.now() - then).total_seconds() / 86400 <= 3


@pytest.mark.parametrize("there", [True, False])
def test_slurm_does_not_answer(workspace, programs, there):
    if there:
        programs.put("squeue", "12\\n", status=1)
    programs.put("sacct")

    assert lost_ids(launched(workspace, "qat/k"), LAUNCH) is None


@pytest.mark.parametrize("there", [True, False])
def test_cluster_without_accounting(workspace, programs, there):
    programs.put("squeue")
    if there:
        programs.put("sacct", "12\\n", status=1)

    assert lost_ids(launched(workspace, "qat/k"), LAUNCH) == {}


@pytest.mark.parametrize("launch", ["", "never"])
def test_launch_that_never_was(workspace, programs, launch):
    assert lost_ids(workspace.jobs, launch) == {}
    assert programs.calls == []


# Showing such jobs


def test_ids_are_recovered_once_per_array(workspace, monkeypatch):
    names = [workspace.job(f"grid@{i}").name for i in range(3)]
    workspace.states |= {"88_0": RUNNING, "88_1": PENDING, "88_2": PENDING}
    calls = []

    def find(jobs, launch):
        calls.append(launch)
        return {name: f"88_{index}" for index, name in enumerate(names)}

    monkeypatch.setattr("slurm.survey.lost_ids", find)

    rows = survey(workspace.jobs)

    assert [found.id for found in rows] == ["88_0", "88_1", "88_2"]
    assert [found.state for found in rows] == ["running", "waiting", "waiting"]
    assert calls == ["l"]
    assert rows[1].job.record().job_id == ""  # a command that only looks writes nothing


def test_ids_are_unknown_while_slurm_does_not_answer(workspace, monkeypatch):
    for launch in "ab":
        workspace.job(f"grid@{launch}", launch=launch)
    workspace.job("check", executor="local")
    calls = []
    monkeypatch.setattr("slurm.survey.lost_ids", lambda _, launch: calls.append(launch))

    rows = survey(workspace.jobs)

    assert [found.state for found in rows] == ["unknown", "unknown", "lost"]
    assert calls == ["a"]  # every question may take long


def test_id_that_nobody_knows(workspace, monkeypatch):
    monkeypatch.setattr("slurm.survey.lost_ids", lambda *_: {})
    workspace.job("qat")
    workspace.job("teacher", submitted=time.time())

    lost, fresh = survey(workspace.jobs)

    assert (lost.state, fresh.state) == ("lost", "submitting")
    assert "never reached SLURM" in cells(lost)[-1]
    assert cells(lost)[1] == "?"


# Waiting for such a job


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(slurm_attach, "time", clock)
    return clock


@pytest.fixture
def follow(workspace, clock, monkeypatch):
    """Attach to a job, in the test's own time: its exit status."""
    monkeypatch.setattr(slurm_attach, "job_states", workspace.answer)
    monkeypatch.setattr(slurm_attach, "collect", lambda *_: None)
    profile = load_profile("local").model_copy(update={"poll_seconds": 0.5})
    return lambda job: attach(workspace.jobs, job, profile)


def test_attach_waits_while_slurm_does_not_answer(workspace, programs, follow, clock, capsys):
    job = workspace.job("qat", launch=LAUNCH)
    launched(workspace, job.name)
    programs.put("squeue", status=1)
    clock.later(6, lambda: write_json(job.path / "done.json", {"files": {}}))

    assert follow(job) == 0

    assert "not known: SLURM does not answer" in capsys.readouterr().err


def test_attach_finds_a_lost_id(workspace, programs, follow, capsys):
    job = workspace.job("qat", launch=LAUNCH)
    launched(workspace, job.name)
    programs.put("squeue", "12\\n")
    workspace.states["12"] = State("TIMEOUT")

    assert follow(job) == 1

    assert "qat: job 12 failed: its time was up" in capsys.readouterr().err


@pytest.mark.parametrize("executor", ["slurm", "local"])
def test_attach_waits_for_a_submission(workspace, programs, follow, clock, capsys, executor):
    job = workspace.job("qat", launch=LAUNCH, submitted=time.time(), executor=executor)
    launched(workspace, job.name)
    programs.put("squeue")
    record = job.record()
    record.job_id = "12"
    workspace.states["12"] = State("OUT_OF_MEMORY")
    clock.later(6, lambda: job.write(record))

    assert follow(job) == 1

    said = capsys.readouterr().err
    assert "qat: job ? pending (being submitted)" in said
    assert "qat: job 12 failed: memory ran out" in said


def test_attach_gives_up_on_what_never_reached_slurm(workspace, programs, follow, capsys):
    job = workspace.job("qat", launch=LAUNCH)
    launched(workspace, job.name)
    programs.put("squeue")

    assert follow(job) == 1

    assert "qat: job ? failed: it never reached SLURM" in capsys.readouterr().err


def test_attach_gives_up_on_what_slurm_refused(workspace, programs, follow, clock):
    job = workspace.job("qat", launch=LAUNCH, submitted=time.time())
    programs.put("squeue")
    clock.later(3, (job.path / "job.json").unlink)

    assert follow(job) == 1
