"""What SLURM does to a job that it then starts again: the result is that of an undisturbed run.

`dvc repro` waits for the job all along and ends well.
"""

import pickle
from datetime import UTC, datetime

import pytest

from slurm.jobs import Jobs

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


def test_time_limit(study, reference, same_run, cluster):
    # The process that reads images gets the signal, too.
    study.profile(signal_delay_seconds=70, workers=1)
    study.hold_at(1)
    study.well("python", "-m", "slurm.submit", study.CELL)
    following = study.start("dvc", "repro", study.CELL)
    study.trains(1)
    study.saved()
    # SLURM tells it 70 to 100 s before its time is up, which counts from its start.
    began = datetime.fromisoformat(study.attempts[0]["began"])
    minutes = int((datetime.now(UTC) - began).total_seconds() / 60) + 2
    cluster.run("scontrol", "update", f"jobid={study.id}", f"timelimit={minutes}")
    assert study.stopped(1) == study.SAVED
    # The rest in one go.
    study.let_go()
    cluster.run("scontrol", "update", f"jobid={study.id}", "timelimit=60")
    assert following.ends() == 0, following.out
    same_run(study, reference)
    assert study.told() == [study.SAVED, "running"]
    assert study.went_on()[0] > 0


@pytest.mark.parametrize("partition", ["main", "plain"])
def test_preemption_with_and_without_user_signal(study, reference, same_run, cluster, partition):
    study.profile(partition=partition)
    study.hold_at(10)
    following = study.start("dvc", "repro", study.CELL)
    first = study.trains(1, epoch=10)
    preempt(cluster, study)
    told = study.stopped(1)
    study.hold_at(study.CGA)
    second = study.trains(2, epoch=study.CGA)
    try:
        cluster.control("user-signal", "off")
        preempt(cluster, study)
        untold = study.stopped(2)
    finally:
        cluster.control("user-signal", "on")
    study.let_go()
    assert following.ends() == 0, following.out
    same_run(study, reference)
    # Without grace SLURM sends SIGTERM along with the signal, and either may come first.
    assert told == study.SAVED if partition == "main" else told in (study.SAVED, study.STOPPED)
    assert untold == study.STOPPED
    assert study.told() == [told, untold, "running"]
    resumed = study.went_on()
    assert resumed[0] >= first - 1
    assert resumed[1] >= second - 1
    assert len(resumed) == 2


def preempt(cluster, study):
    """Have a more important job take the node."""
    node = study.attempts[-1]["nodes"]
    words = ("--partition=high", f"--nodelist={node}", "--exclusive", "--time=1")
    cluster.submit("sleep 1", *words)


def test_requeue_and_a_cluster_that_does_not_answer(study, reference, same_run, cluster):
    # Training must outlast the controller's absence.
    study.hold_at(10)
    following = study.start("dvc", "repro", study.CELL)
    first = study.trains(1, epoch=10)
    study.hold_at(study.CGA)
    cluster.run("scontrol", "requeue", study.id)
    study.trains(2)
    cluster.control("controller", "stop")
    study.until(lambda: "SLURM does not answer" in following.out)
    assert following.runs()
    cluster.control("controller", "start")
    # From here on only squeue knows how the job ends.
    cluster.control("accounting", "stop")
    try:
        second = study.trains(2, epoch=study.CGA)
        cluster.run("scontrol", "requeue", study.id)
        study.stopped(2)
        study.let_go()
        assert following.ends() == 0, following.out
    finally:
        cluster.control("accounting", "start")
    same_run(study, reference)
    assert study.told() == [study.STOPPED, study.STOPPED, "running"]
    resumed = study.went_on()
    assert resumed[0] >= first - 1
    assert resumed[1] >= second - 1
    assert len(resumed) == 2


def test_node_failure(study, reference, same_run, cluster):
    study.hold_at(study.CGA)
    study.well("python", "-m", "slurm.submit", study.CELL)
    following = study.start("dvc", "repro", study.CELL)
    epoch = study.trains(1, epoch=study.CGA)
    study.saved()
    # As if an earlier cluster had given this id to another job: submitit names its files so.
    for launch in (Jobs(study.folder).root / "launches").glob("*"):
        (launch / f"{study.id}_0_result.pkl").write_bytes(pickle.dumps(("success", "another's")))
    node = study.attempts[0]["nodes"]
    cluster.control("node-fail", node)
    try:
        study.stopped(1)
        study.let_go()
        assert following.ends() == 0, following.out
    finally:
        cluster.control("node-resume", node)
    # Accounting has it as NODE_FAIL for a while.
    assert "failed" not in following.out
    same_run(study, reference)
    assert len(study.told()) == 2
    assert study.told()[0] in (study.STOPPED, study.KILLED)
    assert study.attempts[1]["nodes"] != node
    assert study.attempts[0]["job"] == study.attempts[1]["job"]
    assert len(study.went_on()) == 1
    assert study.went_on()[0] > 0
    assert study.went_on()[0] >= epoch - 1 or study.told()[0] == study.KILLED
