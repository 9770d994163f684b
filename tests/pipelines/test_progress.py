"""What a user sees during training: a bar on a terminal, plain lines elsewhere."""

import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading
import time

import pytest

from ofq_core.training import StepEvent
from pipelines import progress
from pipelines.progress import ProgressBar
from tests.clock import Clock

EPOCHS, STEPS = 3, 4


def events(start=0):
    for done in range(start, EPOCHS * STEPS):
        epoch, step = divmod(done, STEPS)
        yield StepEvent(epoch, EPOCHS, step, STEPS, 1234.4, 2.0 - done / 10, None)


@pytest.fixture
def on_terminal():
    """Everything that reaches a pseudo-terminal 100 characters wide."""

    def show(start=0, error=None, pause=0.0):
        main, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        chunks = []

        def read():
            try:
                while chunk := os.read(main, 4096):
                    chunks.append(chunk)
            except OSError:  # how Linux says that the other end is closed
                pass

        reader = threading.Thread(target=read)
        reader.start()
        with open(end, "w", encoding="utf-8") as stream:
            try:
                with ProgressBar("qat ofq-w2a2-s0", stream) as bar:
                    for event in events(start):
                        bar(event)
                        time.sleep(pause)
                    if error is not None:
                        raise error
            except RuntimeError:
                pass
        reader.join()
        os.close(main)
        return b"".join(chunks).decode()

    return show


def test_bar_on_a_terminal(on_terminal):
    text = on_terminal(pause=0.05)
    assert text.startswith("qat ofq-w2a2-s0: training")
    assert "qat ofq-w2a2-s0 |" in text, "the stage"
    assert "epoch 1/3" in text
    assert "epoch 3/3" in text
    assert "1234 images/s" in text
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d\]", text), "elapsed < time that is left"
    assert "loss 1." in text
    shown = [int(percent) for percent in re.findall(r"(\d+)%", text)]
    assert shown == sorted(shown)
    assert shown[-1] > 60
    assert re.search(r"\rqat ofq-w2a2-s0: trained in \d+ s\r\n$", text)
    assert text.count("\n") == 2, "the bar stays on its line and makes room for the last one"


def test_bar_of_a_resumed_run_starts_where_it_was(on_terminal):
    """Two of three epochs were done before: the bar must not pretend that they ran now."""
    text = on_terminal(start=8, pause=0.05)
    shown = [int(percent) for percent in re.findall(r"(\d+)%", text)]
    assert shown[0] >= 66


def test_bar_is_removed_when_training_fails(on_terminal):
    text = on_terminal(error=RuntimeError("nan"), pause=0.02)
    assert "trained in" not in text
    assert text.endswith("\r"), "the next message starts on a clean line"


def plain(start=0, error=None):
    stream = io.StringIO()
    with ProgressBar("grid lsq-w2a2-s1", stream) as bar:
        for event in events(start):
            bar(event)
    return stream.getvalue()


@pytest.fixture
def standing_still(monkeypatch):
    """A clock on which everything takes no time."""
    monkeypatch.setattr(progress, "time", Clock())


@pytest.mark.usefixtures("standing_still")
def test_plain_lines_elsewhere(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    lines = plain().splitlines()
    assert lines[0] == "grid lsq-w2a2-s1: training"
    assert len(lines) == 2 + EPOCHS * STEPS
    for index, line in enumerate(lines[1:-1]):
        pattern = (
            rf"grid lsq-w2a2-s1: epoch {index // STEPS + 1}/3, loss {2 - index / 10:.3f}, "
            r"1234 images/s, \d+ s left"
        )
        assert re.fullmatch(pattern, line), line
    assert lines[-1] == "grid lsq-w2a2-s1: trained in 0 s"
    assert "\r" not in plain()
    assert "\x1b" not in plain()


@pytest.mark.usefixtures("standing_still")
def test_lines_are_rare():
    """A short run says when it begins and when it is done."""
    assert plain().splitlines() == [
        "grid lsq-w2a2-s1: training",
        "grid lsq-w2a2-s1: trained in 0 s",
    ]


@pytest.mark.parametrize("start", [0, 8])
def test_time_that_is_left(start, monkeypatch):
    """From the steps of this attempt alone: ten seconds each, and three to go."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    stream = io.StringIO()
    with ProgressBar("s", stream) as bar:
        for event in list(events(start))[: 9 - start]:
            seconds[0] += 10.0
            bar(event)
    lines = [line for line in stream.getvalue().splitlines() if "left" in line]
    assert lines[-1].endswith(", 30 s left")
