"""`python -m slurm.cancel`, which jobs its targets mean, and what is said of jobs."""

import time

import pytest

from slurm import cluster as slurm_cluster
from slurm.cancel import MOST_LINES, main
from slurm.errors import SlurmError
from slurm.jobs import Input, Jobs, Record, Task, write_json
from slurm.states import UNKNOWN, State
from slurm.status import cells
from slurm.status import main as status
from slurm.survey import matches, survey
from slurm.words import why_waiting
from tests.slurm.test_status import PENDING, RUNNING, Workspace, attempt, row, shown


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return Workspace(tmp_path, monkeypatch)


def reported(job):
    return (job.path / "reported").exists()


def test_waiting_and_running_jobs_are_cancelled(workspace, capsys):
    running = workspace.job("qat", "1", RUNNING)
    waiting = workspace.job("tables", "2", PENDING)
    over = workspace.job("teacher", "3", State("TIMEOUT"))

    assert main(["--all"]) == 0

    assert workspace.cancelled == ["1", "2"]
    assert capsys.readouterr().out.splitlines() == [
        "qat: job 1 cancelled, was running on n1",
        "tables: job 2 cancelled, was waiting",
    ]
    # `dvc repro` submits these anew, and reports the other one.
    assert [reported(job) for job in (running, waiting, over)] == [True, True, False]


def test_targets_decide(workspace):
    for number in range(3):
        workspace.job(f"grid@ofq-{number}", f"1_{number}", RUNNING)
    workspace.job("grid@lsq-0", "2", RUNNING)
    workspace.job("qat", "3", RUNNING)

    main(["grid@ofq-*", "qat"])

    assert workspace.cancelled == ["1_0", "1_1", "1_2", "3"]


def test_earlier_job_that_still_runs_is_cancelled_too(workspace):
    workspace.job("qat", "1", RUNNING, key="a")
    workspace.job("qat", "2", PENDING, key="b")

    main(["qat"])

    assert workspace.cancelled == ["1", "2"]


def test_dependents_are_named(workspace, capsys):
    teacher = workspace.job("teacher", "1", RUNNING)
    grid = [
        workspace.job(f"grid@{i}", f"2_{i}", State("PENDING", "Dependency"), late=[teacher.name])
        for i in range(3)
    ]
    dependency = State("PENDING", "Dependency")
    workspace.job("tables", "3", dependency, late=[job.name for job in grid])
    workspace.job("full_precision", "4", PENDING)

    main(["teacher"])

    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "SLURM cancels what waits for them, too: grid (3), tables"
    assert workspace.cancelled == ["1"]


def test_many_are_counted(workspace, capsys):
    for number in range(MOST_LINES):
        workspace.job(f"grid@{number}", f"1_{number}", PENDING)
    workspace.job("qat", "2", RUNNING)

    main(["--all"])

    assert capsys.readouterr().out == f"cancelled {MOST_LINES + 1} jobs: grid ({MOST_LINES}), qat\n"


def test_nothing_to_cancel(workspace, capsys):
    job = workspace.job("qat", "1", RUNNING)
    write_json(job.path / "done.json", {"files": {}})
    workspace.job("teacher", "2", State("COMPLETING"))

    assert main(["--all"]) == 0

    assert capsys.readouterr().out == "nothing to cancel: no such job waits or runs\n"
    assert workspace.cancelled == []


def test_nothing_to_cancel_in_an_empty_workspace(workspace, capsys):
    assert main(["--all"]) == 0
    assert "nothing to cancel" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["qat", "--all"]])
def test_either_targets_or_all(workspace, argv, capsys):
    workspace.job("qat", "1", RUNNING)

    with pytest.raises(SystemExit) as end:
        main(argv)

    assert end.value.code == 2
    assert "--all" in capsys.readouterr().err
    assert workspace.cancelled == []


def test_slurm_that_does_not_answer(workspace):
    job = workspace.job("qat", "1", UNKNOWN)

    with pytest.raises(SlurmError, match="SLURM does not answer, nothing was cancelled"):
        main(["qat"])

    assert not reported(job)


def test_refused(workspace):
    job = workspace.job("qat", "1", RUNNING)
    workspace.refused = "scancel: error: Access/permission denied"

    with pytest.raises(SlurmError, match=r"could not cancel qat \(job 1\): .*permission denied"):
        main(["qat"])

    assert not reported(job)


def test_refused_for_a_job_that_has_just_ended(workspace, monkeypatch, capsys):
    job = workspace.job("qat", "1", RUNNING)

    def cancel(executor, ids):
        write_json(job.path / "done.json", {"files": {}})
        return "scancel: error: Invalid job id specified"

    monkeypatch.setattr(slurm_cluster, "cancel", cancel)

    assert main(["qat"]) == 0
    assert "had ended already" in capsys.readouterr().out


def test_job_that_is_being_submitted(workspace, monkeypatch, capsys):
    monkeypatch.setattr("slurm.survey.lost_ids", lambda *_: {})
    workspace.job("qat", submitted=time.time())

    assert main(["qat"]) == 0

    assert "still being submitted" in capsys.readouterr().out
    assert workspace.cancelled == []


# Which jobs there are


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("grid", ["grid@lsq-2-0", "grid@ofq-2-0", "grid@ofq-4-0"]),
        ("grid@ofq-2-0", ["grid@ofq-2-0"]),
        ("grid@ofq-*", ["grid@ofq-2-0", "grid@ofq-4-0"]),
        ("qat", ["qat"]),
        ("gri", []),
        ("GRID", []),
    ],
)
def test_targets(target, meant):
    addresses = ["grid@lsq-2-0", "grid@ofq-2-0", "grid@ofq-4-0", "qat"]

    assert [address for address in addresses if matches(address, target)] == meant


@pytest.mark.parametrize(("target", "hint"), [("grd", "'grid'"), ("grid@ofg-2", "'grid@ofq-2'")])
def test_unknown_target(workspace, target, hint):
    workspace.job("grid@ofq-2", "1", PENDING)

    with pytest.raises(SlurmError, match=f"did you mean {hint}.*stages with jobs: grid"):
        status([target])


def test_unknown_target_without_any_job(workspace):
    with pytest.raises(SlurmError, match="no stage has one yet"):
        status(["grid"])


def test_outside_a_workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SlurmError, match=r"no dvc\.yaml here or above"):
        status([])


# Why


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("Priority", "Priority: others go first"),
        ("Resources", "Resources: waits for free nodes"),
        ("None", "just submitted"),
        ("", "just submitted"),
        ("launch failed requeued held", "scontrol release 7"),
        ("launch_failed_requeued_held", "scontrol release 7"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "ReqNodeNotAvail: a node that it needs is down"),
        ("QOSMaxJobsPerUserLimit", "the QOS lets no more of your jobs run"),
        ("QOSGrpGRES", "QOSGrpGRES: a limit of the QOS"),
        ("AssocGrpCpuLimit", "AssocGrpCpuLimit: a limit of your account"),
        ("SomethingNew", "SomethingNew"),
        ("Dependency", "Dependency: waits for jobs before it"),
        ("DependencyNeverSatisfied", "a job before it failed"),
        ("BeginTime", "BeginTime: may not start yet"),
    ],
)
def test_reasons_of_waiting(workspace, reason, said):
    job = workspace.job("qat", "7")

    assert said in why_waiting(row(job, State("PENDING", reason)), reason)


def test_requeued_job_starts_again_soon(workspace):
    job = workspace.job("qat", "7")
    write_json(job.path / "attempts.json", [attempt("7", 90.0, 80.0)])

    assert "requeued, starts again soon" in why_waiting(row(job, PENDING), "BeginTime")


def test_dependency_names_what_is_not_made_yet(workspace, capsys):
    done = workspace.job("prepare", "1")
    write_json(done.path / "done.json", {"files": {}})
    late = [done.name] + [workspace.job(f"grid@{i}", f"2_{i}", RUNNING).name for i in range(2)]
    workspace.job("tables", "3", State("PENDING", "Dependency"), late=late)

    rows, _ = shown(capsys, "tables")

    assert " ".join(rows[0]) == "tables 3 waiting Dependency: waits for grid"


def test_failure_shows_message_and_last_line(workspace, capsys):
    job = workspace.job("qat", "7", State("FAILED"))
    log = ["Traceback ...", "ValueError: no such thing", "  ", ""]
    write_json(job.path / "failed.json", {"message": "exit status 1", "status": 1, "log": log})

    rows, last = shown(capsys)

    assert " ".join(rows[0]) == "qat 7 failed exit status 1: ValueError: no such thing"
    assert last == "1 failed"


def test_long_failures_are_cut(workspace):
    job = workspace.job("qat", "7")
    write_json(job.path / "failed.json", {"message": "m" * 300 + "\nmore", "log": None})

    text = cells(row(job, None))[-1]

    assert len(text) == 100
    assert text.endswith("m…")


def test_silent_end_has_slurms_reason(workspace, capsys):
    workspace.job("qat", "7", State("OUT_OF_MEMORY", node="n2"))

    rows, _ = shown(capsys)

    assert " ".join(rows[0]) == "qat 7 failed n2 memory ran out: raise memory_gb in the profile"


def test_cancelled_since_another_failed(workspace, capsys):
    first = workspace.job("prepare", "1")
    write_json(first.path / "failed.json", {"message": "m", "log": []})
    second = workspace.job("teacher", "2", State("CANCELLED"), late=[first.name])
    workspace.job("qat", "3", State("CANCELLED"), late=[second.name])

    rows, _ = shown(capsys)

    assert " ".join(rows[1]) == "teacher 2 cancelled by SLURM, since prepare did not succeed"
    assert " ".join(rows[2]) == "qat 3 cancelled by SLURM, since teacher did not succeed"


# The real cluster


@pytest.mark.slurm
def test_real_cluster(cluster, tmp_path, monkeypatch, capsys):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    jobs = Jobs(tmp_path)
    first = cluster.submit("sleep 600", "--job-name=ofq-cancel")
    after = ("--kill-on-invalid-dep=yes", f"--dependency=afterok:{first}")
    array = cluster.submit("true", "--array=0-1", "--job-name=ofq-cancel", *after)
    ids = {"teacher": first, "grid@a": f"{array}_0", "grid@b": f"{array}_1"}
    for number, (stage, job_id) in enumerate(ids.items()):
        late = {"out": "teacher/k"} if number else {}
        task = Task(stage, ["python"], {}, {}, [Input("in", {}, late)], ["out"])
        record = Record(task, str(tmp_path), "", {}, {}, job_id=job_id, submitted=float(number))
        jobs.job(stage, "k").write(record)
    cluster.wait(first, "RUNNING")

    assert main(["teacher"]) == 0

    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"teacher: job {first} cancelled, was running on n")
    assert said[1] == "SLURM cancels what waits for them, too: grid (2)"
    assert cluster.wait(first, "CANCELLED") == cluster.wait(array, "CANCELLED")
    assert [row.state for row in survey(jobs)] == ["cancelled"] * 3
    assert main(["--all"]) == 0
    assert "nothing to cancel" in capsys.readouterr().out
