"""Compare the working tree with another commit, on this machine, in one go:

    python -m benchmarks.against [COMMIT] [--rounds N] [--bound RATIO]

Both run the micro model's training steps in turns, one process each, on one thread. It fails when
steps take more than 1.25 times the processor time of the other commit's, in the median over
rounds and in their lower quartile; and when they run more operators, save more bytes or need more
memory, unless tests/benchmarks/budgets.json differs between the two: then that is on purpose.

COMMIT is by default where HEAD left the main branch, and on the main branch the commit before it.
Without such a commit (a shallow clone) nothing is compared. Both sides run the working tree's
benchmarks; a commit whose ofq_core they cannot drive is not compared either.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.commits import ROOT, checkout, commit_of, default_base, git
from benchmarks.interleave import Ratio

BOUND, ROUNDS = 1.25, 15
BUDGETS = "tests/benchmarks/budgets.json"

Seconds = dict[str, float]


class Side:
    """A process that measures the sources in a folder.

    Attributes:
        counts: what it counted; None where the sources cannot be driven.
    """

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.side"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.counts: dict[str, dict[str, int]] | None = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def measure(self) -> Seconds:
        """Seconds per step of every configuration."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds: Seconds | None = self._answer()
        if seconds is None:
            raise SystemExit("a side of the comparison died")
        return seconds

    def close(self) -> None:
        """Let it end."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait()


def slower(rounds: list[tuple[Seconds, Seconds]], bound: float) -> tuple[list[str], list[str]]:
    """A line for every configuration, and those that are too slow.

    Args:
        rounds: seconds per step of (head, base).
        bound: largest ratio. It must be exceeded by the median and by the lower quartile: noise
            moves one of them now and then, a slower step moves both.
    """
    lines, found = [], []
    for name in rounds[0][0]:
        ratio = Ratio.of([head[name] / base[name] for head, base in rounds])
        line = (
            f"{name}: {ratio.median:.3f} times the base's step (quartiles {ratio.quarter:.3f} to "
            f"{ratio.three_quarters:.3f}, n = {ratio.n})"
        )
        lines.append(line)
        if ratio.median > bound and ratio.quarter > bound:
            found.append(f"{line}: above {bound:g}")
    return lines, found


def dearer(head: dict[str, dict[str, int]], base: dict[str, dict[str, int]]) -> list[str]:
    """A line for every count that is above the base's; each counts."""
    return [
        f"{name}: {what} {value:,}, in the base {base[name][what]:,}"
        for name, counts in head.items()
        for what, value in counts.items()
        if value > base[name][what]
    ]


def compare(base: Path, rounds: int, bound: float) -> int:
    """Compare the working tree with the sources in a folder; the exit status.

    The folder's benchmarks are replaced by the working tree's.
    """
    shutil.rmtree(base / "benchmarks", ignore_errors=True)
    shutil.copytree(ROOT / "benchmarks", base / "benchmarks")
    with ExitStack() as stack:
        ours = Side(ROOT)
        stack.callback(ours.close)
        if ours.counts is None:
            print("the working tree's own steps cannot be measured")
            return 1
        theirs = Side(base)
        stack.callback(theirs.close)
        if theirs.counts is None:
            print("these benchmarks cannot drive the base's ofq_core: nothing compared")
            return 0
        times: list[tuple[Seconds, Seconds]] = []
        for number in range(rounds + 1):
            first, second = (ours, theirs) if number % 2 else (theirs, ours)
            measured = {id(first): first.measure(), id(second): second.measure()}
            if number:  # the first round warms up
                times.append((measured[id(ours)], measured[id(theirs)]))
    lines, found = slower(times, bound)
    print("\n".join(lines))
    more = dearer(ours.counts, theirs.counts)
    if more and _text(base / BUDGETS) != _text(ROOT / BUDGETS):
        print("more than in the base, as the changed budgets say:", *more, sep="\n  ")
        more = []
    if found or more:
        print("FAILED:", *found, *more, sep="\n  ")
    return 1 if found or more else 0


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def main(argv: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("commit", nargs="?", metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--bound", type=float, default=BOUND)
    arguments = parser.parse_args(argv)
    if arguments.commit is None:
        commit = default_base()
        if commit is None:
            print("no commit before this one in this clone: nothing compared")
            return 0
    else:
        commit = commit_of(arguments.commit)
        if commit is None:
            parser.error(f"{arguments.commit}: no such commit in this clone")
    print(f"comparing with {git('log', '-1', '--format=%h %s', commit)}")
    with checkout(commit) as tree:
        return compare(tree, arguments.rounds, arguments.bound)


if __name__ == "__main__":
    sys.exit(main())
