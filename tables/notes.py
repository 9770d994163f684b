"""The notes under a table: the specification, filled in, and what the runs disclose."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tables.alike import covered, differing_keys
from tables.errors import TableError
from tables.files import read_json
from tables.model import Row
from tables.names import method_name
from tables.runs import Run, Study
from tables.spec import TableSpec

_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_.]+)\}")
TRUST_NOTE = (
    "Trust of a published value: primary (p) = read in the authors' own README or abstract; "
    "derived (d) = arithmetic on primary values; secondary (s) = quoted by a third party; "
    "user (u) = measured by an outside reproducer. LSQ +x = only the gain over LSQ is known; "
    "not found = left empty, not guessed."
)


def table_notes(
    study: Study,
    spec: TableSpec,
    rows: Sequence[Row],
    quantized: Sequence[Run],
    shown: Sequence[Run],
    comparable: bool,
    teacher: Path | None,
    published_model: str,
) -> tuple[str, ...]:
    """All notes in order; TableError if the quantized runs disagree on a placeholder's value."""
    last = spec.comparable_note if comparable else spec.published_note
    where = f"table '{spec.name}'"
    known = {"published_model": published_model}
    notes = [fill(note, quantized, where, known) for note in (*spec.notes, last)]
    notes.append(TRUST_NOTE)
    notes += [
        note
        for note in (
            _published_detail(rows),
            *_of_blocks(spec, quantized, shown),
            _own_recipe(spec, quantized, shown),
            _recipe_of_bits(spec, quantized),
        )
        if note
    ]
    if teacher is not None:
        notes.append(teacher_note(teacher))
    notes += _missing(spec, rows)
    notes += not_counted(study)
    left_out = sorted({f"{run.method}-{run.bits}" for run in study.runs if run not in shown})
    if left_out:
        notes.append(f"In the results folder but not in this table: {', '.join(left_out)}.")
    return tuple(notes)


def not_counted(study: Study) -> list[str]:
    """Sentences on the run folders of a study that no table can count, and on those that are
    outdated.
    """
    notes = []
    if study.outdated:
        why = " ".join(f"{method_name(key).label}: {why}." for key, why in study.outdated.items())
        notes.append(f"Outdated, so nothing rests on them until they are run again. {why}")
    if study.unfinished:
        notes.append(f"Not finished, so not counted: {', '.join(study.unfinished)}.")
    if study.left_over:
        notes.append(
            "In the results folder from an earlier grid, so not counted: "
            f"{', '.join(study.left_over)}."
        )
    return notes


def fill(
    template: str, runs: Sequence[Run], where: str, known: Mapping[str, Any] | None = None
) -> str:
    """Replace {dotted.keys} by the one value that all `runs` have for them, or by what is known."""
    computed = {**_computed(runs), **(known or {})}

    def value(match: re.Match[str]) -> str:
        key = match.group(1)
        if key in computed:
            return str(computed[key])
        values = {str(run.settings[key]) for run in runs if key in run.settings}
        if len(values) != 1 or any(key not in run.settings for run in runs):
            found = ", ".join(sorted(values)) or "no value"
            raise TableError(
                f"{where}: a note needs one value of {key} in every settings.yaml, found {found}"
            )
        return values.pop()

    return _PLACEHOLDER.sub(value, " ".join(template.split()))


def _computed(runs: Sequence[Run]) -> Mapping[str, Any]:
    computed: dict[str, Any] = {
        "n_images": runs[0].n_images,
        "image_points": f"{100 / runs[0].n_images:.2g}",
    }
    settings = runs[0].settings
    epochs = settings.get("recipe.epochs")
    last = settings.get("recipe.cga_epochs")
    cooldown = settings.get("recipe.cooldown_epochs", 0) if settings.get("fidelity.cooldown") else 0
    if isinstance(epochs, int) and isinstance(last, int):
        computed["total_epochs"] = epochs + cooldown + last
        computed["cooldown"] = f"{cooldown} epochs of cool-down and " if cooldown else ""
    return computed


def teacher_note(path: Path) -> str:
    """One sentence on the teacher, from JSON with top1 (percent), n_images and maybe epochs."""
    teacher = read_json(path)
    for key in ("top1", "n_images"):
        if isinstance(teacher.get(key), bool) or not isinstance(teacher.get(key), int | float):
            raise TableError(f"{path}: key '{key}' is missing or not a number")
    epochs = f" after {teacher['epochs']} epochs" if teacher.get("epochs") is not None else ""
    top1, n_images = teacher["top1"], teacher["n_images"]
    return f"The teacher has a test top-1 of {top1:.2f} % on {n_images} images{epochs}."


def _published_detail(rows: Sequence[Row]) -> str:
    noted = [(row.label, row.cells[0].published.note) for row in rows if not row.block]
    details = [f"{label}: {note}" for label, note in noted if note and note != "not found"]
    return f"On the published values. {'; '.join(details)}." if details else ""


def _own_recipe(spec: TableSpec, quantized: Sequence[Run], shown: Sequence[Run]) -> str:
    """Disclose, key by key, where a row that may differ does differ from the others."""
    sentences = []
    for row in spec.rows:
        own = [run for run in shown if run.method == row.method]
        if row.block or not row.may_differ or not own or quantized[0].method == row.method:
            continue
        keys = [key for key in differing_keys(own[0], quantized[0]) if covered(key, row.may_differ)]
        ours, theirs = own[0].settings, quantized[0].settings
        pairs = [
            f"{key} {ours.get(key, 'unset')} (quantized rows: {theirs.get(key, 'unset')})"
            for key in keys
        ]
        if pairs:
            sentences.append(f"{row.label} has its own {', '.join(pairs)}.")
    return " ".join(sentences)


def _of_blocks(spec: TableSpec, quantized: Sequence[Run], shown: Sequence[Run]) -> list[str]:
    """What the rows of a block are compared with, and, key by key, where they differ."""
    notes = []
    for block in spec.blocks:
        methods = {row.method for row in spec.rows if row.block == block.suffix}
        own = [run for run in shown if run.method in methods]
        if not own or quantized[0].method in methods:
            continue
        keys = [
            key for key in differing_keys(own[0], quantized[0]) if covered(key, block.may_differ)
        ]
        pairs = [
            f"{key} {own[0].settings.get(key, 'unset')} ({quantized[0].settings.get(key, 'unset')})"
            for key in keys
        ]
        baseline = f"{spec.baseline}{block.suffix}"
        notes.append(
            f"Rows marked '{block.label}' are the same methods with other settings, in parentheses "
            f"those of the rest: {', '.join(pairs) or 'none'}. Their differences are to the "
            f"baseline at the same settings, {baseline}.{_other_epochs(own, quantized)}"
        )
    return notes


def _other_epochs(own: Sequence[Run], others: Sequence[Run]) -> str:
    """The cool-down of the released code makes its runs longer, whatever another note says."""
    epochs, rest = (_computed(runs).get("total_epochs") for runs in (own, others))
    return "" if epochs == rest else f" They take {epochs} epochs, not {rest}."


def _recipe_of_bits(spec: TableSpec, quantized: Sequence[Run]) -> str:
    """Disclose, key by key, where the columns differ, as the published recipes do."""
    first = {bits: next((r for r in quantized if r.wbits == bits), None) for bits in spec.bits}
    runs = {bits: run for bits, run in first.items() if run is not None}
    keys = {
        key
        for one, other in combinations(runs.values(), 2)
        for key in differing_keys(one, other)
        if covered(key, spec.may_differ_between_bits)
    }
    told = [
        f"{key} "
        + ", ".join(f"{run.settings.get(key, 'unset')} ({run.bits})" for run in runs.values())
        for key in sorted(keys)
    ]
    return f"Each bit width has its own {'; '.join(told)}." if told else ""


def _missing(spec: TableSpec, rows: Sequence[Row]) -> list[str]:
    missing = [
        f"{row.label} W{cell.wbits}A{cell.abits}: {cell.reason}"
        for row in rows
        for cell in row.cells
        if cell.status == "missing"
    ]
    return [f"Missing cells (—). {'; '.join(missing)}."] if missing else []
