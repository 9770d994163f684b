"""Killed, interrupted and damaged on the way: what is there is taken, what is not is made again."""

import os
import shutil
import signal

import pytest

from slurm.collect import collect, take_over
from slurm.ids import lost_ids
from tests.patience import PATIENCE

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

ALL = ["grid@a", "grid@b", "grid@c", "grid@d", "tables", "teacher"]


def test_killed_dvc_attaches_again(toy):
    toy.set(slow={"grid": str(toy.gate)})
    toy.submit()
    process = toy.start("dvc", "repro")
    toy.until(lambda: (toy.folder / "results/teacher/a.txt").exists())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    toy.gate.touch()
    toy.repro()
    assert toy.ran() == ["check", *ALL]


def test_killed_while_collecting(toy):
    """The outputs are there, dvc.lock does not know: they are taken from the job once more."""
    toy.repro("teacher")
    toy.ran()
    lock = toy.folder / "dvc.lock"
    before = lock.read_text()
    toy.submit()
    jobs = toy.jobs()
    toy.until(lambda: all(job.done() is not None or job.retired() for job in jobs))
    toy.ran()
    job = toy.job("grid@a")
    collect(jobs, job, take_over(jobs, job.stage))
    assert lock.read_text() == before
    toy.repro()
    assert toy.ran() == []


def test_an_orphan_leaves_the_outputs_to_the_one_that_came_after(toy):
    """kill -9 of DVC alone: its child still waits for the job, and the next DVC does, too."""
    toy.set(slow={"teacher": str(toy.gate)})
    process = toy.start("dvc", "repro", "teacher")
    attached = toy.folder / ".slurm/attached/teacher"
    toy.until(lambda: attached.exists() and attached.read_text())
    first = attached.read_text()
    os.kill(process.pid, signal.SIGKILL)
    # Reaped, or DVC's lock takes it for alive.
    process.wait()
    second = toy.start("dvc", "repro", "teacher")
    # Empty while it is being written.
    toy.until(lambda: attached.read_text() not in ("", first))
    toy.gate.touch()
    said, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, said
    out, _ = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in out
    # Whoever brings the outputs shows the log.
    assert "teacher works in" in said
    assert "teacher works in" not in out
    assert toy.ran() == ["check", "teacher"]
    assert "up to date" in toy.repro("teacher")


@pytest.mark.parametrize("how", ["changed", "removed"])
def test_a_damaged_result_is_made_again(toy, how):
    toy.submit("teacher")
    job = toy.job("teacher")
    toy.until(lambda: job.done() is not None)
    made = job.work / "results/teacher/a.txt"
    if how == "changed":
        made.write_text("something else")
    else:
        shutil.rmtree(job.work)
    toy.ran()
    said = toy.repro("teacher")
    assert "the result of its job is damaged" in said
    assert toy.ran() == ["teacher"]
    assert toy.text("results/teacher/a.txt").startswith("teacher\none")


def test_a_requeued_job_does_not_need_what_was_collected(toy, cluster):
    """Its inputs were laid out when it first started; the job that made them has gone since."""
    toy.set(slow={"grid": str(toy.gate)})
    toy.submit("grid@a")
    cell = toy.job("grid@a")
    toy.until(lambda: toy.log.exists() and "grid@a" in toy.log.read_text())
    toy.repro("teacher")
    process = toy.start("dvc", "repro", "grid@a")
    teacher = toy.job("teacher")
    toy.until(teacher.retired)
    cluster.run("scontrol", "requeue", cell.record().job_id)
    toy.until(lambda: len(cell.attempts()) == 2)
    toy.gate.touch()
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out
    assert [attempt["how"].split()[0] for attempt in cell.attempts()][-1] == "finished"
    assert len(cell.attempts()) == 2


@pytest.mark.parametrize("way", ["cancel", "leave"])
def test_ctrl_c(toy, cluster, way):
    toy.profile(on_interrupt=way)
    toy.set(slow={"teacher": str(toy.gate)})
    process = toy.start("dvc", "repro", "teacher")
    toy.until(lambda: "teacher" in (toy.log.read_text() if toy.log.exists() else ""))
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    job_id = toy.job("teacher").record().job_id
    if way == "cancel":
        assert f"job {job_id} cancelled" in out
        assert cluster.wait(job_id, {"CANCELLED", "COMPLETED"}) == "CANCELLED"
    else:
        assert f"job {job_id} goes on" in out
    toy.gate.touch()
    toy.ran()
    toy.repro("teacher")
    assert toy.ran() == (["teacher"] if way == "cancel" else [])


def test_garbage_is_collected(toy):
    toy.submit()
    toy.repro()
    toy.set(text="two")
    toy.submit()
    toy.repro()
    toy.set(text="three")
    toy.submit()
    root = toy.folder / ".slurm"
    assert not [job for job in toy.jobs() if job.retired() and job.work.exists()]
    assert len(list((root / "snapshots").iterdir())) == 1
    left = {path.name for path in (root / "launches").iterdir()}
    assert left == {job.record().launch for job in toy.jobs()} - {""}
    toy.repro()


def test_the_lost_id_of_a_killed_submit_is_found(toy):
    """`slurm.submit` was killed between sbatch and writing the id down."""
    toy.set(slow={"teacher": str(toy.gate)})
    toy.submit()
    for stage in ("teacher", "grid@c"):
        job = toy.job(stage)
        record = job.record()
        known, record.job_id = record.job_id, ""
        job.write(record)
        assert lost_ids(toy.jobs(), record.launch)[job.name] == known
    toy.submit()
    toy.gate.touch()
    toy.repro()
    assert toy.ran() == ["check", *ALL]


def test_experiments(toy):
    """In the workspace, and in a temporary copy of it that DVC removes afterwards."""
    toy.repro()
    toy.well("git", "add", "-A")
    toy.well("git", "commit", "-qm", "Results")
    toy.ran()
    toy.well("dvc", "exp", "run", "-S", "text=two", "teacher")
    assert toy.ran() == ["check", "teacher"]
    assert toy.text("results/teacher/a.txt").startswith("teacher\ntwo")
    toy.well("dvc", "exp", "run", "--temp", "-S", "text=three", "teacher")
    assert toy.ran() == ["check", "teacher"]
    assert toy.text("results/teacher/a.txt").startswith("teacher\ntwo")
    assert "three" in toy.well("dvc", "exp", "show", "--csv")
