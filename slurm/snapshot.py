"""The tracked files as they are now, kept for jobs that run later."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from slurm.commit import git
from slurm.errors import SlurmError

COMPILED = "__pycache__"


def tracked_files(workspace: Path, code: Iterable[str]) -> list[str]:
    """Tracked files that exist, and new ones that git does not ignore: modules, and all that is
    below the stages' code.

    A new file works in place, and counts for DVC, before it is added to git.
    """
    listed = git(workspace, "ls-files", "-z").split("\0")
    places = [path for path in sorted(set(code)) if (workspace / path).exists()]
    words = ("ls-files", "-z", "--others", "--exclude-standard", "--")
    listed += git(workspace, *words, "*.py", *places).split("\0")
    # A submodule or a link to a folder is no file; a deleted file is still listed.
    return sorted({name for name in listed if name and (workspace / name).is_file()})


def take_snapshot(workspace: Path, folder: Path, code: Iterable[str]) -> str:
    """Copy the tracked files to `folder`/<hash> unless just these are there already.

    Returns:
        The hash.
    """
    contents = _read(workspace, tracked_files(workspace, code))
    key = _hash(contents)
    target = folder / key
    if target.exists():
        if snapshot_key(target) == key:
            # Garbage collection goes by the last use.
            os.utime(target)
            return key
        # Cleaned up in part, as scratch file systems are.
        shutil.rmtree(target)
    draft = folder / f".{key}.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    for name, (content, mode) in contents.items():
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        (draft / name).write_bytes(content)
        (draft / name).chmod(0o644 | mode)
    try:
        draft.replace(target)
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(draft)
    return key


def check_snapshot(folder: Path) -> None:
    """Check that a snapshot holds just what it was made of, before its code runs.

    Raises:
        SlurmError: a file is missing, was changed or was added.
    """
    found = snapshot_key(folder) if folder.is_dir() else "none"
    if found != folder.name:
        raise SlurmError(
            f"the snapshot {folder} is not what was submitted (its content has the hash {found}): "
            "files below .slurm were changed or removed; submit again"
        )


def snapshot_key(folder: Path) -> str:
    """Hash what a snapshot holds; an untouched one has its hash for a name."""
    return _hash(_read(folder, files_of(folder)))


def files_of(folder: Path) -> list[str]:
    """List the files of a snapshot, without what Python compiled there since."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder) for path in found)
    return sorted(name.as_posix() for name in names if COMPILED not in name.parts)


def _read(folder: Path, names: Iterable[str]) -> dict[str, tuple[bytes, int]]:
    """Content and permission to execute of each file."""
    paths = {name: folder / name for name in names}
    return {name: (path.read_bytes(), path.stat().st_mode & 0o111) for name, path in paths.items()}


def _hash(contents: dict[str, tuple[bytes, int]]) -> str:
    digest = hashlib.sha256()
    for name, (content, mode) in contents.items():
        digest.update(f"{name}\0{mode}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:20]


def lay_out(snapshot: Path, work: Path, own: Iterable[str]) -> None:
    """Make `work` look like the snapshot, by links, with real folders round the paths `own`.

    What is in `work` and in no snapshot stays: a checkpoint of an earlier attempt.
    """
    real = {parent.as_posix() for path in own for parent in Path(path).parents}
    _link_folder(snapshot, work, "", real, {Path(path).as_posix() for path in own})


def _link_folder(snapshot: Path, work: Path, place: str, real: set[str], own: set[str]) -> None:
    (work / place).mkdir(parents=True, exist_ok=True)
    here = snapshot / place
    names = sorted(os.listdir(here)) if here.is_dir() else []
    for name in names:
        path = f"{place}/{name}" if place else name
        if path in own:
            continue
        target = work / path
        if path in real:
            if target.is_symlink():
                target.unlink()
            _link_folder(snapshot, work, path, real, own)
        elif target.is_symlink() or not target.exists():
            target.unlink(missing_ok=True)
            target.symlink_to(here / name)
