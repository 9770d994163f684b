"""A cell that trains in two processes, one on each node."""

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


def test_user_signal_and_requeue(study, reference, reference_of_two, same_run, cluster):
    # Both nodes are this machine.
    study.profile({"GLOO_SOCKET_IFNAME": "lo"}, nodes=2, tasks_per_node=1)
    study.hold_at(10)
    following = study.start("dvc", "repro", study.CELL)
    first = study.trains(1, epoch=10)
    study.hold_at(study.CGA)
    cluster.run("scancel", "--signal=USR2", study.id)
    second = study.trains(2, epoch=study.CGA)
    cluster.run("scontrol", "requeue", study.id)
    study.stopped(2)
    study.let_go()
    assert following.ends() == 0, following.out
    same_run(study, reference_of_two)
    environment = study.read("env.json")
    assert environment["processes"] == 2
    assert [attempt["tasks"] for attempt in environment["attempts"]] == [2, 2, 2]
    assert environment["attempts"][0]["nodes"] == "n[1-2]"
    assert study.told() == [study.SAVED, study.STOPPED, "running"]
    resumed = study.went_on()
    assert resumed[0] >= first - 1
    assert resumed[1] >= second - 1
    # One process and two add in another order, and a code that flips for it moves a loss of so few
    # images by some percent. Losses that are added up wrongly over processes are half or twice it;
    # tests/training/test_split_batch.py compares exactly.
    alone = reference.history()[0]
    assert float(study.history()[0]["train_loss"]) == pytest.approx(
        float(alone["train_loss"]), rel=0.1
    )
