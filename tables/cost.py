"""What it costs to train and to deploy: the study's methods, and the paper's backbones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tables import seeds, text
from tables.backbone import BACKBONES
from tables.build import provenance, subject
from tables.errors import TableError
from tables.files import read_json
from tables.measured import FULL_PRECISION, Measured, bit_widths, measured
from tables.names import MethodName
from tables.notes import TRUST_NOTE, not_counted
from tables.published import PublishedNumbers
from tables.runs import Study
from tables.sheet import Grid, Sheet, grid, item, known, line, number, quantity

NAME = "cost"
BACKBONE_COSTS = Path(__file__).with_name("backbones.json")
_OF_RUNS = (
    "train_seconds",
    "images_per_second",
    "peak_memory_bytes",
    "model_bytes",
    "macs",
    "bit_operations",
    "qkr_extra_macs",
    "qkr_extra_weights",
)
_OF_MODELS = ("macs", "bit_operations", "model_bytes")
_RATIOS = ("block_macs_ratio", "block_weights_ratio")
_FORMS = {"plain": "without QKR", "qkr": "with QKR"}


def cost_sheet(
    study: Study, published: PublishedNumbers, backbones: Path = BACKBONE_COSTS
) -> Sheet:
    """Costs of the study's runs and of the backbones; TableError if a file or key is missing.

    `backbones` is what `python -m ofq_core.backbone_cost` prints.
    """
    cells = _cells(study)
    models = _models(backbones)
    used = [run for _, _, cell in cells for run in cell.runs]
    return Sheet(
        name=NAME,
        title="Cost",
        subject=subject(study.runs[0]),
        caption=(
            "Training and model of each method of the study, means over seeds; the paper's "
            "backbones at 224 x 224 pixels with and without QKR; published training costs."
        ),
        grids=(_of_methods(cells), _of_backbones(models), _of_blocks(models), _training(published)),
        notes=tuple(_notes(study, published)),
        provenance=provenance(used),
        records=(
            *(_method_record(method, bits, cell) for method, bits, cell in cells),
            *_model_records(models),
            *_training_records(published),
        ),
        summary={"methods": _method_summary(cells), "backbones": _model_summary(models)},
    )


Cell = tuple[MethodName, int, Measured]


def _cells(study: Study) -> list[Cell]:
    names = sorted((study.method(name) for name in {r.method for r in study.runs}), key=_rank)
    found = []
    for method in names:
        own = [run for run in study.runs if run.method == method.name]
        for bits in [32] if method.name == FULL_PRECISION else bit_widths(own):
            found.append((method, bits, measured(study, method.name, bits)))
    return [cell for cell in found if cell[2].n]


def _rank(method: MethodName) -> tuple[Any, ...]:
    return (not method.plain, *method.rank)


def _models(path: Path) -> dict[str, Any]:
    document = read_json(path)
    for model in BACKBONES:
        costs = document.get(model)
        for place in (("full_precision",), *((form, "w2a2") for form in _FORMS)):
            found = costs
            for key in place:
                found = found.get(key) if isinstance(found, dict) else None
            if not isinstance(found, dict) or any(key not in found for key in _OF_MODELS):
                raise TableError(
                    f"{path}: '{'.'.join((model, *place))}' is missing or incomplete; "
                    "python -m ofq_core.backbone_cost prints all of it"
                )
    return document


def _of_methods(cells: list[Cell]) -> Grid:
    def seconds(cell: Measured) -> str:
        values = cell.costs("train_seconds")
        spread = seeds.spread(values) if values else None
        words = f"{seeds.mean(values):.1f}" if values else text.MISSING
        return words if spread is None else f"{words} ± {spread:.1f}"

    return grid(
        "Methods of this study",
        ["Method", "Bits", "Training (s)", "Images/s", "Peak memory", "Model", "MACs", "Bit ops"],
        [
            line(
                method.label,
                "FP32" if bits == 32 else f"W{bits}A{bits}",
                seconds(cell),
                number(cell.cost("images_per_second"), 0),
                quantity(cell.cost("peak_memory_bytes"), "B"),
                quantity(cell.cost("model_bytes"), "B"),
                quantity(cell.cost("macs")),
                quantity(cell.cost("bit_operations")),
            )
            for method, bits, cell in cells
        ],
        left=2,
    )


def _of_backbones(models: Mapping[str, Any]) -> Grid:
    lines = []
    for key, backbone in BACKBONES.items():
        costs = models[key]
        lines.append(_model_line(backbone.label, "FP32", costs["full_precision"]))
        for form, words in _FORMS.items():
            for bits, cost in costs[form].items():
                lines.append(_model_line(backbone.label, f"{bits.upper()} {words}", cost))
    return grid(
        "Backbones at 224 x 224 pixels, per image",
        ["Model", "Bits", "MACs", "Bit ops", "Packed model"],
        lines,
        left=2,
    )


def _model_line(label: str, bits: str, cost: Mapping[str, float]) -> tuple[Any, ...]:
    return line(
        label,
        bits,
        quantity(cost["macs"]),
        quantity(cost["bit_operations"]),
        quantity(cost["model_bytes"], "B"),
    )


def _of_blocks(models: Mapping[str, Any]) -> Grid:
    lines = []
    for key, backbone in BACKBONES.items():
        costs = models[key]
        rows = {"all blocks": costs}
        if len(costs["stages"]) > 1:
            rows |= {f"width {width}": stage for width, stage in costs["stages"].items()}
        lines += [
            line(backbone.label, part, *(f"{row[ratio]:.2f}" for ratio in _RATIOS))
            for part, row in rows.items()
        ]
    return grid(
        "Transformer blocks with QKR over blocks without",
        ["Model", "Blocks", "MACs ratio", "Weights ratio"],
        lines,
        left=2,
    )


def _training(published: PublishedNumbers) -> Grid:
    return grid(
        "Published training costs",
        ["What", "Minutes", "Peak memory (GB)", "Quoted by"],
        [
            line(
                entry["what"],
                item(entry["minutes"], entry["trust"] if entry["trust"] != "primary" else ""),
                entry.get("peak_memory_gb", ""),
                entry.get("source", "").upper(),
            )
            for entry in published.entries("training_cost")
        ],
    )


def _method_record(method: MethodName, bits: int, cell: Measured) -> dict[str, Any]:
    return {
        "part": "method",
        "name": method.name,
        "label": method.label,
        "form": "",
        "wbits": bits,
        "abits": bits,
        "n": cell.n,
        **{key: cell.cost(key) for key in _OF_RUNS},
    }


def _model_records(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    records = []
    for key, backbone in BACKBONES.items():
        costs = models[key]
        named = {"part": "backbone", "name": key, "label": backbone.label}
        full = {"form": "full_precision", "wbits": 32, "abits": 32}
        records.append({**named, **full, **costs["full_precision"]})
        for form in _FORMS:
            for bits, cost in costs[form].items():
                widths = bits[1:].split("a")
                record = {**named, "form": form, "wbits": widths[0], "abits": widths[1], **cost}
                if form == "qkr":
                    record |= {ratio: costs[ratio] for ratio in _RATIOS}
                records.append(record)
    return records


def _training_records(published: PublishedNumbers) -> list[dict[str, Any]]:
    return [
        {
            "part": "published",
            "name": "",
            "label": entry["what"],
            "published_minutes": entry["minutes"],
            "published_peak_memory_gb": entry.get("peak_memory_gb", ""),
            "published_trust": entry["trust"],
            "published_source": entry.get("source", ""),
        }
        for entry in published.entries("training_cost")
    ]


def _method_summary(cells: list[Cell]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for method, bits, cell in cells:
        costs = known({key: cell.cost(key) for key in _OF_RUNS})
        part = summary.setdefault("outdated", {}) if method.outdated else summary
        part.setdefault(method.name, {})[f"w{bits}a{bits}"] = costs
    return summary


def _model_summary(models: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: {part: value for part, value in models[key].items() if part != "model"}
        for key in BACKBONES
    }


def _notes(study: Study, published: PublishedNumbers) -> list[str]:
    return [
        "MACs: multiply-accumulates of all matrix products, per image. Bit operations: MACs times "
        "the bits of the one operand times the bits of the other, summed over products: weight "
        "bits x activation bits in a layer (patch embedding and heads at their own bits), "
        "activation bits x activation bits in the two products of attention (q k^T, with QKR x' z; "
        "map x v). What is not quantized counts as 32 bits, also the folded query bias of QKR, and "
        "what the second bias of the queries (with QKR of x') adds against the keys (z).",
        "Model: bytes with low-bit weights packed and every scale, bias and norm in FP32. With QKR "
        "the product W_qk of each head is stored, not W_q and W_k.",
        "QKR: a head's queries and keys take C x C weights instead of 2 C x C / H, and its logits "
        "sum over C channels instead of C / H. So it makes a model larger and takes more MACs, "
        "the more so the more heads there are. Ratios are of all transformer blocks; DeiT are the "
        "distilled models (198 tokens).",
        "Training time and memory are those of the machine that the runs had. Where it was shared "
        "with other work, ± over seeds is large, and seconds and images per second say nothing "
        "about methods. Training includes validation. Peak memory is the resident memory of the "
        "training process.",
        f"{TRUST_NOTE} Published training costs without a mark are primary; they are other "
        "machines, so they are no measure for the seconds above.",
        *not_counted(study),
    ]
