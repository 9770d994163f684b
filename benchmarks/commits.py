"""Other commits of this repository, checked out into temporary folders."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def git(*words: str, root: Path = ROOT) -> str | None:
    """What a git command prints; None where it fails."""
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def commit_of(reference: str, root: Path = ROOT) -> str | None:
    """The full name of a commit, or None where this clone does not have it."""
    return git("rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}", root=root)


def default_base(root: Path = ROOT) -> str | None:
    """What a change is compared with: where it left the main branch, or on it the commit before.

    None where there is no such commit, as in a shallow clone.
    """
    head = commit_of("HEAD", root)
    for main in ("main", "origin/main"):
        tip = commit_of(main, root)
        if tip is not None and tip != head:
            base = git("merge-base", "HEAD", main, root=root)
            # A main branch that is ahead of this commit is no base of it.
            if base is not None and base != head:
                return base
    return commit_of("HEAD~1", root)


@contextmanager
def checkout(commit: str, root: Path = ROOT) -> Iterator[Path]:
    """A worktree of a commit, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ofq-commit-"))
    tree = folder / "tree"
    try:
        done = subprocess.run(
            ["git", "worktree", "add", "--detach", "--quiet", str(tree), commit],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"git worktree add {commit}: {done.stderr.strip()}")
        yield tree
    finally:
        git("worktree", "remove", "--force", str(tree), root=root)
        shutil.rmtree(folder, ignore_errors=True)


def copy_of_working_tree(folder: Path, root: Path = ROOT) -> None:
    """Copy what is tracked, and what is new and not ignored, as it is now."""
    listed = git("ls-files", "-z", "-co", "--exclude-standard", root=root)
    if listed is None:
        raise SystemExit(f"{root}: not a git repository")
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
