"""What a measurement is worth nothing without: versions, hardware, commit, date."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.commits import git
from ofq_core.quant.kernels import library


def processor() -> str:
    """The model of the CPU as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe(threads: int) -> dict[str, Any]:
    """The machine, the versions and the state of the repository, for JSON."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": git("rev-parse", "--short", "HEAD"),
        "uncommitted": bool(git("status", "--porcelain", "--", "ofq_core", "benchmarks")),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "kernels": library() is not None,
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": metadata.version("timm"),
    }
