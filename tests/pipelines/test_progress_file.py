"""The file that tells other programs where training stands."""

import io
import json
import os

import pytest

from ofq_core.training import StepEvent
from pipelines import progress
from pipelines.progress import ProgressBar


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(progress.time, "time", lambda: 1e9 + seconds[0])
    return seconds


@pytest.fixture
def path(tmp_path, monkeypatch):
    path = tmp_path / "progress.json"
    monkeypatch.setenv("OFQ_PROGRESS", str(path))
    return path


def bar():
    return ProgressBar("grid ofq-w2a2-s0", io.StringIO())


def event(epoch, step, loss=1.25, val_top1=None):
    return StepEvent(epoch, 3, step, 4, 512.5, loss, val_top1)


def read(path):
    return json.loads(path.read_text())


def test_content(path, clock):
    with bar() as shown:
        assert not path.exists()
        clock[0] += 10.0
        shown(event(1, 2, val_top1=93.5))
        assert read(path) == {
            "stage": "grid ofq-w2a2-s0",
            "epoch": 2,
            "epochs": 3,
            "step": 3,
            "steps": 4,
            "loss": 1.25,
            "val_top1": 93.5,
            "images_per_second": 512.5,
            "seconds_left": 50.0,
            "time": 1e9 + 110.0,
        }


def test_at_most_once_a_second_and_at_the_end(path, clock):
    seen = []
    with bar() as shown:
        for step in range(4):
            shown(event(0, step))
            seen.append((read(path)["step"], read(path)["val_top1"]))
            clock[0] += 0.6
        shown(event(1, 0, val_top1=50.0))
        shown(event(1, 1, val_top1=60.0))
        assert read(path)["step"] == 1
    assert seen == [(1, None), (1, None), (3, None), (3, None)]
    assert (read(path)["epoch"], read(path)["step"], read(path)["val_top1"]) == (2, 2, 60.0)
    assert os.listdir(path.parent) == [path.name], "no draft stays"


@pytest.mark.usefixtures("clock")
def test_the_last_step_before_an_error_is_told(path):
    with pytest.raises(ZeroDivisionError):
        run(error=ZeroDivisionError())
    assert read(path)["step"] == 4


def run(error=None):
    with bar() as shown:
        for step in range(4):
            shown(event(0, step))
        if error is not None:
            raise error


@pytest.mark.parametrize("value", [None, ""])
def test_nothing_is_written_unasked(value, monkeypatch, tmp_path):
    if value is None:
        monkeypatch.delenv("OFQ_PROGRESS", raising=False)
    else:
        monkeypatch.setenv("OFQ_PROGRESS", value)
    monkeypatch.chdir(tmp_path)
    run()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["no/such/folder.json", ".", "/", "file/x", "folder"])
def test_what_cannot_be_written_fails_no_run(name, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder/full").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFQ_PROGRESS", name)
    run()


def test_a_number_that_json_does_not_know(path):
    with bar() as shown:
        shown(event(0, 0, loss=float("inf")))
    assert not path.exists()
