"""Helper of test_resume.py: train runs in processes that kill themselves with SIGKILL.

    python kill_runs.py JOB.json

The job names data, teacher and, for every folder, settings and where its processes die, one
after the other: ["step", n] after the n-th step of that process, ["write", n] when its n-th file is
complete under its temporary name but not yet renamed, ["never", 0] not at all.

torch and timm are imported once; every process is a fork, taken before anything was computed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from ofq_core.models.torchvision_compat import import_torchvision
from ofq_core.settings import RunSettings
from pipelines import training


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Observer:
    """Counts steps and dies after one of them."""

    def __init__(self, last: int) -> None:
        self.left = last

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, event: object) -> None:
        torch.rand(())  # as a model with dropout would; the test's resumed run draws too
        self.left -= 1
        if self.left == 0:
            die()


def train(settings: dict, inputs: training.Inputs, folder: Path, kind: str, number: int) -> None:
    os.chdir(folder)
    training.ProgressBar = lambda stage: Observer(number if kind == "step" else -1)
    if kind == "write":
        written = 0
        replace = os.replace

        def replace_or_die(source: str, target: str) -> None:
            nonlocal written
            written += 1
            if written == number:
                die()
            replace(source, target)

        os.replace = replace_or_die
    training.train_run(RunSettings.model_validate(settings), inputs, "test", lambda message: None)


def main(path: str) -> None:
    import_torchvision()
    import timm  # noqa: F401

    job = json.loads(Path(path).read_text())
    inputs = training.Inputs(Path(job["data"]), Path(job["teacher"]))
    for folder, run in job["folders"].items():
        Path(folder).mkdir(parents=True)
        for kind, number in run["deaths"]:
            process = os.fork()
            if process == 0:
                train(run["settings"], inputs, Path(folder), kind, number)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            expected = 0 if kind == "never" else -signal.SIGKILL
            if status != expected:
                sys.exit(f"{folder}: {kind} {number}: ended with {status}, expected {expected}")


if __name__ == "__main__":
    main(sys.argv[1])
