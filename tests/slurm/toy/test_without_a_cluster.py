"""submitit's local and debug executors: the same jobs, as processes of this machine."""

import os
import signal

import psutil
import pytest

from slurm import pipeline
from slurm.errors import SlurmError
from tests.patience import PATIENCE


@pytest.mark.parametrize(
    "error", [RuntimeError("could not determine the home directory"), KeyError("uid not found: 9")]
)
def test_a_user_without_home_or_name(error, tmp_path, monkeypatch):
    """DVC does without neither, and says so with a stack trace."""

    def refuse(folder):
        raise error

    monkeypatch.setattr(pipeline, "Repo", refuse)
    with pytest.raises(SlurmError, match=r"DVC cannot start here \(.*\): set HOME .* and USER to"):
        pipeline.Pipeline(tmp_path)


def test_local_executor(local_toy):
    """No job waits for another there: the first level is sent, `dvc repro` sends the others."""
    said = local_toy.submit()
    assert "later" in said
    local_toy.repro()
    assert local_toy.ran() == ["check", "grid@a", "grid@b", "grid@c", "grid@d", "tables", "teacher"]
    assert local_toy.text("results/study/b/a.txt") == "grid@b\none\nteacher\none\ncheck\none\n\n\n"
    assert local_toy.job("grid@b").attempts()[0]["how"] == "finished"


def test_local_failure(local_toy):
    local_toy.set(fails="grid@b")
    done = local_toy.run("dvc", "repro", "-k")
    assert done.code != 0
    assert "ValueError: boom in grid@b" in done.out
    assert "failed: exit status 1" in done.out
    assert (local_toy.folder / "results/study/c/a.txt").exists()


def test_local_requeue(local_toy):
    """The signal before a time limit: saved, requeued by submitit, finished in a second attempt."""
    local_toy.set(slow={"teacher": str(local_toy.gate)})
    local_toy.submit()
    started = local_toy.log
    local_toy.until(lambda: started.exists() and "teacher" in started.read_text())
    job = local_toy.job("teacher")
    # The controller's only child is the task, which gets the signal.
    (task,) = psutil.Process(int(job.record().job_id)).children()
    task.send_signal(signal.SIGUSR2)
    local_toy.until(lambda: len(job.attempts()) == 2)
    local_toy.gate.touch()
    local_toy.until(lambda: job.done() is not None)
    first, second = job.attempts()
    assert first["how"] == "told to save, stopped and requeued"
    assert second["how"] == "finished"
    local_toy.repro()
    assert local_toy.ran().count("teacher") == 2


def test_local_ctrl_c(local_toy):
    local_toy.set(slow={"teacher": 300})
    process = local_toy.start("dvc", "repro", "teacher")
    local_toy.until(lambda: local_toy.log.exists() and "teacher" in local_toy.log.read_text())
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE)
    job_id = local_toy.job("teacher").record().job_id
    assert f"job {job_id} cancelled" in out
    local_toy.until(lambda: not os.path.exists(f"/proc/{job_id}/cmdline"))


def test_local_cancel_command(local_toy):
    local_toy.set(slow={"teacher": 300})
    local_toy.submit("teacher")
    local_toy.until(lambda: local_toy.log.exists() and "teacher" in local_toy.log.read_text())
    job_id = local_toy.job("teacher").record().job_id
    assert f"job {job_id} cancelled" in local_toy.well("python", "-m", "slurm.cancel", "teacher")
    local_toy.until(lambda: not os.path.exists(f"/proc/{job_id}/cmdline"))


def test_debug_executor(toy):
    toy.profile(executor="debug")
    toy.repro()
    assert toy.ran() == ["check", "grid@a", "grid@b", "grid@c", "grid@d", "tables", "teacher"]
    assert toy.job("teacher").attempts()[0]["how"] == "finished"


def test_in_place(toy):
    toy.repro(OFQ_PROFILE="local")
    assert not (toy.folder / ".slurm").exists()
    done = toy.run("python", "-m", "slurm.submit", OFQ_PROFILE="local")
    assert done.code == 1
    assert done.out.startswith("error: profile local has no cluster (executor in_place)")


def test_the_same_lock_file_either_way(local_toy):
    local_toy.submit()
    local_toy.repro()
    lock = local_toy.text("dvc.lock")
    local_toy.well("git", "clean", "-fdqx")
    local_toy.repro(OFQ_PROFILE="local")
    assert local_toy.text("dvc.lock") == lock


@pytest.mark.parametrize("value", ["nowhere", "./nowhere.yaml"])
def test_unknown_profile(toy, value):
    done = toy.run("dvc", "repro", OFQ_PROFILE=value)
    assert done.code != 0
    assert f"error: OFQ_PROFILE = {value!r}: there is no such" in done.out
    assert toy.ran() == []
