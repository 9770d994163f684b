"""What cannot work is said before anything is submitted."""

import shutil
import subprocess
import sys

import pytest

from tests.patience import PATIENCE

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


@pytest.fixture
def refused(toy, cluster):
    """`slurm.submit` fails with one message and leaves neither jobs nor records; the message."""

    def check(*words, **extra):
        done = toy.run("python", "-m", "slurm.submit", *words, **extra)
        assert done.code == 1, done.out
        assert "Traceback" not in done.out
        assert cluster.job_ids("ofq-") == []
        assert not list((toy.folder / ".slurm" / "jobs").glob("teacher/*"))
        (message,) = [line for line in done.out.splitlines() if line.startswith("error: ")]
        return message

    return check


def test_unknown_partition(toy, refused):
    toy.profile(resources={"partition": "gpus", "time": "1:00:00"})
    message = refused()
    assert "profile toy asks for stage teacher" in message
    assert "invalid partition" in message.lower()
    assert "--partition=gpus" in message


def test_too_many_gpus(toy, refused):
    toy.profile(
        resources={"workers": 0, "memory_gb": 0.2, "time": "1:00:00"},
        stages={"grid": {"gpus_per_node": 99}},
    )
    message = refused()
    assert "profile toy asks for stage grid" in message
    assert "--gpus-per-node=99" in message


def test_repro_says_it_as_well(toy):
    toy.profile(resources={"partition": "gpus", "time": "1:00:00"})
    done = toy.run("dvc", "repro", "teacher")
    assert done.code != 0
    assert "error: SLURM refuses what profile toy asks for stage teacher" in done.out
    assert "Traceback" not in done.out


def test_controller_down(toy, cluster, refused):
    cluster.control("controller", "stop")
    try:
        done = toy.run("python", "-m", "slurm.submit")
    finally:
        cluster.control("controller", "start")
    assert done.code == 1
    assert "Traceback" not in done.out
    assert "error: SLURM refuses" in done.out or "does not answer" in done.out


def test_unreadable_profile(toy, refused):
    toy.profile_path.write_text("executor: [slurm")
    assert "no valid YAML" in refused()


def test_no_sbatch_on_this_machine(toy, refused, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("git", "sh", "bash"):
        (programs / name).symlink_to(shutil.which(name))
    path = f"{toy.environment['PATH'].split(':')[0]}:{programs}"
    assert "there is no sbatch on this machine" in refused(PATH=path)


def test_a_failing_check_stops_everything(toy):
    toy.set(fails="check")
    done = toy.run("python", "-m", "slurm.submit")
    assert done.code == 1
    assert "error: check failed, nothing was submitted\n" in done.out
    assert done.out.endswith("ValueError: boom in check\n")
    assert toy.ran() == ["check"]


def test_a_folder_that_nodes_do_not_see(toy, cluster, tmp_path):
    """The command runs where the folder is mounted, the nodes where it is not."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    script = (
        f"mount -t tmpfs tmpfs {hidden} && cp -a {toy.folder}/. {hidden}/ && cd {hidden} && "
        f"{sys.executable} -m slurm.submit; status=$?; ls {hidden}/.slurm/jobs; exit $status"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env=toy.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.fail(f"no mount namespace here: {done.stderr}")
    assert done.returncode == 1
    assert f"error: {hidden} is not shared with the nodes" in done.stderr
    assert "teacher" not in done.stdout
    assert cluster.job_ids("ofq-") == []


def test_the_probe_runs_once(toy):
    toy.submit("teacher")
    assert list((toy.folder / ".slurm" / "probe").glob("*.passed"))
    assert not list((toy.folder / ".slurm" / "probe").glob("*.question"))


def test_a_busy_cluster_does_not_hold_up_the_submission(toy, cluster):
    """No node is free for the probe: said, and gone on."""
    toy.profile(probe_seconds=2)
    filling = [cluster.submit("sleep 600", "--exclusive", "--nodes=1") for _ in range(2)]
    for job in filling:
        cluster.wait(job, "RUNNING")
    try:
        said = toy.submit("teacher")
    finally:
        cluster.run("scancel", *filling)
    assert "no node was free within 2 s" in said
    assert "submitted" in said
    toy.repro("teacher")
