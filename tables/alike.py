"""Refuse to put runs side by side that were not made alike."""

from collections.abc import Iterable, Sequence
from typing import Any

from tables.errors import TableError
from tables.runs import Run

_ABSENT = "(absent)"


def refuse_unlike(runs: Sequence[Run], may_differ: Iterable[str]) -> None:
    """TableError if two runs differ in a setting outside `may_differ` (keys or whole sections)."""
    allowed = tuple(may_differ)
    for run in runs[1:]:
        for key in differing_keys(runs[0], run):
            if not covered(key, allowed):
                first, other = _value(runs[0], key), _value(run, key)
                raise TableError(
                    f"{runs[0].folder} and {run.folder} differ in {key}: {first} and {other}; "
                    "a table compares like with like"
                )


def refuse_other_data(runs: Sequence[Run]) -> None:
    """TableError if two runs differ in the data manifest or the number of test images."""
    for run in runs[1:]:
        first = runs[0]
        for what, one, other in (
            ("the number of test images", first.n_images, run.n_images),
            ("the data manifest", first.origin.manifest, run.origin.manifest),
        ):
            if one is not None and other is not None and one != other:
                raise TableError(
                    f"{first.folder} and {run.folder} differ in {what}: {one} and {other}"
                )


def refuse_other_teacher(runs: Sequence[Run]) -> None:
    """TableError if two runs had different teachers: all rows of a table share one."""
    taught = [run for run in runs if run.origin.teacher is not None]
    for run in taught[1:]:
        if run.origin.teacher != taught[0].origin.teacher:
            raise TableError(
                f"{taught[0].folder} and {run.folder} were taught by different teachers"
            )


def differing_keys(one: Run, other: Run) -> list[str]:
    """The dotted settings in which two runs differ, sorted."""
    keys = one.settings.keys() | other.settings.keys()
    return sorted(key for key in keys if _value(one, key) != _value(other, key))


def _value(run: Run, key: str) -> Any:
    return run.settings.get(key, _ABSENT)


def covered(key: str, allowed: Iterable[str]) -> bool:
    """Whether a dotted key, or a section above it, is among the allowed ones."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in allowed)
