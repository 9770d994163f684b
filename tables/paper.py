"""All tables of the paper, from the runs of one study."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tables.boundary import boundary_sheet
from tables.build import build
from tables.claims import claims_sheet
from tables.cost import cost_sheet
from tables.main_table import main_sheet
from tables.methods import methods_sheet
from tables.noise import FILE as NOISE
from tables.noise import noise_sheet
from tables.published import PublishedNumbers
from tables.runs import Study, read_study
from tables.sheet_write import SheetPaths, sheet_files, sheet_paths
from tables.spec import TableSpec, load_spec
from tables.write import RenderedPaths, paths_of, remove_stale_rows, table_files, write_files

# In the order of a reader: what was claimed, why, against whom, how sure, at what price.
TABLES = ("ablation", "main", "methods", "claims", "boundary", "noise", "cost")
_ABLATION = "ablation"


@dataclass(frozen=True)
class Rendered:
    """A table that was written: its name, its title, and where its files lie."""

    name: str
    title: str
    paths: RenderedPaths | SheetPaths


def render_all(
    results: Path,
    out: Path,
    teacher: Path | None = None,
    only: Collection[str] | None = None,
    noise: Path | None = None,
) -> list[Rendered]:
    """Write every table of the runs below `results` into `out`, or none.

    `only` and `teacher`: see `tables.render.render`. `noise`: results of the noise injection, by
    default noise.json below `results`; where there is none, its table says so. The ablation is left
    out of a study with none of its methods.

    Raises:
        TableError: one line; the runs are missing, broken, or not comparable. Nothing is written.
    """
    study, spec, published = read_study(results, only), load_spec(_ABLATION), PublishedNumbers()
    rendered: list[Rendered] = []
    contents: dict[Path, bytes] = {}
    if _has_ablation(study, spec):
        table = build(study, spec, published, out, teacher)
        paths = paths_of(table.name, out, tuple(row.method for row in table.rows))
        contents |= table_files(table, out)
        rendered.append(Rendered(table.name, table.title, paths))
    for sheet in (
        main_sheet(study, published),
        methods_sheet(study, spec),
        claims_sheet(study, spec),
        boundary_sheet(study, spec, published),
        noise_sheet(study, published, results / NOISE if noise is None else noise),
        cost_sheet(study, published),
    ):
        contents |= sheet_files(sheet, out)
        rendered.append(Rendered(sheet.name, sheet.title, sheet_paths(sheet.name, out)))
    write_files(contents, out)
    for one in rendered:
        if isinstance(one.paths, RenderedPaths):
            remove_stale_rows(one.paths)
    return rendered


def _has_ablation(study: Study, spec: TableSpec) -> bool:
    wanted = {
        (row.method, bits)
        for row in spec.rows
        for bits in (spec.bits if row.bits is None else (row.bits,))
    }
    return any(run.wbits == run.abits and (run.method, run.wbits) in wanted for run in study.runs)
