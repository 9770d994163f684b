"""Which commit the code of a folder is, as far as git can tell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from slurm.errors import SlurmError

# For what is only to be known.
SECONDS = 60
# By which git looks at another repository than the one that a folder is in, as in its hooks.
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
# What runs. Another repository round an unpacked copy of the suite tracks none of it.
SOURCES = [
    f":(glob){package}/**/*.{kind}"
    for package in ("ofq_core", "pipelines", "slurm", "tables")
    for kind in ("py", "c")
]


def git(folder: Path, *words: str, seconds: float | None = None) -> str:
    """What a git command prints. It takes no lock that a command of the user's could meet.

    Raises:
        SlurmError: git is missing, or does not do what it was asked, or not in so many seconds.
    """
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *words],
            cwd=folder,
            env={name: value for name, value in os.environ.items() if name not in ELSEWHERE},
            capture_output=True,
            text=True,
            # File names may be anything.
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
            timeout=seconds,
        )
    except FileNotFoundError as error:
        raise SlurmError("git is not installed") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise SlurmError(f"git {words[0]}: {error}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[0] if said else f"exit status {done.returncode}"
        raise SlurmError(f"git {words[0]} in {folder}: {reason}")
    return done.stdout


def describe_commit(folder: Path) -> dict[str, Any]:
    """The commit of the suite in a folder.

    Returns:
        `commit`, and `dirty`: whether tracked files differ from it, or git does not know one of the
        sources. What stages write does not count, nor do dialled settings: those are in the run's
        settings.yaml. Where it cannot be known, both are None, and `problem` says why.
    """
    try:
        commit = git(folder, "rev-parse", "--verify", "HEAD", seconds=SECONDS).strip()
        sources = git(folder, "ls-files", "-v", "--", *SOURCES, seconds=SECONDS).splitlines()
        if not sources:
            raise SlurmError(
                f"the git repository that {folder} is in does not track the code there"
            )
        # Also what a file of the repository round it says is to be ignored.
        unknown = git(folder, "ls-files", "--others", "--", *SOURCES, seconds=SECONDS)
        apart = (":!dvc.lock", ":!params.yaml")
        words = ("status", "--porcelain", "--untracked-files=no", "--", ".", *apart)
        # Of which git was told not to look whether they differ.
        unseen = [line for line in sources if line[0] == "S" or line[0].islower()]
        dirty = bool(unknown or unseen or git(folder, *words, seconds=SECONDS))
    except SlurmError as error:
        return {"commit": None, "dirty": None, "problem": str(error)}
    return {"commit": commit, "dirty": dirty, "problem": None}
