"""Runs, specification and published numbers in, a Table out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tables import seeds
from tables.alike import refuse_other_data, refuse_other_teacher, refuse_unlike
from tables.backbone import BACKBONES, Backbone, backbone_of, comparable
from tables.errors import TableError
from tables.model import Cell, Row, SeedResult, Table
from tables.notes import table_notes
from tables.published import Published, PublishedNumbers
from tables.runs import Run, Study
from tables.spec import FULL_PRECISION, RowSpec, TableSpec

Groups = dict[tuple[str, int], list[Run]]
RUN_FILES = ("metrics.json", "settings.yaml", "history.csv", "oscillation.json", "env.json")


def build(
    study: Study, spec: TableSpec, published: PublishedNumbers, out: Path, teacher: Path | None
) -> Table:
    """Fill the table; `out` is where it will lie, since links are relative to it.

    TableError if the runs were not made alike, or none of them belongs to the table.
    """
    groups = {
        (row.method, bits): _runs_of(study, row, bits)
        for row in spec.rows
        for bits in _columns(row, spec)
    }
    shown = [run for group in groups.values() for run in group]
    if not shown:
        wanted = ", ".join(row.method for row in spec.rows if not row.optional)
        raise TableError(
            f"{study.folder}: none of its runs belongs to table '{spec.name}' (methods {wanted})"
        )
    _refuse_unlike_groups(spec, groups)
    first = shown[0]
    beside = backbone_of(first.settings) or BACKBONES[spec.published.model]
    context = _Context(study, spec, groups, published, beside, out)
    rows = tuple(
        Row(
            row.method,
            row.label + (" (outdated)" if study.method(row.method).outdated else ""),
            spans=row.bits is not None,
            cells=tuple(_cell(context, row, bits) for bits in _columns(row, spec)),
            block=row.block,
        )
        for row in spec.rows
        if not row.optional or any(groups[row.method, bits] for bits in _columns(row, spec))
    )
    return Table(
        name=spec.name,
        title=spec.title,
        caption=" ".join(spec.caption.split()),
        study=str(first.settings.get("study", study.folder.name)),
        subject=subject(first),
        published_title=spec.published.title.replace("{published_model}", beside.label),
        baseline_label=next(row.label for row in spec.rows if row.method == spec.baseline),
        columns=spec.bits,
        rows=rows,
        notes=table_notes(
            study,
            spec,
            rows,
            _quantized(spec, groups) or shown,
            shown,
            comparable(first.settings, spec.published.comparable_data) is not None,
            teacher,
            beside.label,
        ),
        provenance=provenance(shown),
    )


@dataclass(frozen=True)
class _Context:
    """What the cells of a table have in common."""

    study: Study
    spec: TableSpec
    groups: Groups
    published: PublishedNumbers
    beside: Backbone
    out: Path


def subject(run: Run) -> str:
    """Model and data of a run, as in the title of a table."""
    return f"{run.settings.get('model.name', 'model')} on {run.settings.get('data.name', 'data')}"


def _columns(row: RowSpec, spec: TableSpec) -> tuple[int, ...]:
    return spec.bits if row.bits is None else (row.bits,)


def _runs_of(study: Study, row: RowSpec, bits: int) -> list[Run]:
    return [
        run for run in study.runs if run.method == row.method and run.wbits == run.abits == bits
    ]


def _quantized(spec: TableSpec, groups: Groups, block: str = "") -> list[Run]:
    """The runs of all quantized rows of a block, by default of the rows outside blocks."""
    methods = {row.method for row in spec.rows if row.bits is None and row.block == block}
    return [run for (method, _), group in groups.items() if method in methods for run in group]


def _refuse_unlike_groups(spec: TableSpec, groups: Groups) -> None:
    for group in groups.values():
        refuse_unlike(group, ["seed"])
    quantized = _quantized(spec, groups)
    taught = list(quantized)
    refuse_unlike_bits(quantized, spec)
    for block in spec.blocks:
        runs = _quantized(spec, groups, block.suffix)
        refuse_unlike_bits(runs, spec)
        for bits in spec.bits:
            # One of each: within a block, and outside of them, all are alike by now.
            pair = [next((r for r in part if r.wbits == bits), None) for part in (quantized, runs)]
            both = [run for run in pair if run is not None]
            refuse_unlike(both, [*spec.may_differ, *block.may_differ])
        taught += runs
    refuse_other_teacher(taught)
    for row in spec.rows:
        if row.bits is not None:
            group = groups[row.method, row.bits]
            refuse_unlike(quantized[:1] + group, [*spec.may_differ, *row.may_differ])
    refuse_other_data([run for group in groups.values() for run in group])


def refuse_unlike_bits(runs: Sequence[Run], spec: TableSpec) -> None:
    """TableError if runs differ in more than the table may; bit widths may differ a little more."""
    refuse_unlike(runs, [*spec.may_differ, *spec.may_differ_between_bits])
    for bits in sorted({run.wbits for run in runs}):
        refuse_unlike([run for run in runs if run.wbits == bits], spec.may_differ)


def _cell(context: _Context, row: RowSpec, bits: int) -> Cell:
    groups, spec = context.groups, context.spec
    runs = groups[row.method, bits]
    known = _published(context, row, bits)
    shares = [run.oscillation_share for run in runs if run.oscillation_share is not None]
    mean = seeds.mean([run.top1 for run in runs]) if runs else None
    is_baseline = row.method == spec.baseline + row.block
    baseline = groups.get((spec.baseline + row.block, bits), [])
    # The same method outside the block.
    own = groups.get((row.method.removesuffix(row.block), bits), []) if row.block else []
    compared = row.bits is None and not is_baseline
    to_published = None
    if (
        mean is not None
        and known.value is not None
        and comparable(runs[0].settings, spec.published.comparable_data) is not None
    ):
        to_published = mean - known.value
    return Cell(
        wbits=bits,
        abits=bits,
        status="missing" if not runs else "single" if len(runs) == 1 else "ok",
        reason="" if runs else missing_reason(context.study, row.method, bits),
        seeds=tuple(_seed(run, context.out) for run in sorted(runs, key=lambda run: run.seed)),
        mean=mean,
        spread=seeds.spread([run.top1 for run in runs]) if runs else None,
        is_baseline=is_baseline,
        difference=seeds.paired(by_seed(runs), by_seed(baseline)) if compared else None,
        oscillation_share=seeds.mean(shares) if shares and len(shares) == len(runs) else None,
        published=known,
        difference_to_published=to_published,
        details=_details(runs),
        difference_of_block=seeds.paired(by_seed(runs), by_seed(own)) if own else None,
    )


def by_seed(runs: Sequence[Run]) -> dict[int, float]:
    """Test top-1 in percent of each seed."""
    return {run.seed: run.top1 for run in runs}


def _published(context: _Context, row: RowSpec, bits: int) -> Published:
    if not row.published:
        return Published()
    if row.published == (FULL_PRECISION,):
        return context.published.full_precision(context.beside.key)
    return context.published.ablation(context.beside.key, row.published, f"w{bits}a{bits}")


def missing_reason(study: Study, method: str, bits: int) -> str:
    """Why a method has no run."""
    prefix = f"{method}-w{bits}a{bits}-s"
    unfinished = any(name.startswith(prefix) for name in study.unfinished)
    return "not finished" if unfinished else "no run"


def _seed(run: Run, out: Path) -> SeedResult:
    folder = Path(os.path.relpath(run.folder.resolve(), out.resolve())).as_posix()
    files = tuple(name for name in RUN_FILES if (run.folder / name).is_file())
    return SeedResult(run.seed, run.top1, run.oscillation_share, quote(folder), files)


def _details(runs: Sequence[Run]) -> dict[str, float]:
    details: dict[str, float] = {}
    if runs:
        for key in ("top5", "loss", "val_top1"):
            known = [value for run in runs if (value := getattr(run, key)) is not None]
            if len(known) == len(runs):
                details[f"{key}_mean"] = seeds.mean(known)
        for key in runs[0].costs:
            values = [run.costs[key] for run in runs if key in run.costs]
            if len(values) == len(runs):
                details[f"{key}_mean"] = seeds.mean(values)
    return details


def provenance(runs: Sequence[Run]) -> str:
    """One sentence on how many runs there are, of which commit, and what they ran on."""

    def listed(values: list[Any]) -> str:
        return ", ".join(sorted({str(value) for value in values if value is not None})) or "unknown"

    commit = listed([run.origin.commit and run.origin.commit[:10] for run in runs])
    dirty = sum(run.origin.dirty for run in runs)
    changes = f" ({dirty} with uncommitted changes)" if dirty else ""
    torch = listed([run.origin.torch for run in runs])
    device = listed([run.origin.device for run in runs])
    return f"{len(runs)} runs at commit {commit}{changes}; torch {torch}; device {device}."
