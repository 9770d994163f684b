"""The specification of a table: which rows, which columns, which words."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tables.errors import TableError
from tables.files import read_yaml

SPECS = Path(__file__).with_name("specs")
FULL_PRECISION = "full_precision"


@dataclass(frozen=True)
class RowSpec:
    """One row; `published` holds the components of the published row, empty if there is none.

    `bits` is set where the row has one bit width in every column (full precision). An `optional`
    row is left out where it has no run. `block` is the suffix of the block it belongs to, if any.
    """

    method: str
    label: str
    published: tuple[str, ...]
    bits: int | None = None
    may_differ: tuple[str, ...] = ()
    optional: bool = False
    block: str = ""


@dataclass(frozen=True)
class BlockSpec:
    """The quantized rows once more, as methods whose names end in `suffix`.

    They differ from the other rows in `may_differ` and are compared with the baseline of their own
    block. `label` follows that of the row.
    """

    suffix: str
    label: str
    may_differ: tuple[str, ...]


@dataclass(frozen=True)
class PublishedSpec:
    """The published model beside studies of a model of their own, and the data that is compared.

    `title` still holds {published_model}.
    """

    model: str
    title: str
    comparable_data: tuple[str, ...]


@dataclass(frozen=True)
class TableSpec:
    """A table before any result is read; notes still hold their {placeholders}."""

    name: str
    title: str
    caption: str
    bits: tuple[int, ...]
    baseline: str
    may_differ: tuple[str, ...]
    may_differ_between_bits: tuple[str, ...]
    rows: tuple[RowSpec, ...]
    blocks: tuple[BlockSpec, ...]
    published: PublishedSpec
    notes: tuple[str, ...]
    published_note: str
    comparable_note: str


def load_spec(name: str, folder: Path = SPECS) -> TableSpec:
    """Read `<name>.yaml`; TableError names a key that is unknown, missing or ill-typed."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(spec.stem for spec in folder.glob("*.yaml")))
        raise TableError(f"table '{name}' is unknown, there are: {known}")
    keys = _Keys(read_yaml(path), str(path))
    published = keys.mapping("published")
    comparable = published.mapping("comparable")
    rows = tuple(_row(_Keys(item, f"{path}: rows")) for item in keys.items("rows"))
    blocks = tuple(_block(_Keys(item, f"{path}: blocks")) for item in keys.items("blocks", []))
    spec = TableSpec(
        name=name,
        title=keys.text("title"),
        caption=keys.text("caption"),
        bits=tuple(_bits(item, str(path)) for item in keys.items("bits")),
        baseline=keys.text("baseline"),
        may_differ=keys.names("may_differ"),
        may_differ_between_bits=keys.names("may_differ_between_bits", default=[]),
        rows=(*rows, *(_in_block(row, block) for block in blocks for row in rows if not row.bits)),
        blocks=blocks,
        published=PublishedSpec(
            published.text("model"),
            published.text("title"),
            comparable.names("data"),
        ),
        notes=keys.names("notes"),
        published_note=keys.text("published_note"),
        comparable_note=keys.text("comparable_note"),
    )
    for part in (keys, published, comparable):
        part.refuse_rest()
    methods = [row.method for row in spec.rows]
    if len(set(methods)) != len(methods):
        raise TableError(f"{path}: two rows have the same method")
    if spec.baseline not in methods:
        raise TableError(f"{path}: the baseline '{spec.baseline}' is not among the rows")
    return spec


def _row(keys: "_Keys") -> RowSpec:
    published = keys.optional("published")
    if published is not None and published != FULL_PRECISION and not isinstance(published, list):
        raise TableError(
            f"{keys.where}: 'published' is {published!r}, expected '{FULL_PRECISION}' or a list"
        )
    bits = keys.optional("bits")
    row = RowSpec(
        method=keys.text("method"),
        label=keys.text("label"),
        published=(published,) if isinstance(published, str) else tuple(published or ()),
        bits=None if bits is None else _bits(bits, keys.where),
        may_differ=keys.names("may_differ", default=[]),
        optional=keys.flag("optional"),
    )
    keys.refuse_rest()
    return row


def _block(keys: "_Keys") -> BlockSpec:
    block = BlockSpec(keys.text("suffix"), keys.text("label"), keys.names("may_differ"))
    keys.refuse_rest()
    return block


def _in_block(row: RowSpec, block: BlockSpec) -> RowSpec:
    return replace(
        row,
        method=row.method + block.suffix,
        label=f"{row.label}, {block.label}",
        may_differ=block.may_differ,
        optional=True,
        block=block.suffix,
    )


def _bits(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= 32:
        raise TableError(f"{where}: bits {value!r}, expected a whole number from 2 to 32")
    return value


class _Keys:
    """A mapping whose keys are taken one by one, so that what is left over is a misspelt key."""

    def __init__(self, document: object, where: str) -> None:
        if not isinstance(document, dict):
            raise TableError(f"{where}: expected keys and values, found {document!r}")
        self._left: dict[str, Any] = dict(document)
        self._known: list[str] = []
        self.where = where

    def optional(self, key: str) -> Any:
        self._known.append(key)
        return self._left.pop(key, None)

    def _required(self, key: str, kind: type, default: object = None) -> Any:
        value = self.optional(key)
        value = default if value is None else value
        if value is None:
            raise TableError(f"{self.where}: key '{key}' is missing")
        if not isinstance(value, kind):
            raise TableError(f"{self.where}: '{key}' is {value!r}, expected a {kind.__name__}")
        return value

    def text(self, key: str) -> str:
        return str(self._required(key, str))

    def flag(self, key: str) -> bool:
        return bool(self._required(key, bool, default=False))

    def items(self, key: str, default: list[Any] | None = None) -> list[Any]:
        return list(self._required(key, list, default))

    def names(self, key: str, default: list[str] | None = None) -> tuple[str, ...]:
        items = self._required(key, list, default)
        for item in items:
            if not isinstance(item, str):
                raise TableError(f"{self.where}: '{key}' holds {item!r}, expected text")
        return tuple(items)

    def mapping(self, key: str) -> "_Keys":
        return _Keys(self._required(key, dict), f"{self.where}: {key}")

    def refuse_rest(self) -> None:
        if self._left:
            unknown = ", ".join(sorted(str(key) for key in self._left))
            raise TableError(
                f"{self.where}: unknown key {unknown}; allowed are {', '.join(self._known)}"
            )
