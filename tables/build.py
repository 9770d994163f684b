"""Runs, specification and published numbers in, a Table out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tables import seeds
from tables.alike import refuse_other_data, refuse_other_teacher, refuse_unlike
from tables.errors import TableError
from tables.model import Cell, Row, SeedResult, Table
from tables.notes import table_notes
from tables.published import Published, PublishedNumbers
from tables.runs import Run, Study
from tables.spec import FULL_PRECISION, RowSpec, TableSpec

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
        wanted = ", ".join(row.method for row in spec.rows)
        raise TableError(
            f"{study.folder}: none of its runs belongs to table '{spec.name}' (methods {wanted})"
        )
    _refuse_unlike_groups(spec, groups)
    baseline = {bits: groups[spec.baseline, bits] for bits in spec.bits}
    rows = tuple(
        Row(
            row.method,
            row.label,
            spans=row.bits is not None,
            cells=tuple(
                _cell(
                    study,
                    spec,
                    row,
                    bits,
                    groups[row.method, bits],
                    baseline.get(bits, []),
                    published,
                    out,
                )
                for bits in _columns(row, spec)
            ),
        )
        for row in spec.rows
    )
    first = shown[0]
    return Table(
        name=spec.name,
        title=spec.title,
        caption=" ".join(spec.caption.split()),
        study=str(first.settings.get("study", study.folder.name)),
        subject=_subject(first),
        published_title=spec.published.title,
        baseline_label=next(row.label for row in spec.rows if row.method == spec.baseline),
        columns=spec.bits,
        rows=rows,
        notes=table_notes(
            study,
            spec,
            rows,
            _quantized(spec, groups) or shown,
            shown,
            _comparable(spec, first),
            teacher,
        ),
        provenance=_provenance(shown),
    )


def _subject(run: Run) -> str:
    return f"{run.settings.get('model.name', 'model')} on {run.settings.get('data.name', 'data')}"


def _columns(row: RowSpec, spec: TableSpec) -> tuple[int, ...]:
    return spec.bits if row.bits is None else (row.bits,)


def _runs_of(study: Study, row: RowSpec, bits: int) -> list[Run]:
    return [
        run for run in study.runs if run.method == row.method and run.wbits == run.abits == bits
    ]


def _quantized(spec: TableSpec, groups: dict[tuple[str, int], list[Run]]) -> list[Run]:
    wide = {row.method for row in spec.rows if row.bits is not None}
    return [run for (method, _), group in groups.items() if method not in wide for run in group]


def _refuse_unlike_groups(spec: TableSpec, groups: dict[tuple[str, int], list[Run]]) -> None:
    for group in groups.values():
        refuse_unlike(group, ["seed"])
    quantized = _quantized(spec, groups)
    refuse_unlike(quantized, [*spec.may_differ, *spec.may_differ_between_bits])
    for bits in spec.bits:
        refuse_unlike([run for run in quantized if run.wbits == bits], spec.may_differ)
    refuse_other_teacher(quantized)
    for row in spec.rows:
        if row.bits is not None:
            group = groups[row.method, row.bits]
            refuse_unlike(quantized[:1] + group, [*spec.may_differ, *row.may_differ])
    refuse_other_data([run for group in groups.values() for run in group])


def _cell(
    study: Study,
    spec: TableSpec,
    row: RowSpec,
    bits: int,
    runs: Sequence[Run],
    baseline: Sequence[Run],
    published: PublishedNumbers,
    out: Path,
) -> Cell:
    known = _published(spec, row, bits, published)
    shares = [run.oscillation_share for run in runs if run.oscillation_share is not None]
    mean = seeds.mean([run.top1 for run in runs]) if runs else None
    is_baseline = row.method == spec.baseline
    compared = row.bits is None and not is_baseline
    to_published = None
    if mean is not None and known.value is not None and _comparable(spec, runs[0]):
        to_published = mean - known.value
    return Cell(
        wbits=bits,
        abits=bits,
        status="missing" if not runs else "single" if len(runs) == 1 else "ok",
        reason="" if runs else _reason(study, row.method, bits),
        seeds=tuple(_seed(run, out) for run in sorted(runs, key=lambda run: run.seed)),
        mean=mean,
        spread=seeds.spread([run.top1 for run in runs]) if runs else None,
        is_baseline=is_baseline,
        difference=seeds.paired(_by_seed(runs), _by_seed(baseline)) if compared else None,
        oscillation_share=seeds.mean(shares) if shares and len(shares) == len(runs) else None,
        published=known,
        difference_to_published=to_published,
        details=_details(runs),
    )


def _by_seed(runs: Sequence[Run]) -> dict[int, float]:
    return {run.seed: run.top1 for run in runs}


def _published(spec: TableSpec, row: RowSpec, bits: int, published: PublishedNumbers) -> Published:
    if not row.published:
        return Published()
    if row.published == (FULL_PRECISION,):
        return published.full_precision(spec.published.model)
    return published.ablation(spec.published.model, row.published, f"w{bits}a{bits}")


def _comparable(spec: TableSpec, run: Run) -> bool:
    data, model = run.settings.get("data.name"), run.settings.get("model.name")
    return data in spec.published.comparable_data and model in spec.published.comparable_model


def _reason(study: Study, method: str, bits: int) -> str:
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


def _provenance(runs: Sequence[Run]) -> str:
    def listed(values: list[Any]) -> str:
        return ", ".join(sorted({str(value) for value in values if value is not None})) or "unknown"

    commit = listed([run.origin.commit and run.origin.commit[:10] for run in runs])
    dirty = sum(run.origin.dirty for run in runs)
    changes = f" ({dirty} with uncommitted changes)" if dirty else ""
    torch = listed([run.origin.torch for run in runs])
    device = listed([run.origin.device for run in runs])
    return f"{len(runs)} runs at commit {commit}{changes}; torch {torch}; device {device}."
