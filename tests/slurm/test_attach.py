"""What `dvc repro` shows of a job it is attached to."""

import io
import json

import pytest

from slurm.attach import Display, describe, duration
from slurm.jobs import Job, Jobs, Record, Task
from slurm.states import State

RUNNING = State("RUNNING", node="n1")
PROGRESS = {
    "epoch": 3,
    "epochs": 9,
    "loss": 1.2345,
    "val_top1": 93.1,
    "seconds_left": 12.3,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def job(tmp_path):
    job = Jobs(tmp_path).job("grid@ofq-2-0", "key")
    job.path.mkdir(parents=True)
    return job


@pytest.fixture
def record(tmp_path):
    task = Task("grid@ofq-2-0", ["true"], {}, {}, [], [])
    return Record(task, str(tmp_path), "", {}, {}, job_id="12_3")


def progress(job: Job, **changes):
    (job.path / "progress.json").write_text(json.dumps(PROGRESS | changes))


def test_a_job_that_trains(job):
    progress(job)
    text = "running on n1, epoch 3/9, loss 1.234, validation 93.10 %, 12 s left"
    assert describe(job, RUNNING) == text


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (State("PENDING", "Priority"), "pending (Priority)"),
        (State("PENDING", "BeginTime"), "pending (BeginTime)"),
        (State("UNKNOWN"), "not known: SLURM does not answer"),
        (State("COMPLETING", node="n2"), "completing on n2"),
    ],
)
def test_a_job_that_does_not(job, state, text):
    """What an earlier attempt left is not shown as if it were going on."""
    progress(job)
    assert describe(job, state) == text


def test_progress_that_lacks_something(job):
    progress(job, val_top1=None, seconds_left=None)
    assert describe(job, RUNNING) == "running on n1, epoch 3/9, loss 1.234"
    (job.path / "progress.json").write_text("{half")
    assert describe(job, RUNNING) == "running on n1"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5900, "98 min"),
        (12000, "3 h 20 min"),
        (190000, "2 d 4 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_terminal_has_one_line(job, record):
    stream = Terminal()
    shown = Display(job, stream)
    shown.update(record, State("PENDING", "Resources"))
    shown.update(record, RUNNING)
    shown.end()
    first, second = stream.getvalue().removeprefix("\r").split("\r")
    assert first == "grid@ofq-2-0: job 12_3 pending (Resources)"
    # Wide enough to cover what stood there.
    assert second.rstrip("\n") == "grid@ofq-2-0: job 12_3 running on n1".ljust(len(first))


def test_elsewhere_a_line_says_what_is_new(job, record):
    stream = io.StringIO()
    shown = Display(job, stream)
    for _ in range(3):
        shown.update(record, RUNNING)
    shown.update(record, State("PENDING", "BeginTime"))
    shown.end()
    assert stream.getvalue().splitlines() == [
        "grid@ofq-2-0: job 12_3 running on n1",
        "grid@ofq-2-0: job 12_3 pending (BeginTime)",
    ]
