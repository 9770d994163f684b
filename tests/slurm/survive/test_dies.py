"""What ends a job for good: `dvc repro` says so by itself, the next one goes on."""

import os
import signal

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

OUT_OF_MEMORY = "failed: killed (SIGKILL): most often memory ran out"


def test_killed_and_cancelled_and_out_of_memory(study, reference, same_run, cluster):
    following = begin(study, 1, epoch=10)
    (stage,) = (pid for pid, words in study.processes().items() if "pipelines.grid" in words)
    said = reported(study, following, lambda: os.kill(stage, signal.SIGKILL))
    assert "killed (SIGKILL): most often memory ran out" in said

    following = begin(study, 2, epoch=30)
    (worker,) = study.workers()
    said = reported(study, following, lambda: os.kill(worker, signal.SIGKILL))
    assert "killed without a word" in said
    # No stage goes on without a job, in a folder that the next one will write to.
    study.until(lambda: not study.processes())

    following = begin(study, 3, epoch=study.CGA)
    cluster.control("accounting", "stop")
    try:
        said = reported(study, following, lambda: cluster.run("scancel", study.id))
    finally:
        cluster.control("accounting", "start")
    assert "it was cancelled" in said

    following = begin(study, 4, epoch=study.CGA + 10)
    said = reported(study, following, study.eat.touch)
    assert "memory ran out" in said
    # More of it makes nothing stale, nor forgets the checkpoint.
    study.profile(memory_gb=2)
    study.let_go()
    following = study.start("dvc", "repro", study.CELL)
    assert following.ends() == 0, following.out

    same_run(study, reference)
    told = study.told()
    assert told[:3] == [OUT_OF_MEMORY, study.KILLED, study.STOPPED]
    assert told[3] in (OUT_OF_MEMORY, study.KILLED)
    assert told[4] == "running"
    ids = [attempt["job"] for attempt in study.attempts]
    assert len(set(ids)) == len(ids) == 5
    resumed = study.went_on()
    assert len(resumed) == 4
    assert resumed == sorted(resumed)
    assert resumed[0] > 0
    assert resumed[2] >= study.CGA - 1


def begin(study, attempt, epoch):
    """`dvc repro` in the background, with its job waiting in this epoch with a checkpoint."""
    study.hold_at(epoch)
    following = study.start("dvc", "repro", study.CELL)
    study.trains(attempt, epoch)
    study.saved()
    return following


def reported(study, following, disturb):
    """What `dvc repro` says after that; it fails and tells where the log is.

    Nothing else would end it: the stage waits for the test.
    """
    assert following.runs()
    disturb()
    assert following.ends() != 0
    assert f"{study.CELL}: job {study.id} failed" in following.out
    assert str(study.job.log) in following.out
    return following.out
