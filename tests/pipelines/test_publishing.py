"""Killed while a finished run is put in place: the next run ends as if that had not been."""

import shutil
import signal

import pytest

CELL = ("pipelines.grid", "--method", "ofq", "--bits", "2", "--seed", "0")
STAGES = {
    "grid": (CELL, "results/smoke/ofq-w2a2-s0", "student.pt"),
    "qat": (("pipelines.qat",), "results/experiment", "student.pt"),
    "teacher": (("pipelines.teacher",), "results/teacher", "teacher.pt"),
}
WRITING = ["writing the student", "writing its environment"]
FOLDER = ["before the folder is moved", "after the folder is moved", "tidying up"]
DEATHS = {
    "grid": [*WRITING, "removing what was there", *FOLDER],
    "qat": [*WRITING, "between two files", "after the last file", "tidying up"],
    "teacher": ["before the teacher is renamed", "after the teacher is renamed", *FOLDER],
}
# What a clock decides.
TIMED = {"env.json", "history.csv", "metrics.json", "training.json"}


@pytest.fixture(scope="module")
def published(trained, command):
    """A folder with the results of every stage; not to be changed."""
    folder = shutil.copytree(trained, trained.parent / "published")
    for stage in ("grid", "qat"):
        done = command(folder, *STAGES[stage][0])
        assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize(
    ("stage", "place"), [(stage, place) for stage, places in DEATHS.items() for place in places]
)
def test_killed_and_run_again(stage, place, published, tmp_path, command, snapshot):
    words, result, weights = STAGES[stage]
    folder = shutil.copytree(published, tmp_path / "work")
    before = snapshot(folder / result)
    died = command(folder, "tests.pipelines.dying", place, *words)
    assert died.code == -signal.SIGKILL, died.err
    done = command(folder, *words)
    assert done.code == 0, done.err
    after = snapshot(folder / result)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} <= TIMED
    assert after[weights] == before[weights]
    assert list((folder / ".partial").iterdir()) == []


def test_a_checkpoint_belongs_to_the_code_that_wrote_it(tmp_path, monkeypatch):
    """The kernels' C is code as well."""
    from pipelines import training

    package = tmp_path / "ofq_core"
    (package / "quant").mkdir(parents=True)
    monkeypatch.setattr(training.ofq_core, "__file__", str(package / "__init__.py"))
    found = [training._code_sha()]
    for name in ("__init__.py", "quant/kernels.c", "quant/kernels.c"):
        with (package / name).open("a") as file:
            file.write("x")
        found.append(training._code_sha())
    (package / "notes.txt").touch()

    assert len(set(found)) == len(found)
    assert training._code_sha() == found[-1]
