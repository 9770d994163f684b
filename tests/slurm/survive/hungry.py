"""sitecustomize.py of the jobs: a stage that waits, or takes memory, when a test says so.

Neither changes what it computes. A stage that waits for the test is disturbed where the test wants
it, whether the machine is fast or slow.
"""

import contextlib
import glob
import json
import os
import signal
import sys
import threading
import time

TURN_SECONDS = 0.05
GIGABYTES = 3


def hold(path):
    """Stop the stage once it trains the epoch that stands in a file, and has a checkpoint.

    It goes on when the file is gone or names a later epoch, or when it is told to stop.
    """
    # Only the stage knows what its own handler of SIGTERM has set: this hears the signal as well.
    heard, tell = os.pipe()
    os.set_blocking(heard, False)
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    began, told = time.time(), False

    def due():
        nonlocal told
        with contextlib.suppress(BlockingIOError):
            told = told or signal.SIGTERM in os.read(heard, 1 << 16)
        try:
            with open(path) as file:
                epoch = int(file.read())
            with open(os.environ.get("OFQ_PROGRESS", "")) as file:
                progress = json.load(file)
        except FileNotFoundError:
            return False
        # The progress of an earlier attempt is still there.
        mine = progress["time"] > began
        saved = glob.glob(".partial/*/checkpoint.pt")
        return mine and saved and progress["epoch"] >= epoch and not told

    def look(number, frame):
        while due():
            time.sleep(TURN_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, TURN_SECONDS)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, TURN_SECONDS)


def eat(asked):
    """Take memory once the file is there, in one attempt only."""
    while not os.path.exists(asked):
        time.sleep(0.1)
    os.unlink(asked)
    kept = b"x" * (GIGABYTES << 30)
    time.sleep(600)
    del kept


if "pipelines.grid" in sys.orig_argv:
    if "SURVIVE_HOLD" in os.environ:
        hold(os.environ["SURVIVE_HOLD"])
    if "SURVIVE_EAT" in os.environ:
        threading.Thread(target=eat, args=[os.environ["SURVIVE_EAT"]], daemon=True).start()
