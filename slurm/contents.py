"""Contents of files and folders, hashed as DVC does, so that both can be compared."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

# Files of a folder, or of the whole workspace: relative path with slashes -> MD5 of the content.
Listing = Mapping[str, str]


def md5_file(path: Path) -> str:
    """Hex MD5 of a file, DVC's hash of it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def md5_folder(listing: Listing) -> str:
    """DVC's hash of a folder: the MD5 of its listing as JSON, and `.dir`."""
    rows = [{"md5": listing[name], "relpath": name} for name in sorted(listing)]
    text = json.dumps(rows, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def list_path(root: Path, path: str) -> dict[str, str]:
    """All files at `path` (a file or folder) below `root`; empty if nothing is there.

    Returns:
        Paths relative to `root`, so `path` itself for a file.
    """
    place = root / path
    if place.is_file():
        return {path: md5_file(place)}
    return {
        file.relative_to(root).as_posix(): md5_file(file)
        for file in sorted(place.rglob("*"))
        if file.is_file()
    }


def within(listing: Listing, path: str) -> dict[str, str]:
    """The part of a listing at or below `path`."""
    inside = path + "/"
    return {name: md5 for name, md5 in listing.items() if name == path or name.startswith(inside)}


def hash_of(listing: Listing, path: str) -> str | None:
    """DVC's hash of the file or folder `path` of a listing; None where the listing has none."""
    if path in listing:
        return listing[path]
    inside = path + "/"
    below = {name[len(inside) :]: md5 for name, md5 in listing.items() if name.startswith(inside)}
    return md5_folder(below) if below else None


def overlap(one: str, other: str) -> bool:
    """Whether two paths are the same, or one is inside the other."""
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")


class Store:
    """Contents by their hash, below one folder: what jobs that wait must still find unchanged.

    A file is a hard link to DVC's cache where that is possible, and costs nothing then.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, md5: str) -> Path:
        """Where the content is, or would be."""
        return self.folder / md5[:2] / md5[2:]

    def keep(self, md5: str, sources: Iterable[Path]) -> bool:
        """Make sure a content is here; `sources` are asked in turn. False where none has it."""
        target = self.path(md5)
        if target.exists():
            return True
        for source in sources:
            if not source.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f"{target.name}.{os.getpid()}")
            try:
                # Only what nobody edits in place may share its inode.
                if os.access(source, os.W_OK) and os.stat(source).st_mode & 0o222:
                    shutil.copyfile(source, draft)
                else:
                    link(source, draft)
            except FileNotFoundError:
                continue
            if md5_file(draft) != md5:
                draft.unlink()
                continue
            draft.replace(target)
            return True
        return False


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none.

    Raises:
        FileNotFoundError: there is no `source`.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        os.link(source, draft)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, draft)
    draft.replace(target)


def copy_path(source: Path, target: Path) -> None:
    """Copy a file or folder.

    Raises:
        OSError: there is no source.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def place_path(source: Path, target: Path) -> None:
    """Move a file or folder to `target`, from another file system too.

    What was there goes when the new one is there. What fails, or is killed, loses neither.
    """
    draft, former = (target.with_name(f".{target.name}.{word}") for word in ("new", "former"))
    for left_over in (draft, former):
        remove_path(left_over)
    bring_path(source, draft)
    # A file takes the place of a file at once.
    if target.is_dir() or (draft.is_dir() and (target.exists() or target.is_symlink())):
        target.replace(former)
    draft.replace(target)
    for path in (former, source):
        remove_path(path)


def bring_path(source: Path, draft: Path) -> None:
    """Move a file or folder to where nothing is; where a rename cannot do that, copy it.

    Raises:
        OSError: there is no room, for example. Nothing is left at `draft` then.
    """
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.replace(draft)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    try:
        if source.is_dir():
            shutil.copytree(source, draft, copy_function=_copy_file)
        else:
            _copy_file(source, draft)
    except (OSError, shutil.Error):
        remove_path(draft)
        raise


def _copy_file(source: str | Path, target: str | Path) -> None:
    with open(source, "rb") as old, open(target, "wb") as new:
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())


def remove_path(path: Path) -> None:
    """Remove a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
