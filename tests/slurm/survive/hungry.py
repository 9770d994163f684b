"""sitecustomize.py of the jobs: a stage that trains slowly, or takes memory, when a test says so.

Neither changes what it computes.
"""

import os
import signal
import sys
import threading
import time

TURN_SECONDS = 0.05
GIGABYTES = 3


def pause(seconds):
    """Once it trains, let the stage compute by turns with doing nothing."""

    def wait(number, frame):
        if os.path.exists(os.environ["OFQ_PROGRESS"]):
            time.sleep(seconds)
        signal.setitimer(signal.ITIMER_REAL, TURN_SECONDS)

    signal.signal(signal.SIGALRM, wait)
    signal.setitimer(signal.ITIMER_REAL, TURN_SECONDS)


def eat(asked):
    """Take memory once the file is there, in one attempt only."""
    while not os.path.exists(asked):
        time.sleep(0.1)
    os.unlink(asked)
    kept = b"x" * (GIGABYTES << 30)
    time.sleep(60)
    del kept


if "pipelines.grid" in sys.orig_argv:
    if os.path.exists(os.environ.get("SURVIVE_PAUSE", "")):
        with open(os.environ["SURVIVE_PAUSE"]) as file:
            pause(float(file.read()))
    if "SURVIVE_EAT" in os.environ:
        threading.Thread(target=eat, args=[os.environ["SURVIVE_EAT"]], daemon=True).start()
