"""What stages make, found by path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass
class Made:
    """What a stage's outputs hold, or will: known files, or the job that makes them.

    job: folder of the job relative to .slurm/jobs. Neither: nobody knows before `dvc repro` runs.
    """

    files: dict[str, str] | None = None
    job: str | None = None


class Outputs:
    """Outputs of stages, found by paths above, at and below them."""

    def __init__(self) -> None:
        self._made: dict[str, Made] = {}
        self._below: dict[str, list[str]] = {}

    def add(self, out: str, made: Made) -> None:
        """Take in one output."""
        self._made[out] = made
        for parent in PurePosixPath(out).parents:
            self._below.setdefault(parent.as_posix(), []).append(out)

    def add_all(self, outs: Iterable[str], made: Made) -> None:
        """Take in the outputs of a stage."""
        for out in outs:
            self.add(out, made)

    def sources(self, path: str) -> dict[str, Made]:
        """The outputs that are, hold or are inside a path."""
        names = [path, *(parent.as_posix() for parent in PurePosixPath(path).parents)]
        found = [name for name in names if name in self._made] + self._below.get(path, [])
        return {name: self._made[name] for name in found}
