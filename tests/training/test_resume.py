"""Kill -9 at any step, run again: every bit as if nothing had happened."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.training import finish
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
UNDISTURBED = "undisturbed"
# Six steps an epoch; two epochs of QAT, then one of CGA. A checkpoint after every epoch.
DEATHS = {
    UNDISTURBED: [("never", 0)],
    "first-step": [("step", 1)],
    "mid-first-epoch": [("step", 4)],
    "before-first-checkpoint": [("step", 6)],
    "after-first-checkpoint": [("step", 7)],
    "last-qat-step": [("step", 12)],
    "first-cga-step": [("step", 13)],
    "mid-cga": [("step", 16)],
    "last-step": [("step", 18)],
    # The fourth file that is written is student.pt, the fifth history.csv.
    "while-writing-first-checkpoint": [("write", 1)],
    "while-writing-second-checkpoint": [("write", 2)],
    "while-writing-student": [("write", 4)],
    "while-writing-history": [("write", 5)],
    # Steps are those of each process: the second resumes at 6 and dies at 15.
    "twice": [("step", 8), ("step", 9)],
    "three-times-at-once": [("step", 3), ("step", 3), ("step", 3)],
}
# How many steps the resumed run may take: those after the last checkpoint.
STEPS_LEFT = {
    "first-step": 18,
    "mid-first-epoch": 18,
    "before-first-checkpoint": 18,
    "after-first-checkpoint": 12,
    "last-qat-step": 12,
    "first-cga-step": 6,
    "mid-cga": 6,
    "last-step": 6,
    "while-writing-first-checkpoint": 18,
    "while-writing-second-checkpoint": 12,
    "while-writing-student": 0,
    "while-writing-history": 0,
    "twice": 6,
    "three-times-at-once": 18,
}
# The same for LSQ with CGA, whose weight scales are trained parameters.
LSQ_DEATHS = [UNDISTURBED, "after-first-checkpoint", "mid-cga"]


@pytest.fixture(scope="module")
def killed(micro, digits, teacher_file, tmp_path_factory):
    """<method>/<where>: folders of runs that were killed."""
    folder = tmp_path_factory.mktemp("killed")
    plans = {"ofq": DEATHS, "lsq_cga": {where: DEATHS[where] for where in LSQ_DEATHS}}
    job = {
        "data": str(digits),
        "teacher": str(teacher_file),
        "folders": {
            str(folder / method / where): {
                "settings": micro(method).model_dump(mode="json"),
                "deaths": deaths,
            }
            for method, plan in plans.items()
            for where, deaths in plan.items()
        },
    }
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    script = Path(__file__).with_name("kill_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), str(file)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def resume(train_run):
    """Run again in a folder; returns what is there then, and how many steps it took."""

    def run(settings, folder):
        steps = []

        def observe(event):
            steps.append((event.epoch, event.step))
            torch.rand(())  # as in the killed process

        return train_run(settings, folder, observe), len(steps)

    return run


RESUMED = [("ofq", where) for where in STEPS_LEFT]
RESUMED += [("lsq_cga", where) for where in LSQ_DEATHS if where != UNDISTURBED]


@pytest.mark.parametrize(("method", "where"), RESUMED)
def test_resumed_run_is_bit_identical(method, where, killed, micro, resume, left_behind, identical):
    """Weights, optimizer, tracker, random state, history, selection and summary."""
    reference = left_behind(killed / method / UNDISTURBED)
    resumed, steps = resume(micro(method), killed / method / where)
    assert steps == STEPS_LEFT[where]
    said = [message for message in resumed.log if "going on after" in message]
    assert len(said) == (1 if steps < 18 else 0)
    identical(resumed.state, reference.state)
    assert resumed.student_bytes == reference.student_bytes
    assert resumed.oscillation == reference.oscillation
    assert resumed.training == reference.training


def test_undisturbed_run_has_something_to_lose(killed, left_behind):
    """The comparison covers state that a fresh start does not have."""
    reference = left_behind(killed / "ofq" / UNDISTURBED)
    tracker = reference.state["tracker"]
    assert tracker["state"]["steps"] == 17
    assert all(
        bool(tracker["state"][key].any())
        for key in ("codes", "direction", "frequency", "reversals")
    )
    assert int(tracker["state"]["flips"]) > 100
    assert len(tracker["first_scales"]) == 5
    moments = reference.state["optimizer"]["state"][0]
    assert moments["step"] == 18
    assert bool(moments["exp_avg"].any())
    assert [row["lr"] for row in reference.history] == pytest.approx([5e-3, 3.5e-3, 2e-3])


def test_no_temporary_file_survives_the_next_run(killed, micro, resume, tmp_path):
    """A process that was killed while it wrote cannot tidy up; the run after it does."""
    folder = shutil.copytree(killed / "ofq/while-writing-first-checkpoint", tmp_path / "run")
    (work,) = folder.glob(".partial/*")
    resumed, _ = resume(micro("ofq"), folder)
    assert list(work.glob(".checkpoint.pt.*")), "the killed process left one"
    resumed.folder.rename(tmp_path / "published")
    finish(work / "result")
    assert not work.exists()


def test_another_runs_checkpoint_is_never_taken(killed, micro, train_run, tmp_path):
    """Other settings have a private folder of their own, so both can be interrupted and go on."""
    folder = shutil.copytree(killed / "ofq/twice", tmp_path / "run")
    run = train_run(micro("ofq", seed=1), folder)
    assert not [message for message in run.log if "going on" in message]
