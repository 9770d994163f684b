"""The main comparison (Table 2 of the paper): what was published, and what of it is seen here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tables import text
from tables.backbone import BACKBONES, Backbone, comparable, is_distilled
from tables.build import missing_reason, provenance, subject
from tables.measured import FULL_PRECISION, Measured, of_bits
from tables.notes import TRUST_NOTE, not_counted
from tables.published import Published, PublishedNumbers
from tables.runs import Run, Study
from tables.sheet import Grid, Item, Sheet, item, known, line

NAME = "main"
TOLERANCE = 0.3
_BITS = (2, 3, 4)
_LABELS = {"ofq": "OFQ", "vvtq": "VVTQ", "qvit": "Q-ViT", "gplq": "GPLQ", "aphq": "APHQ-ViT"}
# Papers whose whole method this project runs, and the methods that are it.
_OURS = {"ofq": ("ofq", "ofq_released", "ofq_described")}
_FIDELITY = {"ofq_released": ", released code", "ofq_described": ", as described"}


@dataclass(frozen=True)
class _Entry:
    """A published value, and what was measured for it; `bits` is 32 for full precision."""

    model: str
    paper: str
    label: str
    bits: int
    published: Published
    measured: Measured
    method: str

    @property
    def difference(self) -> float | None:
        """Measured minus published, in points."""
        if self.measured.mean is None or self.published.value is None:
            return None
        return self.measured.mean - self.published.value

    @property
    def status(self) -> str:
        """within or outside the tolerance, unpublished, or not run."""
        if self.published.value is None:
            return "unpublished"
        if self.difference is None:
            return "not run"
        allowed = max(TOLERANCE, 2 * (self.measured.spread or 0.0))
        # Differences of percentages that were printed with two decimals carry binary noise.
        return "within" if abs(self.difference) <= allowed + 1e-9 else "outside"

    @property
    def width(self) -> str:
        """The bit widths as in a heading."""
        return "FP32" if self.bits == 32 else f"W{self.bits}A{self.bits}"


def main_sheet(study: Study, published: PublishedNumbers) -> Sheet:
    """Every published value with its status in this study; TableError if seeds are unlike."""
    entries = [entry for model in BACKBONES.values() for entry in _entries(study, published, model)]
    used = [run for entry in entries for run in entry.measured.runs]
    return Sheet(
        name=NAME,
        title="Main comparison with published values",
        subject=subject(study.runs[0]),
        caption=(
            "ImageNet-1k top-1 (%) as published, this study's mean ± sample standard deviation (n "
            "seeds) where it runs the same model on the same data, and whether the two agree."
        ),
        grids=tuple(_grid(model, entries) for model in BACKBONES.values()),
        notes=tuple(_notes(study, published, entries)),
        provenance=provenance(used) if used else "None of the study's runs is in this table.",
        records=tuple(_record(entry) for entry in entries),
        summary=_summary(entries),
    )


def _entries(study: Study, published: PublishedNumbers, model: Backbone) -> Iterator[_Entry]:
    runs = [run for run in study.runs if comparable(run.settings) == model]
    # The published full-precision values are those of models without a distillation token.
    full = [r for r in runs if r.method == FULL_PRECISION and not is_distilled(r.settings)]
    yield _Entry(
        model=model.key,
        paper=FULL_PRECISION,
        label="Full precision",
        bits=32,
        published=published.full_precision(model.key),
        measured=Measured(of_bits(full, 32)),
        method=FULL_PRECISION,
    )
    for paper in published.section("papers"):
        methods = _OURS.get(paper, ("",))
        for method in methods:
            own = [run for run in runs if method and run.method == method]
            if method != methods[0] and not own:
                continue
            for bits in _BITS:
                yield _Entry(
                    model=model.key,
                    paper=paper,
                    label=_LABELS.get(paper, paper) + _FIDELITY.get(method, ""),
                    bits=bits,
                    published=published.main(paper, model.key, f"w{bits}a{bits}"),
                    measured=Measured(of_bits(own, bits)),
                    method=method,
                )


def _grid(model: Backbone, entries: list[_Entry]) -> Grid:
    # All columns, with or without a run: an empty one says that nothing was measured.
    return Grid(
        f"{model.label} on ImageNet-1k",
        ("Method", "Bits", "Published", "Measured", "Difference", "Status"),
        tuple(
            line(
                entry.label,
                entry.width,
                _published(entry.published),
                entry.measured.top1(),
                text.MISSING if entry.difference is None else text.signed(entry.difference),
                _status(entry),
            )
            for entry in entries
            if entry.model == model.key
        ),
        left=2,
    )


def _published(value: Published) -> Item:
    """What was not found stays empty; who says it is said unless it is the authors themselves."""
    if value.value is None:
        return item("")
    return item(value.text, (value.trust or "") if value.trust != "primary" else "")


def _status(entry: _Entry) -> Item:
    if entry.status == "within":
        return item(entry.status, tone="good")
    return item(entry.status, tone="bad" if entry.status == "outside" else "soft")


def _record(entry: _Entry) -> dict[str, Any]:
    return {
        "model": entry.model,
        "paper": entry.paper,
        "label": entry.label,
        "method": entry.method,
        "wbits": entry.bits,
        "abits": entry.bits,
        "status": entry.status,
        "published": entry.published.text if entry.published.value is not None else "",
        "published_value": entry.published.value,
        "published_trust": entry.published.trust,
        "published_note": entry.published.note,
        "difference_to_published": entry.difference,
        **entry.measured.record(),
    }


def _summary(entries: list[_Entry]) -> dict[str, Any]:
    counts = {
        status: sum(entry.status == status for entry in entries)
        for status in ("within", "outside", "unpublished", "not run")
    }
    counts["not_run"] = counts.pop("not run")
    summary: dict[str, Any] = {"status": counts}
    for entry in entries:
        numbers = known(
            {
                "published": entry.published.value,
                "top1_mean": entry.measured.mean,
                "top1_sd": entry.measured.spread,
                "n": entry.measured.n or None,
                "difference": entry.difference,
            }
        )
        if numbers:
            rows = summary.setdefault(entry.model, {}).setdefault(entry.method or entry.paper, {})
            rows[f"w{entry.bits}a{entry.bits}"] = numbers
    return summary


def _notes(study: Study, published: PublishedNumbers, entries: list[_Entry]) -> Iterator[str]:
    yield (
        "Status: within = the difference is at most the larger of "
        f"{TOLERANCE} points and twice the sample standard deviation over seeds; outside = it is "
        "more; unpublished = no published value was found, so its cell is empty; not run = this "
        "study has no run to hold against it."
    )
    yield _why_not_run(study, entries)
    yield (
        "VVTQ, Q-ViT, GPLQ and APHQ-ViT are quoted, not run: their figures belong to complete "
        "pipelines with recipes of their own. The methods that this study runs under one recipe "
        "are in the table of methods."
    )
    yield TRUST_NOTE + " Published values without a mark here are primary."
    yield from _footnotes(entries)
    yield from _claims(published)
    yield from _papers(published)
    yield from not_counted(study)


def _why_not_run(study: Study, entries: list[_Entry]) -> str:
    run = study.runs[0]
    found = comparable(run.settings)
    if found is None:
        return (
            f"Not run: the study is {subject(run)} ({_size(run)}). Published values are those of "
            "DeiT-T, DeiT-S and Swin-T with 224 x 224 pixels on all of ImageNet-1k, so nothing "
            "that it measures can be held against them."
        )
    open_cells = [
        f"{entry.label} {entry.width}: {missing_reason(study, entry.method, entry.bits)}"
        for entry in entries
        if entry.model == found.key and entry.method and entry.status == "not run"
    ]
    epochs, last = (run.settings.get(f"recipe.{key}") for key in ("epochs", "cga_epochs"))
    words = (
        f"The study is {found.label} at its published size; its runs take {epochs} epochs and "
        f"{last} in the last phase, and the status compares results whatever the recipe. The other "
        "models are not run here."
    )
    if is_distilled(run.settings):
        words += (
            " Its model has a distillation token and the published full precision is that of the "
            "one without, so full precision is not compared."
        )
    return words + (f" Not run: {'; '.join(open_cells)}." if open_cells else "")


def _size(run: Run) -> str:
    sizes = [
        f"{key} {run.settings[f'model.{key}']}"
        for key in ("img_size", "patch_size", "embed_dim", "depth")
        if run.settings.get(f"model.{key}") is not None
    ]
    return ", ".join(sizes) or "timm's own sizes"


def _footnotes(entries: list[_Entry]) -> Iterator[str]:
    noted = {
        f"{entry.label} {BACKBONES[entry.model].label}: {entry.published.note}": None
        for entry in entries
        if entry.published.note and entry.published.value is not None
    }
    if noted:
        yield f"On the published values. {'; '.join(noted)}."


def _claims(published: PublishedNumbers) -> Iterator[str]:
    """Numbers that are no result of a row: labelled, and never in a cell."""
    for model, claim in published.section("claimed_gain_w2a2").items():
        note = f"; {claim['note']}" if claim.get("note") else ""
        yield (
            f"Claimed by OFQ, {_model(model)} W2A2: {claim['gain']} points over the previous best, "
            f"which implies {claim['implied_previous_best']} for that [{claim['trust']}]{note}."
        )
    for entry in published.entries("outside_reproduction"):
        note = f"; {entry['note']}" if entry.get("note") else ""
        yield (
            f"Measured by an outside reproducer, OFQ {_model(entry['model'])} "
            f"{entry['bits'].upper()}: {entry['top1']} in {entry['epochs']} epochs, where "
            f"{entry['published']} is published [{entry['trust']}]{note}."
        )


def _model(key: str) -> str:
    return BACKBONES[key].label if key in BACKBONES else key


def _papers(published: PublishedNumbers) -> Iterator[str]:
    papers = [
        f"{_LABELS.get(key, key)}: "
        + ", ".join(str(paper[part]) for part in ("title", "venue", "note") if paper.get(part))
        for key, paper in published.section("papers").items()
    ]
    yield f"Papers. {'; '.join(papers)}."
