"""What DVC's cache and run cache have."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta

from slurm.jobs import Task


def listing_of(outs: Iterable[Any], cache: Path) -> dict[str, str] | None:
    """Files of outputs by the hashes that DVC has for them; None where it does not know."""
    files: dict[str, str] = {}
    for out in outs:
        value = out.hash_info.value
        if value is None:
            return None
        if not value.endswith(".dir"):
            files[out.def_path] = value
            continue
        try:
            rows = json.loads((cache / value[:2] / value[2:]).read_text())
        except (OSError, ValueError):
            return None
        files.update({f"{out.def_path}/{row['relpath']}": row["md5"] for row in rows})
    return files


def run_cached(repo: Any, stage: Any, task: Task, cache: Path) -> dict[str, str] | None:
    """Contents of the outputs that DVC's run cache has for a task without late inputs."""
    recorded = [(item, item.hash_info, item.meta) for item in stage.deps]
    try:
        return _look_up(repo, stage, task, cache)
    finally:
        # What dvc.lock says of a stage is asked for again.
        for item, hash_info, meta in recorded:
            item.hash_info, item.meta = hash_info, meta


def _look_up(repo: Any, stage: Any, task: Task, cache: Path) -> dict[str, str] | None:
    for dependency in stage.deps:
        if isinstance(dependency, ParamsDependency):
            dependency.fill_values(task.params[dependency.def_path])
        else:
            dependency.hash_info = HashInfo("md5", task.hash_of(dependency.def_path))
            dependency.meta = Meta()
    try:
        found = repo.stage_cache._load(stage)
        if not found:
            return None
        restored = repo.stage_cache._create_stage(found, wdir=stage.wdir)
    except (DvcException, AssertionError, OSError):
        return None
    files = listing_of(restored.outs, cache)
    if files is None or not all((cache / md5[:2] / md5[2:]).is_file() for md5 in files.values()):
        return None
    return files
