"""What a measurement is worth nothing without: versions, hardware, commit, date."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from typing import Any

import torch

from benchmarks.commits import git
from ofq_core.quant.kernels import library
from pipelines.environment import cpu_name


def describe(threads: int) -> dict[str, Any]:
    """The machine, the versions and the state of the repository, for JSON."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": git("rev-parse", "--short", "HEAD"),
        "uncommitted": bool(git("status", "--porcelain", "--", "ofq_core", "benchmarks")),
        "processor": cpu_name() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "kernels": library() is not None,
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": metadata.version("timm"),
    }
