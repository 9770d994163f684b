"""What a run ran on: versions, device, commit, DVC stage, cluster job."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ofq_core.distributed import World

PACKAGES = ("torch", "timm", "numpy", "pydantic", "ofq-core")


def describe_environment(world: World) -> dict[str, Any]:
    """Facts for env.json; unknown ones are null."""
    import torch

    cuda = world.device.type == "cuda"
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "device": world.device.type,
        "device_name": torch.cuda.get_device_name(world.device) if cuda else _cpu_name(),
        "peak_device_memory_bytes": torch.cuda.max_memory_allocated(world.device) if cuda else None,
        "cuda": torch.version.cuda,
        "processes": world.size,
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "git": {"commit": _git("rev-parse", "HEAD"), "dirty": _dirty()},
        "dvc": {
            "stage": os.environ.get("DVC_STAGE"),
            "experiment": os.environ.get("DVC_EXP_NAME"),
        },
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str | None:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _dirty() -> bool | None:
    """Whether tracked code differs from the commit; what stages write does not count."""
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    return None if changes is None else bool(changes)
