"""A cell of the digits grid, from start to end, against the state before the work on speed.

A grid of small models is bound by overhead: starting Python, importing, operators of microseconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.commits import checkout, commit_of, copy_of_working_tree
from benchmarks.interleave import Ratio

# The last commit before fused layers.
BEFORE = "5dd2585"
CELL = ("--method", "ofq", "--bits", "2", "--seed", "0")


def measure_cell(rounds: int, before: str = BEFORE) -> dict[str, Any]:
    """Wall seconds of `python -m pipelines.grid` in both states, in turns, and their ratio.

    Each state prepares its own data and trains its own teacher first, which is not measured.
    Nothing is tracked.

    Returns:
        `missing` alone, with the reason, where this clone's history does not have the commit.
    """
    commit = commit_of(before)
    if commit is None:
        return {"missing": f"commit {before} is not in this clone's history"}
    with ExitStack() as stack:
        old = stack.enter_context(checkout(commit))
        new = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ofq-cell-")))
        copy_of_working_tree(new)
        trees = {"before": old, "now": new}
        for tree in trees.values():
            for stage in ("prepare", "teacher"):
                _run(tree, f"pipelines.{stage}")
        times: dict[str, list[float]] = {name: [] for name in trees}
        for _ in range(rounds):
            for name, tree in trees.items():
                for folder in tree.glob("results/*/ofq-*"):
                    shutil.rmtree(folder)
                began = time.perf_counter()
                _run(tree, "pipelines.grid", *CELL)
                times[name].append(time.perf_counter() - began)
    pairs = zip(times["now"], times["before"], strict=True)
    return {
        "commit": before,
        "before_seconds": Ratio.of(times["before"]).median,
        "seconds": Ratio.of(times["now"]).median,
        "ratio": Ratio.of([now / then for now, then in pairs]).as_dict(),
    }


def _run(tree: Path, module: str, *words: str) -> None:
    """Run a stage of the sources in a folder, there."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("OFQ_")}
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=tree,
        env=ours | {"PYTHONPATH": str(tree), "OFQ_TRACKING": "off", "OFQ_PROFILE": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{module} in {tree}: {done.stdout}{done.stderr}")
