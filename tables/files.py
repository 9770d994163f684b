"""Read YAML and JSON files whose top level is a mapping, with errors that name the file."""

from pathlib import Path
from typing import Any

from ofq_core.errors import SettingsError
from ofq_core.files import parse_json
from ofq_core.yaml_files import read_yaml as read_settings_file
from tables.errors import TableError


def _mapping(document: object, path: Path) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise TableError(
            f"{path}: expected a mapping of keys to values, found {type(document).__name__}"
        )
    return {str(key): value for key, value in document.items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise TableError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; TableError names a file that is missing or truncated."""
    try:
        return _mapping(parse_json(_text(path)), path)
    except ValueError as error:
        raise TableError(
            f"{path}: not valid JSON, truncated perhaps ({_one_line(error)})"
        ) from error


def read_yaml(path: Path, *, verbatim: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file; TableError names the file if it is missing, malformed or not a
    mapping.

    With `verbatim` every scalar stays the text that was typed, so that 68.00 is not shown as 68.0.
    """
    try:
        return _mapping(read_settings_file(path, verbatim=verbatim), path)
    except SettingsError as error:
        raise TableError(str(error)) from error


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys: {"recipe": {"lr": 1}} becomes {"recipe.lr": 1}. Lists stay
    values.
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
