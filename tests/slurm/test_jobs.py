"""Records of jobs: which one did what is asked for, what it takes along, what can go."""

import json
import multiprocessing
import os
import shutil
import subprocess

import pytest

from slurm import garbage
from slurm.collect import DamagedError, NotOwnerError, collect, take_over
from slurm.contents import list_path, md5_file
from slurm.errors import SlurmError
from slurm.jobs import Input, Job, Jobs, Record, Task, exclusive, make_private
from slurm.layout import StageError, stage_inputs
from slurm.snapshot import check_snapshot, lay_out, snapshot_key, take_snapshot
from slurm.submit import locked
from tests.patience import PATIENCE

# What a folder `tables` with `code` in code.py hashes to.
SNAPSHOT = "e71306c8121ca85b9dd1"
TEACHER, WEIGHTS = "results/teacher", "results/teacher/teacher.pt"


@pytest.fixture
def jobs(tmp_path):
    jobs = Jobs(tmp_path / "work")
    (snapshot_of(jobs) / "tables").mkdir(parents=True)
    (snapshot_of(jobs) / "tables" / "code.py").write_text("code")
    assert snapshot_key(snapshot_of(jobs)) == SNAPSHOT
    return jobs


def snapshot_of(jobs):
    return jobs.root / "snapshots" / SNAPSHOT


def ask(jobs, task, **changes):
    """A job that was asked for."""
    job = jobs.job(task.stage, task.key())
    job.write(
        Record(task, str(jobs.workspace), SNAPSHOT, {}, {}, job_id="1", submitted=1.0, **changes)
    )
    return job


def finish(job, **files):
    """A job that made files; names with two underscores for a slash."""
    made = {}
    for name, text in files.items():
        path = job.work / name.replace("__", "/").replace("_pt", ".pt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        made[path.relative_to(job.work).as_posix()] = md5_file(path)
    (job.path / "done.json").write_text(json.dumps({"files": made}))


def teacher_task(text="one"):
    return Task("teacher", ["t"], {"code.py": text}, {}, [], [TEACHER])


def late_cell(teacher):
    item = Input(WEIGHTS, {}, {TEACHER: teacher.name})
    return Task("grid@a", ["c"], {}, {"params.yaml": {"bits": 2}}, [item], ["results/a"])


def known_cell(md5):
    item = Input(WEIGHTS, {WEIGHTS: md5})
    return Task("grid@a", ["c"], {}, {"params.yaml": {"bits": 2}}, [item], ["results/a"])


def test_records_survive_the_way_through_a_file(jobs):
    teacher = ask(jobs, teacher_task())
    task = late_cell(teacher)
    assert ask(jobs, task).record().task == task


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"task": {}}', '{"task": 3}'])
def test_a_record_of_another_version_is_none(jobs, content):
    job = ask(jobs, teacher_task())
    (job.path / "job.json").write_text(content)
    assert job.record() is None
    assert jobs.find(teacher_task()) is None


def test_the_key_does_not_ask_who_knows_a_hash(jobs):
    """DVC's hash of a dependency is one whether or not the files behind it are listed."""
    listed = known_cell("0" * 32)
    bare = Task("grid@a", ["c"], {WEIGHTS: "0" * 32}, listed.params, [], ["results/a"])
    assert listed.key() == bare.key()


@pytest.mark.parametrize("change", ["command", "code", "params", "outs"])
def test_the_key_follows_all_that_decides(change):
    task = Task("s", ["c"], {"a": "1"}, {"params.yaml": {"x": 1}}, [], ["o"])
    others = {
        "command": Task("s", ["d"], task.code, task.params, [], task.outs),
        "code": Task("s", ["c"], {"a": "2"}, task.params, [], task.outs),
        "params": Task("s", ["c"], task.code, {"params.yaml": {"x": 2}}, [], task.outs),
        "outs": Task("s", ["c"], task.code, task.params, [], ["p"]),
    }
    assert others[change].key() != task.key()


def test_a_late_job_is_found_by_what_it_took(jobs):
    teacher = ask(jobs, teacher_task())
    cell = ask(jobs, late_cell(teacher))
    finish(teacher, results__teacher__teacher_pt="weights")
    md5 = teacher.done()[WEIGHTS]
    assert jobs.find(known_cell(md5)).path == cell.path
    assert jobs.find(known_cell("0" * 32)) is None


def test_another_teacher_of_the_same_job_is_not_taken_for_the_first(jobs):
    """`dvc repro -f teacher` on another machine: the finished cell is a student of the old one."""
    teacher = ask(jobs, teacher_task())
    cell = ask(jobs, late_cell(teacher))
    finish(teacher, results__teacher__teacher_pt="first")
    first = teacher.done()[WEIGHTS]
    stage_inputs(cell, cell.record())
    finish(cell, results__a__student_pt="student of the first")
    finish(teacher, results__teacher__teacher_pt="second")
    second = teacher.done()[WEIGHTS]
    assert jobs.find(known_cell(first)).path == cell.path
    assert jobs.find(known_cell(second)) is None
    assert jobs.find(late_cell(teacher)) is None


def test_a_second_start_does_not_need_the_job_that_made_its_inputs(jobs):
    teacher = ask(jobs, teacher_task())
    cell = ask(jobs, late_cell(teacher))
    finish(teacher, results__teacher__teacher_pt="weights")
    stage_inputs(cell, cell.record())
    (cell.work / ".partial").mkdir()
    garbage.retire(teacher)
    stage_inputs(cell, cell.record())
    assert (cell.work / WEIGHTS).read_text() == "weights"
    assert (cell.work / ".partial").exists()


def test_a_first_start_without_its_inputs_says_so(jobs):
    teacher = ask(jobs, teacher_task())
    cell = ask(jobs, late_cell(teacher))
    with pytest.raises(StageError, match="which makes results/teacher, has no result"):
        stage_inputs(cell, cell.record())
    missing = ask(jobs, known_cell("0" * 32))
    with pytest.raises(StageError, match=r"the input results/teacher/teacher.pt is gone"):
        stage_inputs(missing, missing.record())


def test_checkpoints_of_other_inputs_do_not_stay(jobs):
    teacher = ask(jobs, teacher_task())
    cell = ask(jobs, late_cell(teacher))
    finish(teacher, results__teacher__teacher_pt="first")
    stage_inputs(cell, cell.record())
    (cell.work / "checkpoint").touch()
    finish(teacher, results__teacher__teacher_pt="second")
    stage_inputs(cell, cell.record())
    assert (cell.work / WEIGHTS).read_text() == "second"
    assert not (cell.work / "checkpoint").exists()


def test_a_half_linked_input_is_made_whole(jobs):
    teacher = ask(jobs, teacher_task())
    cell = ask(jobs, late_cell(teacher))
    finish(teacher, results__teacher__teacher_pt="weights")
    stage_inputs(cell, cell.record())
    (cell.work / WEIGHTS).unlink()
    (cell.work / WEIGHTS).write_text("wei")
    stage_inputs(cell, cell.record())
    assert (cell.work / WEIGHTS).read_text() == "weights"


def test_the_layout_has_links_to_code_and_folders_of_its_own_for_outputs(jobs, tmp_path):
    work = tmp_path / "private"
    snapshot = snapshot_of(jobs)
    lay_out(snapshot, work, ["tables/rendered"])
    assert (work / "tables" / "code.py").is_symlink()
    assert not (work / "tables").is_symlink()
    (work / "tables" / "rendered").mkdir()
    assert sorted(path.name for path in (snapshot / "tables").iterdir()) == ["code.py"]


def remove(snapshot):
    (snapshot / "tables" / "code.py").unlink()


def change(snapshot):
    (snapshot / "tables" / "code.py").write_text("edoc")


def add(snapshot):
    (snapshot / "torch.py").write_text("import os")


def make_executable(snapshot):
    (snapshot / "tables" / "code.py").chmod(0o755)


@pytest.mark.parametrize("spoil", [remove, change, add, make_executable, shutil.rmtree])
def test_a_job_runs_no_code_but_what_was_submitted(jobs, spoil):
    job = ask(jobs, teacher_task())
    spoil(snapshot_of(jobs))
    with pytest.raises(StageError, match=rf"{SNAPSHOT} is not what was submitted .*submit again"):
        stage_inputs(job, job.record())
    assert not job.work.exists()


def test_what_python_compiled_is_no_part_of_a_snapshot(jobs):
    (snapshot_of(jobs) / "tables" / "__pycache__").mkdir()
    (snapshot_of(jobs) / "tables" / "__pycache__" / "code.pyc").touch()
    check_snapshot(snapshot_of(jobs))


def test_a_snapshot_that_lost_files_is_taken_anew(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "code.py").write_text("code")
    folder = tmp_path / "snapshots"
    key = take_snapshot(tmp_path, folder, [])
    (folder / key / "code.py").unlink()
    assert take_snapshot(tmp_path, folder, []) == key
    check_snapshot(folder / key)


# What jobs run is nobody else's


@pytest.mark.parametrize("mode", [None, 0o755, 0o775, 0o777])
def test_the_folder_of_jobs_is_private_whatever_the_umask(tmp_path, mode):
    folder = tmp_path / ".slurm"
    before = os.umask(0o002)
    try:
        if mode is not None:
            folder.mkdir()
            folder.chmod(mode)
        with locked(Jobs(tmp_path)):
            assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_a_folder_of_jobs_of_another_user_is_refused(tmp_path, monkeypatch):
    make_private(tmp_path / "mine")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(SlurmError, match=rf"mine belongs to user {os.getuid()}, and jobs run what"):
        make_private(tmp_path / "mine")


def test_a_file_in_place_of_the_folder_of_jobs_is_refused(tmp_path):
    (tmp_path / ".slurm").touch()
    with pytest.raises(SlurmError, match=r"cannot make .*\.slurm private: File exists"):
        make_private(tmp_path / ".slurm")


# Taking what a job made


@pytest.fixture
def done(jobs):
    job = ask(jobs, teacher_task())
    finish(job, results__teacher__teacher_pt="weights", results__teacher__metrics="1")
    return job


def test_collect(jobs, done):
    old = jobs.workspace / TEACHER
    old.mkdir(parents=True)
    (old / "old").touch()
    collect(jobs, done, take_over(jobs, "teacher"))
    assert list_path(jobs.workspace, TEACHER) == done.done()
    assert not list((jobs.root / "arriving").iterdir())


def test_the_last_to_attach_collects(jobs, done):
    first = take_over(jobs, "teacher")
    second = take_over(jobs, "teacher")
    with pytest.raises(NotOwnerError):
        collect(jobs, done, first)
    assert not (jobs.workspace / TEACHER).exists()
    collect(jobs, done, second)


def test_what_is_not_as_it_was_made_is_not_taken(jobs, done):
    (done.work / WEIGHTS).write_text("mixed up")
    with pytest.raises(DamagedError, match="the result of its job is damaged"):
        collect(jobs, done, take_over(jobs, "teacher"))
    assert not (jobs.workspace / TEACHER).exists()
    assert done.done() is None


def hold(path, ready, go):
    with exclusive(path):
        ready.set()
        go.wait()


def test_one_at_a_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "lock", ready, go))
    process.start()
    try:
        assert ready.wait(PATIENCE)
        with exclusive(tmp_path / "lock", seconds=0) as held:
            assert not held
    finally:
        go.set()
        process.join()
    with exclusive(tmp_path / "lock", seconds=0) as held:
        assert held


# Garbage


def cached(jobs, job):
    cache = jobs.workspace / "cache"
    for md5 in job.done().values():
        (cache / md5[:2]).mkdir(parents=True, exist_ok=True)
        (cache / md5[:2] / md5[2:]).touch()
    return cache


def test_what_dvc_has_is_emptied(jobs, done):
    collect(jobs, done, take_over(jobs, "teacher"))
    cache = cached(jobs, done)
    garbage.after_commit(jobs, cache)
    assert done.retired()
    assert not done.work.exists()
    assert done.made() is not None
    garbage.after_commit(jobs, cache)


def test_what_a_waiting_job_takes_stays(jobs, done):
    task = late_cell(done)
    cell = ask(jobs, task)
    garbage.mark_needed(jobs, cell, task)
    collect(jobs, done, take_over(jobs, "teacher"))
    cache = cached(jobs, done)
    garbage.after_commit(jobs, cache)
    assert not done.retired()
    # It has started, with inputs of its own.
    (cell.path / "ready").touch()
    garbage.after_commit(jobs, cache)
    assert done.retired()


def old(job: Job):
    for path in (job.path, *job.path.glob("*")):
        os.utime(path, (0, 0))


def test_results_that_dvc_has_not_taken_stay_whatever_their_age(jobs, done):
    old(done)
    garbage.sweep_up(jobs, jobs.workspace / "cache", {done.name})
    assert done.done() is not None


@pytest.mark.parametrize("ended", ["failed.json", "retired.json", None])
def test_old_records_go(jobs, ended):
    job = ask(jobs, teacher_task())
    if ended:
        (job.path / ended).write_text("{}")
    garbage.sweep_up(jobs, jobs.workspace / "cache", set())
    assert job.path.exists(), "not before it is old"
    old(job)
    garbage.sweep_up(jobs, jobs.workspace / "cache", {job.name})
    assert job.path.exists() == (ended != "retired.json"), "not while it lives"
    if ended != "retired.json":
        old(job)
        garbage.sweep_up(jobs, jobs.workspace / "cache", set())
        assert not job.path.exists()


def test_nothing_half_removed_is_left_under_its_name(jobs):
    (jobs.root / "snapshots" / "other").mkdir()
    garbage.sweep_up(jobs, jobs.workspace / "cache", set())
    assert not list((jobs.root / "snapshots").iterdir())
