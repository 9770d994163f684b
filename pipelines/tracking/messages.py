"""What a user reads when something was not logged: where it is safe, and what logs it later."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import redact
from .where import temporary_workspace


@dataclass(frozen=True)
class Handed:
    """A folder that a stage handed over: a result folder, or the rendered tables of a study."""

    folder: Path
    study: str | None = None

    def shown(self, root: Path) -> str:
        """The folder as it is called in the main repository.

        A DVC temporary experiment is removed when it ends; what stays is the same relative
        path after `dvc exp apply`.
        """
        base = temporary_workspace(self.folder) or root
        inside = self.folder.is_relative_to(base)
        return str(self.folder.relative_to(base) if inside else self.folder)


def later_commands(handed: Sequence[Handed], root: Path) -> str:
    """The commands, to be typed at the repository root, that log what was handed over."""
    start = "python -m pipelines.tracking"
    runs = [shlex.quote(item.shown(root)) for item in handed if item.study is None]
    commands = [f"{start} log {' '.join(runs)}"] if runs else []
    for item in handed:
        if item.study is not None:
            rendered, study = shlex.quote(item.shown(root)), shlex.quote(item.study)
            commands.append(f"{start} rows --rendered {rendered} --study {study}")
    return " && ".join(commands)


def not_logged(reason: str, handed: Sequence[Handed], root: Path) -> str:
    """One line: what failed, where the results are, and what logs them later."""
    where = ", ".join(item.shown(root) for item in handed)
    temporary = any(temporary_workspace(item.folder) for item in handed)
    when = "after `dvc exp apply` log them with" if temporary else "log them later with"
    return redact(
        f"tracking: not logged: {reason}. The results are safe in {where}; "
        f"{when}: {later_commands(handed, root)}"
    )
