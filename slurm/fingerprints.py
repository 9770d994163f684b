"""Notice cheaply that something has changed: by size and time, as DVC's own memory does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from slurm.contents import md5_file

# What defines a stage besides its code: templates are filled from params.yaml.
DEFINITION = ("dvc.yaml", "params.yaml", ".dvcignore")
IGNORED = "__pycache__"


def fingerprint(path: Path) -> str:
    """Changes when a file, or a file of a folder, does."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    for file in files:
        if IGNORED in file.parts or not file.is_file():
            continue
        found = file.stat()
        name = file.relative_to(path).as_posix()
        digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def fingerprints(workspace: Path, paths: Iterable[str], params: Iterable[str]) -> dict[str, str]:
    """Of dependencies by size and time; of parameters and what defines stages by content."""
    seen = {path: fingerprint(workspace / path) for path in sorted(set(paths))}
    contents = sorted({*params, *DEFINITION})
    return seen | {path: _content(workspace / path) for path in contents}


def has_variables(workspace: Path) -> bool:
    """Whether dvc.yaml takes values from files that nobody would look at here."""
    try:
        lines = (workspace / "dvc.yaml").read_bytes().splitlines()
    except OSError:
        return True
    return any(line.lstrip().startswith(b"vars:") for line in lines)


def _content(path: Path) -> str:
    return md5_file(path) if path.is_file() else ""
