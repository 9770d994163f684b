"""The benchmarks of tests/benchmarks, timed, as medians and ratios."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.commits import ROOT

# What a name of a benchmark says about its form.
FORMS = ("full_precision", "plain", "ours")


def measure_pieces(seconds: float) -> dict[str, Any]:
    """Run pytest-benchmark on tests/benchmarks, so many seconds a benchmark; see `summary`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["-m", "pytest", "tests/benchmarks", "-q", "-n", "0", "-p", "no:cacheprovider"]
        words += ["--benchmark-enable", "--benchmark-only", "--benchmark-sort=name"]
        words += [f"--benchmark-max-time={seconds}", "--benchmark-min-rounds=5"]
        words += ["--benchmark-columns=median,iqr,rounds", f"--benchmark-json={report}"]
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=dict(os.environ), check=False)
        if done.returncode:
            raise SystemExit("the benchmarks of tests/benchmarks failed")
        return summary(json.loads(report.read_text())["benchmarks"])


def summary(benchmarks: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """By group and form: median seconds, interquartile range, number of rounds.

    Args:
        benchmarks: as pytest-benchmark writes them.
    """
    groups: dict[str, dict[str, Any]] = {}
    for each in benchmarks:
        form = each["params"].get("form") or each["params"].get("how")
        stats = each["stats"]
        groups.setdefault(each["group"], {})[form] = {
            "median": stats["median"],
            "iqr": stats["iqr"],
            "rounds": stats["rounds"],
        }
    return dict(sorted(groups.items()))
