"""Settings files, read and written: one strict dialect of YAML, that of DVC, which reads them too.

DVC reads YAML 1.2 with ruamel.yaml. PyYAML reads YAML 1.1, where `010` is 8 and `12e8` a text; with
both in one suite a run would be another one than its record says.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import ComposerError, MaxDepthExceededError
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import SafeRepresenter

from ofq_core.errors import SettingsError, shortened

# Far above any settings file, far below what takes long.
MAX_BYTES = 100_000
MAX_VALUES = 20_000
MAX_DEPTH = 50
MAX_DIGITS = 40

# Tags of values without the common beginning; what looks like a date is none of the suite's.
_TAG = "tag:yaml.org,2002:"
_VALUES = ("str", "int", "float", "bool", "null")
_TEXTS = (*_VALUES, "timestamp", "merge", "value")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")


class _Wrong(Exception):  # noqa: N818 - becomes a SettingsError
    """What is wrong at a node."""

    def __init__(self, node: Node, what: str) -> None:
        super().__init__(f"line {node.start_mark.line + 1}: {what}")


def read_yaml(path: Path, *, verbatim: bool = False) -> dict[str, Any]:
    """The mapping in a settings file, as DVC reads it.

    Args:
        verbatim: every scalar stays the text that was typed, so 68.00 is not shown as 68.0.

    Raises:
        SettingsError: it cannot be read, is no strict YAML, or no mapping: path, line and reason.
    """
    try:
        if path.exists() and not path.is_file():
            raise SettingsError(f"{path}: expected a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    if len(content) > MAX_BYTES:
        raise SettingsError(f"{path}: more than {MAX_BYTES // 1000} kB: no settings file")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{path}: no valid YAML: line {line}: not UTF-8 text") from None
    document = parse_yaml(text, str(path), verbatim=verbatim)
    if document is None:
        raise SettingsError(f"{path}: empty: expected keys with values")
    if not isinstance(document, dict):
        raise SettingsError(
            f"{path}: expected keys with values (`key: value`), found "
            f"{'a list' if isinstance(document, list) else 'one value'}"
        )
    return document


def parse_yaml(text: str, source: str, *, verbatim: bool = False) -> Any:
    """The one document in a text, None for an empty one; `source` is its name in messages.

    Raises:
        SettingsError: it is no strict YAML.
    """
    loader = YAML(typ="safe", pure=True)
    loader.Constructor = _Verbatim if verbatim else _Strict
    # As in YAML 1.2; else ruamel warns.
    loader.composer.warn_double_anchors = False
    # Where it is too deep, before ruamel has read on: its time grows with the square of the depth.
    loader.max_depth = MAX_DEPTH
    try:
        return loader.load(text)
    except Exception as error:  # beside YAMLError ruamel lets through what Python says to it
        reason = _reason(error)
    raise SettingsError(f"{source}: no valid YAML: {reason}")


def to_yaml(data: dict[str, Any]) -> str:
    """A mapping as YAML that reads the same as 1.1 and as 1.2."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Both
    writer.default_flow_style = False
    writer.allow_unicode = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    writer.dump(data, stream)
    return stream.getvalue()


def _reason(error: Exception) -> str:
    if isinstance(error, _Wrong):
        return str(error)
    if isinstance(error, ReaderError):
        return f"the character U+{error.character:04X} may not stand in it"
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark is not None else ""
        if isinstance(error, ComposerError) and "another document" in str(error.problem):
            return f"{where}a second document starts here"
        if isinstance(error, DuplicateKeyError):
            return f"{where}a key stands here twice"
        if isinstance(error, MaxDepthExceededError):
            return f"{where}nested more than {MAX_DEPTH} levels deep"
        return where + str(error.problem or error.context).splitlines()[0][:200]
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _kind(node: Node) -> str:
    return str(node.tag).removeprefix(_TAG)


class _Strict(SafeConstructor):
    """Values as DVC makes them, after a look at the whole document."""

    def construct_document(self, node: Node) -> Any:
        if self.resolver.processing_version == (1, 1):
            raise _Wrong(node, "YAML 1.1 is asked for above: expected 1.2, as without that line")
        _measure(node, self._value, {})
        return super().construct_document(node)

    def _value(self, node: ScalarNode, key: bool) -> None:
        kind, text = _kind(node), node.value
        if key and kind == "merge":
            return
        if key and kind not in ("str", "int"):
            raise _Wrong(node, f"{shortened(text)} cannot be a key: put a text in quotes")
        if kind == "timestamp":
            raise _Wrong(node, f"{shortened(text)} is a date in YAML: put it in quotes")
        if kind not in _VALUES:
            raise _Wrong(node, f"{shortened(text)} has the tag {shortened(kind)}, which is unknown")
        if kind == "str" and _CONTROL.search(text):
            raise _Wrong(node, f"{shortened(text)} holds a character that cannot be printed")
        if kind in ("int", "float") and len(text) > MAX_DIGITS:
            raise _Wrong(node, f"{shortened(text)} has too many digits")
        if kind in ("int", "float", "bool"):
            what = "neither true nor false" if kind == "bool" else "no number"
            try:
                self.construct_object(node)
            except (ValueError, LookupError):
                raise _Wrong(node, f"{shortened(text)} is {what}; quotes make a text") from None


class _Verbatim(SafeConstructor):
    """Every value as it was typed, except null."""

    def construct_document(self, node: Node) -> Any:
        _measure(node, self._value, {})
        return self._typed(node)

    def _value(self, node: ScalarNode, key: bool) -> None:
        kind = _kind(node)
        if kind not in _TEXTS:
            raise _Wrong(node, f"{shortened(node.value)} has the tag {shortened(kind)}")

    def _typed(self, node: Node) -> Any:
        if isinstance(node, MappingNode):
            return {key.value: self._typed(value) for key, value in node.value}
        if isinstance(node, SequenceNode):
            return [self._typed(item) for item in node.value]
        return None if _kind(node) == "null" else node.value


def _measure(
    node: Node, check: Callable[[ScalarNode, bool], None], known: dict[int, tuple[int, int]]
) -> tuple[int, int]:
    """Number of values in a node and its depth, where what an alias repeats counts again.

    Refuses what no settings file holds.
    """
    if id(node) in known:
        size, depth = known[id(node)]
        if not size:
            raise _Wrong(node, "a value that contains itself")
        return size, depth
    known[id(node)] = (0, 0)
    inside: list[Node] = []
    if isinstance(node, ScalarNode):
        check(node, False)
    elif _kind(node) not in ("map", "seq"):
        raise _Wrong(node, f"the tag {shortened(_kind(node))} is unknown")
    elif isinstance(node, MappingNode):
        _check_keys(node, check)
        inside = [value for _, value in node.value]
    else:
        inside = node.value
    measured = [_measure(item, check, known) for item in inside]
    size = 1 + sum(size for size, _ in measured)
    depth = 1 + max((depth for _, depth in measured), default=0)
    if size > MAX_VALUES:
        raise _Wrong(node, f"more than {MAX_VALUES} values, with those that aliases repeat")
    if depth > MAX_DEPTH:
        raise _Wrong(node, f"nested more than {MAX_DEPTH} levels deep")
    known[id(node)] = (size, depth)
    return size, depth


def _check_keys(node: MappingNode, check: Callable[[ScalarNode, bool], None]) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            raise _Wrong(key, "a list or mapping cannot be a key")
        check(key, True)
        if key.value in seen:
            raise _Wrong(key, f"the key {shortened(key.value)} stands here twice")
        seen.add(key.value)


class _Both(SafeRepresenter):
    """Quotes every text that could be something else, and gives numbers the dot that 1.1 needs."""

    def represent_str(self, data: str) -> ScalarNode:
        plain = _PLAIN.fullmatch(data) is not None and data.lower() not in _WORDS
        quotes = "'" if data.isascii() and data.isprintable() else '"'
        return self.represent_scalar(f"{_TAG}str", data, style=None if plain else quotes)

    def represent_float(self, data: float) -> ScalarNode:
        node = super().represent_float(data)
        if "e" in node.value and "." not in node.value:
            node.value = node.value.replace("e", ".0e")
        return node


_Both.add_representer(str, _Both.represent_str)
_Both.add_representer(float, _Both.represent_float)
