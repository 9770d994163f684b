"""What a run ran on: versions, device, commit, DVC stage, cluster job.

A job on a cluster runs in a folder of its own. Whoever starts it there tells by environment
variables what cannot be seen from that folder: OFQ_GIT_COMMIT and OFQ_GIT_DIRTY (true or false) of
the repository, and OFQ_ATTEMPTS, a JSON file with one object per attempt so far.
"""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurm.commit import describe_commit

if TYPE_CHECKING:
    from ofq_core.distributed import World

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "timm", "numpy", "pydantic", "ofq-core")


def describe_environment(world: World, code: dict[str, Any] | None = None) -> dict[str, Any]:
    """Facts for env.json; unknown ones are null.

    code: what `describe_code` said when the run began; by default what it says now.
    """
    import torch

    from ofq_core.quant.kernels import library

    cuda = world.device.type == "cuda"
    code = code or describe_code()
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "device": world.device.type,
        "device_name": torch.cuda.get_device_name(world.device) if cuda else cpu_name(),
        "peak_device_memory_bytes": torch.cuda.max_memory_allocated(world.device) if cuda else None,
        "cuda": torch.version.cuda,
        "processes": world.size,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "kernels": library() is not None,
        "platform": platform.platform(),
        "git": {key: code[key] for key in ("commit", "dirty")},
        "git_problem": code["problem"],
        "dvc": {
            "stage": os.environ.get("DVC_STAGE"),
            "experiment": os.environ.get("DVC_EXP_NAME"),
        },
        "slurm_job": _slurm_job(),
        "node": os.environ.get("SLURMD_NODENAME") or platform.node(),
        "attempts": _attempts(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str | None:
    """What the processor calls itself; None where it does not say."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _slurm_job() -> str | None:
    """The number by which SLURM's commands know the job: a task of an array has two parts."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _attempts() -> list[dict[str, Any]]:
    path = os.environ.get("OFQ_ATTEMPTS")
    try:
        value = json.loads(Path(path).read_text()) if path else []
    except (OSError, ValueError):
        return []
    fits = isinstance(value, list) and all(isinstance(item, dict) for item in value)
    return value if fits else []


def describe_code() -> dict[str, Any]:
    """`commit` and `dirty` of the code that runs, as told or as git says; `problem` if neither."""
    told = os.environ.get("OFQ_GIT_COMMIT")
    if told:
        dirty = {"true": True, "false": False}.get(os.environ.get("OFQ_GIT_DIRTY", ""))
        return {"commit": told, "dirty": dirty, "problem": None}
    return describe_commit(ROOT)
