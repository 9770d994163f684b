"""The names of a model's classes, in the order of its outputs, as they stand beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

from ofq_core.errors import CheckpointError, DataError
from ofq_core.files import parse_json

FILE, KEY = "env.json", "class_names"


def stored_class_names(weights: Path) -> list[str] | None:
    """The classes of the data that some weights were trained on; None where nothing says them.

    Raises:
        CheckpointError: the file beside the weights is damaged.
    """
    path = weights.with_name(FILE)
    if not path.is_file():
        return None
    try:
        names = parse_json(path.read_text()).get(KEY)
        return None if names is None else [str(name) for name in names]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from error


def composed(names: Sequence[str]) -> list[str]:
    """The names with accents written in one way; file systems differ in that."""
    return [normalize("NFC", name) for name in names]


def check_class_names(
    source: str, trained: Sequence[str] | None, data: Sequence[str] | None, where: str
) -> bool:
    """Check that data have the classes that a model was trained on, in the same order.

    Args:
        source: what the message calls the model. where: what it calls the data.

    Returns:
        False where one of both does not say its names, so that nothing could be checked.

    Raises:
        DataError: naming the first class that differs.
    """
    if trained is None or data is None:
        return False
    trained, data = composed(trained), composed(data)
    if trained == data:
        return True
    if len(trained) != len(data):
        raise DataError(
            f"{where} has {len(data)} classes, and {source} was trained on {len(trained)}"
        )
    first = next(i for i, (a, b) in enumerate(zip(trained, data, strict=True)) if a != b)
    order = ", the same classes in another order" if sorted(trained) == sorted(data) else ""
    raise DataError(
        f"{where}: class {first} is {data[first]!r}, and {source} was trained with "
        f"{trained[first]!r} there{order}"
    )
