"""Cell, Row and Table: everything that a renderer needs, and nothing that it has to compute."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tables.published import Published
from tables.seeds import Difference

Status = Literal["ok", "single", "missing"]


@dataclass(frozen=True)
class SeedResult:
    """One run behind a cell: top-1 in percent, result files relative to the table's folder."""

    seed: int
    top1: float
    oscillation_share: float | None
    folder: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One method at one bit width.

    Accuracies in percent, differences in percentage points, shares as fractions. `single` means one
    seed, so no spread; `missing` means no run, and `reason` says why. `details` holds further means
    for the CSV file.
    """

    wbits: int
    abits: int
    status: Status
    reason: str
    seeds: tuple[SeedResult, ...]
    mean: float | None
    spread: float | None
    is_baseline: bool
    difference: Difference | None
    oscillation_share: float | None
    published: Published
    difference_to_published: float | None
    details: Mapping[str, float]
    # To the same method at the study's own fidelity; None outside blocks of another fidelity.
    difference_of_block: Difference | None = None

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.seeds)

    @property
    def bits(self) -> str:
        """The bit widths as in a run folder's name, such as `w2a2`."""
        return f"w{self.wbits}a{self.abits}"

    @property
    def runs(self) -> tuple[str, ...]:
        """The run folders this cell came from, relative to the folder of the table."""
        return tuple(seed.folder for seed in self.seeds)


@dataclass(frozen=True)
class Row:
    """One method; a row that `spans` has a single cell for all columns (full precision).

    `block`: suffix of the rows at another fidelity that it is one of, if any.
    """

    method: str
    label: str
    spans: bool
    cells: tuple[Cell, ...]
    block: str = ""

    def cell(self, column: int) -> Cell:
        """The cell shown in a column."""
        return self.cells[0] if self.spans else self.cells[column]


@dataclass(frozen=True)
class Table:
    """A table ready to be written; `columns` are bit widths of weights and activations alike."""

    name: str
    title: str
    caption: str
    study: str
    subject: str
    published_title: str
    baseline_label: str
    columns: tuple[int, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    provenance: str

    @property
    def has_blocks(self) -> bool:
        """Whether there are rows at another fidelity than the study's own."""
        return any(row.block for row in self.rows)

    def heading(self, bits: int) -> str:
        """The heading of a column, such as `W2A2`."""
        return f"W{bits}A{bits}"
