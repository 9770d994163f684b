"""The cluster itself: what the tests that run jobs on it take for granted."""

import pytest

pytestmark = pytest.mark.slurm

# Goes on until SIGUSR2 comes, and says so. The handler waits for the end of the sleep.
UNTIL_USR2 = "trap 'echo warned; exit 0' USR2; while :; do sleep 0.2; done"
WHOLE_CLUSTER = ("--nodes=2", "--exclusive")


def test_job_runs(cluster, tmp_path):
    job = cluster.submit("echo on $SLURMD_NODENAME", f"--output={tmp_path / 'out'}")

    assert cluster.wait(job, "COMPLETED") == "COMPLETED"
    assert (tmp_path / "out").read_text() in ("on n1\n", "on n2\n")


def test_failed_job_is_told_from_a_good_one(cluster):
    job = cluster.submit("exit 3")

    cluster.wait(job, "FAILED")


def test_array_runs_each_task(cluster, tmp_path):
    array = cluster.submit("echo $SLURM_ARRAY_TASK_ID", "--array=0-4", f"--output={tmp_path}/%a")

    cluster.wait(array, "COMPLETED")

    assert [(tmp_path / str(task)).read_text() for task in range(5)] == [f"{n}\n" for n in range(5)]


def test_state_of_an_array_whose_tasks_differ(cluster):
    array = cluster.submit("exit $SLURM_ARRAY_TASK_ID", "--array=0-1")

    cluster.wait(array, {"COMPLETED", "FAILED"})

    assert cluster.state(array) == "COMPLETED+FAILED"
    assert cluster.state(f"{array}_1") == "FAILED"


def test_fake_gpus_are_handed_out(cluster, tmp_path):
    job = cluster.submit("echo $CUDA_VISIBLE_DEVICES", "--gres=gpu:2", f"--output={tmp_path}/out")

    cluster.wait(job, "COMPLETED")

    assert (tmp_path / "out").read_text() in ("0,1\n", "2,3\n")


def test_without_gres_no_gpu_is_visible(cluster, tmp_path):
    job = cluster.submit("echo [$CUDA_VISIBLE_DEVICES]", f"--output={tmp_path}/out")

    cluster.wait(job, "COMPLETED")

    assert (tmp_path / "out").read_text() == "[]\n"


def test_two_nodes(cluster, tmp_path):
    job = cluster.submit("srun printenv SLURMD_NODENAME", "--nodes=2", f"--output={tmp_path}/out")

    cluster.wait(job, "COMPLETED")

    assert sorted((tmp_path / "out").read_text().split()) == ["n1", "n2"]


def test_unknown_partition_is_refused(cluster):
    with pytest.raises(RuntimeError, match="invalid partition specified: nowhere"):
        cluster.submit("true", "--partition=nowhere")


def test_more_gpus_than_a_node_has_are_refused(cluster):
    with pytest.raises(RuntimeError, match="Requested node configuration is not available"):
        cluster.submit("true", "--gres=gpu:99")


def test_sacct_knows_ended_jobs(cluster):
    job = cluster.submit("true", "--job-name=counted")
    cluster.wait(job, "COMPLETED")

    asked = ("sacct", "-n", "-P", "-X", "-o", "JobName,State", "-j", job)

    # Accounting hears of the end up to a second after the controller.
    for _ in range(50):
        if (told := cluster.run(*asked).strip()) == "counted|COMPLETED":
            break
        cluster.run("sleep", 0.1)
    assert told == "counted|COMPLETED"


def test_cancel_all_leaves_no_job(cluster):
    names = ("one", "other")
    one, other = (cluster.submit("sleep 600", f"--job-name=clean-{name}") for name in names)
    cluster.wait(one, "RUNNING")
    assert cluster.job_ids("clean-") == [one, other]
    assert cluster.job_ids("clean-other") == [other]

    cluster.cancel_all()

    assert cluster.job_ids() == []
    assert cluster.state(one) == cluster.state(other) == "CANCELLED"


LEFT: list[str] = []


def test_jobs_left_behind(cluster):
    LEFT.append(cluster.submit("sleep 600", "--job-name=left-behind"))
    cluster.wait(LEFT[0], "RUNNING")


def test_jobs_of_the_test_before_are_gone(cluster):
    if not LEFT:
        pytest.skip("it was not run")
    assert cluster.state(LEFT[0]) == "CANCELLED"


def test_waiting_for_a_state_that_does_not_come(cluster):
    job = cluster.submit("true", "--begin=now+1hour")

    with pytest.raises(TimeoutError, match="is PENDING, not"):
        cluster.wait(job, "RUNNING", seconds=0.5)


def test_job_over_its_memory_is_killed(cluster):
    job = cluster.submit("python3 -c 'x = b\"1\" * 400_000_000; import time; time.sleep(600)'")

    cluster.wait(job, ("OUT_OF_MEMORY", "FAILED", "CANCELLED"))


@pytest.mark.parametrize("switch", ["on", "off"])
def test_user_signal_at_preemption(cluster, tmp_path, switch):
    cluster.control("user-signal", switch)
    options = (*WHOLE_CLUSTER, "--signal=B:USR2@10", f"--output={tmp_path}/out")
    preempted = cluster.submit(UNTIL_USR2, *options)
    cluster.wait(preempted, "RUNNING")

    preempting = cluster.submit("true", "--partition=high", *WHOLE_CLUSTER)
    if switch == "on":
        cluster.wait(preempting, "COMPLETED")
        # SLURM may add a complaint that the job was gone before its other signals came.
        assert (tmp_path / "out").read_text().startswith("warned\n")
    else:
        # It does not end of a warning, but when its grace of 20 s is over.
        cluster.wait(preempting, "COMPLETED")
        assert "warned" not in (tmp_path / "out").read_text()


def test_preempted_job_without_grace_runs_again(cluster, tmp_path):
    """After 8 s, where SLURM alone would have it wait for 120 s."""
    again = "if [ $SLURM_RESTART_COUNT ]; then echo run $SLURM_RESTART_COUNT; else sleep 600; fi"
    options = ("--partition=plain", *WHOLE_CLUSTER, f"--output={tmp_path}/out")
    preempted = cluster.submit(again, *options)
    cluster.wait(preempted, "RUNNING")

    preempting = cluster.submit("true", "--partition=high", *WHOLE_CLUSTER)
    cluster.wait(preempting, "COMPLETED")
    cluster.wait(preempted, "COMPLETED")

    assert (tmp_path / "out").read_text() == "run 1\n"


def test_job_of_a_failed_node_is_requeued(cluster):
    job = cluster.submit("sleep 600", "--nodelist=n1")
    cluster.wait(job, "RUNNING")

    cluster.control("node-fail", "n1")
    cluster.wait(job, "PENDING")
    cluster.control("node-resume", "n1")

    cluster.wait(job, "RUNNING")


def test_job_outlives_the_controller(cluster, tmp_path):
    gate = tmp_path / "gate"
    job = cluster.submit(f"while [ ! -e {gate} ]; do sleep 0.1; done")
    cluster.wait(job, "RUNNING")

    cluster.control("controller", "stop")
    gate.touch()
    cluster.control("controller", "start")

    cluster.wait(job, "COMPLETED")


def test_without_accounting_sacct_fails(cluster):
    cluster.control("accounting", "stop")

    with pytest.raises(RuntimeError, match="Problem talking to the database"):
        cluster.run("sacct")

    cluster.control("accounting", "start")
    cluster.run("sacct")


def test_up_mends_what_was_broken(cluster):
    cluster.control("user-signal", "off")
    cluster.control("node-fail", "n2")
    with pytest.raises(RuntimeError, match="down n2"):
        cluster.control("status")

    cluster.control("up")

    cluster.control("status")
