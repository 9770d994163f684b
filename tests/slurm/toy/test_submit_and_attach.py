"""Submitting ahead and attaching on a real cluster: every stage runs once, whatever happens."""

import pytest

from tests.patience import PATIENCE

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

ALL = ["grid@a", "grid@b", "grid@c", "grid@d", "tables", "teacher"]


def test_submit_then_attach(toy):
    said = toy.submit()
    assert "submitted" in said
    toy.repro()
    # `check` runs at once when submitting; the result is taken like that of a job.
    assert toy.ran() == ["check", *ALL]
    assert toy.text("results/study/b/a.txt") == "grid@b\none\nteacher\none\ncheck\none\n\n\n"
    assert toy.text("tables/rendered/a.txt").count("teacher") == 4
    assert "up to date" in toy.repro()
    assert "nothing to submit" in toy.submit()
    assert toy.ran() == []


def test_levels_go_out_as_arrays_that_wait_for_each_other(toy):
    said = toy.submit().splitlines()
    rows = {line.split()[0]: line.split() for line in said if "submitted" in line}
    assert rows["grid"][1] == "4"
    assert rows["grid"][-2] == "teacher"
    assert rows["tables"][-2] == "grid"
    ids = {toy.job(f"grid@{cell}").record().job_id for cell in "abcd"}
    array = rows["grid"][2]
    assert ids == {f"{array}_{index}" for index in range(4)}


def test_submitting_twice_submits_nothing_twice(toy, cluster):
    toy.set(slow={"teacher": str(toy.gate)})
    toy.submit()
    first = set(cluster.job_ids("ofq-"))
    said = toy.submit()
    assert "has a job" in said
    assert not set(cluster.job_ids("ofq-")) - first
    toy.gate.touch()
    toy.repro()
    assert toy.ran() == ["check", *ALL]


def test_two_at_once_submit_nothing_twice(toy):
    both = [toy.start("python", "-m", "slurm.submit") for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    toy.repro()
    assert [stage for stage in toy.ran() if stage != "check"] == ALL


def test_a_dry_run_submits_nothing(toy, cluster):
    said = toy.submit("--dry-run")
    assert said.count("would be submitted") == 3
    assert cluster.job_ids("ofq-") == []
    assert not list((toy.folder / ".slurm" / "jobs").glob("grid*"))


def test_targets(toy):
    toy.submit("grid@b")
    toy.repro("grid@b")
    assert toy.ran() == ["check", "grid@b", "teacher"]


def test_repro_alone_submits_each_stage(toy):
    said = toy.repro()
    assert "grid@c: submitted as job" in said
    assert toy.ran() == ["check", *ALL]
    assert toy.job("grid@c").attempts()[0]["how"] == "finished"


def test_the_result_is_that_of_a_run_in_place(toy, tmp_path):
    toy.submit()
    toy.repro()
    on_cluster = toy.text("dvc.lock")
    toy.well("git", "clean", "-fdqx")
    toy.repro(OFQ_PROFILE="local")
    assert toy.text("dvc.lock") == on_cluster


def test_the_run_cache_needs_no_job(toy):
    toy.submit()
    toy.repro()
    toy.set(text="two")
    toy.submit()
    toy.repro()
    toy.ran()
    toy.set(text="one")
    assert "from the run cache" in toy.submit()
    toy.repro()
    # Stages that run where the command is typed may do so again; no job does.
    assert set(toy.ran()) <= {"check"}
    assert toy.text("results/study/a/a.txt").startswith("grid@a\none")


def test_only_what_changed_is_submitted(toy):
    toy.submit()
    toy.repro()
    toy.ran()
    # Only the cells read it.
    toy.set(fails="no stage of this name")
    said = toy.submit()
    assert "teacher  " not in said.splitlines()[1]
    toy.repro()
    # What the cells make is as before, so DVC need not render the tables; a job had been sent.
    assert [stage for stage in toy.ran() if stage != "tables"] == ALL[:4]


def test_a_failing_stage_shows_its_traceback_and_the_others_go_on(toy):
    toy.set(fails="grid@b")
    toy.submit()
    done = toy.run("dvc", "repro", "-k")
    assert done.code != 0
    assert "ValueError: boom in grid@b" in done.out
    assert f"log: {toy.job('grid@b').log}" in done.out
    assert toy.ran() == ["check", "grid@a", "grid@b", "grid@c", "grid@d", "teacher"]
    assert (toy.folder / "results/study/d/a.txt").exists()
    assert not (toy.folder / "results/study/b").exists()
    # Reported once; then it is tried again, and the cells that were done are not.
    done = toy.run("dvc", "repro")
    assert done.code != 0
    assert "grid@b: submitted as job" in done.out
    assert toy.ran() == ["grid@b"]
    toy.set(fails="nothing")
    toy.repro()
    assert toy.ran() == ["grid@a", "grid@b", "grid@c", "grid@d", "tables"]


def test_what_depends_on_a_failure_is_cancelled_and_tried_again(toy, cluster):
    toy.set(fails="teacher")
    toy.submit()
    done = toy.run("dvc", "repro")
    assert "boom in teacher" in done.out
    cluster.wait(toy.job("tables").record().job_id, "CANCELLED")
    toy.set(fails="nothing")
    toy.repro()
    assert toy.ran() == ["check", *ALL, "teacher"]


def test_submitting_again_after_a_failure(toy, cluster):
    """The failed job goes on in its folder, and what was cancelled with it waits for it anew."""
    toy.set(fails="teacher")
    toy.submit()
    cluster.wait(toy.job("tables").record().job_id, "CANCELLED")
    failed = toy.job("teacher")
    (failed.work / "checkpoint").write_text("of the first attempt")
    toy.set(fails="nothing")
    toy.submit()
    assert [job.path for job in toy.jobs().of_stage("teacher")] == [failed.path]
    toy.repro()
    assert (failed.work / "checkpoint").exists() or failed.retired()
    assert [attempt["how"] for attempt in failed.attempts()] == [
        "failed: exit status 1",
        "finished",
    ]
    # params.yaml was edited, so the stage that runs here did so once more, in the workspace.
    assert toy.ran() == ["check", "check", *ALL, "teacher"]


def test_stages_that_run_here_hold_up_what_needs_them(toy):
    toy.profile(run_here=["check", "tables"])
    said = toy.submit()
    assert [line.split()[-1] for line in said.splitlines() if line.startswith("tables")] == [
        "later"
    ]
    toy.repro()
    assert toy.ran() == ["check", *ALL]
    assert not toy.jobs().of_stage("tables")


def test_forcing_a_stage_runs_it_again(toy):
    toy.repro("teacher")
    toy.ran()
    toy.repro("-f", "-s", "teacher")
    assert toy.ran() == ["teacher"]


def test_edits_do_not_reach_jobs_that_wait(toy):
    """Code, parameters and inputs are those of the moment of submission."""
    toy.set(slow={"teacher": str(toy.gate)})
    toy.submit()
    work = toy.folder / "work.py"
    before = work.read_text()
    work.write_text("raise SystemExit('edited')\n")
    toy.set(text="edited")
    toy.gate.touch()
    jobs = toy.jobs()
    toy.until(lambda: all(job.done() or job.stage == "check" for job in jobs))
    work.write_text(before)
    toy.set(text="one")
    toy.ran()
    toy.repro()
    # Stages that run where the command is typed may do so again; no job does.
    assert set(toy.ran()) <= {"check"}
    assert toy.text("results/study/a/a.txt").startswith("grid@a\none")


def test_edits_while_dvc_waits_are_not_taken_for_what_was_run(toy):
    """DVC hashes dependencies after the command: it would record the edit with the old result."""
    toy.set(slow={"teacher": str(toy.gate)})
    process = toy.start("dvc", "repro", "teacher")
    toy.until(lambda: "teacher" in (toy.log.read_text() if toy.log.exists() else ""))
    toy.set(text="edited")
    toy.gate.touch()
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "changed while its job ran" in out
    assert not (toy.folder / "results/teacher").exists()
    toy.set(text="one")
    toy.ran()
    toy.repro("teacher")
    assert "teacher" not in toy.ran(), "with the change undone the result counts"
    toy.set(text="edited", slow={})
    toy.repro("teacher")
    assert toy.text("results/teacher/a.txt").startswith("teacher\nedited")
