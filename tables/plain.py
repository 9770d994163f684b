"""The table for other programs: CSV with every digit, and a nested JSON summary."""

import csv
import io
import json

from tables.model import Cell, Row, Table

_COLUMNS = (
    "method",
    "label",
    "wbits",
    "abits",
    "status",
    "reason",
    "n",
    "top1_mean",
    "top1_sd",
    "difference_mean",
    "difference_sd",
    "difference_pairs",
    "oscillation_share",
    "published",
    "published_value",
    "published_gain_over_lsq",
    "published_trust",
    "difference_to_published",
    "seeds",
    "top1_by_seed",
    "runs",
)
_DETAILS = (
    "top5_mean",
    "loss_mean",
    "val_top1_mean",
    "train_seconds_mean",
    "images_per_second_mean",
    "peak_memory_bytes_mean",
    "model_bytes_mean",
    "macs_mean",
    "qkr_extra_macs_mean",
    "qkr_extra_weights_mean",
)
_BIT_OPERATIONS = "bit_operations_mean"
_MORE = (
    _BIT_OPERATIONS,
    "block",
    "difference_to_own_fidelity_mean",
    "difference_to_own_fidelity_sd",
    "difference_to_own_fidelity_pairs",
)


def csv_table(table: Table) -> str:
    """One line per method and bit width, unrounded; lists by semicolons, empty if unknown."""
    buffer = io.StringIO()
    lines = [_line(row, cell) for row in table.rows for cell in row.cells]
    # Columns that only some studies have stand at the end, and only where they hold something.
    more = [key for key in _MORE if any(line[key] not in (None, "") for line in lines)]
    columns = [*_COLUMNS, *_DETAILS, *more]
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def json_summary(table: Table) -> str:
    """method -> w2a2 -> top1_mean, top1_sd (%), n, oscillation_share (fraction), diff_to_lsq
    (points), in rows at another fidelity to LSQ at that, and diff_to_own_fidelity.

    What is unknown is left out, because metric tools compare numbers only.
    """
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for row in table.rows:
        for cell in row.cells:
            numbers: dict[str, float | None] = {
                "top1_mean": cell.mean,
                "top1_sd": cell.spread,
                "n": cell.n or None,
                "oscillation_share": cell.oscillation_share,
                f"diff_to_{_baseline(table)}": cell.difference.mean if cell.difference else None,
                "diff_to_own_fidelity": cell.difference_of_block.mean
                if cell.difference_of_block
                else None,
            }
            known = {key: value for key, value in numbers.items() if value is not None}
            if known:
                summary.setdefault(row.method, {})[cell.bits] = known
    return json.dumps(summary, indent=2, ensure_ascii=False) + "\n"


def _baseline(table: Table) -> str:
    return next(row.method for row in table.rows if any(cell.is_baseline for cell in row.cells))


def _line(row: Row, cell: Cell) -> dict[str, object]:
    difference, of_block = cell.difference, cell.difference_of_block
    return {
        "method": row.method,
        "label": row.label,
        "wbits": cell.wbits,
        "abits": cell.abits,
        "status": cell.status,
        "reason": cell.reason,
        "n": cell.n,
        "top1_mean": cell.mean,
        "top1_sd": cell.spread,
        "difference_mean": difference.mean if difference else None,
        "difference_sd": difference.spread if difference else None,
        "difference_pairs": difference.pairs if difference else None,
        "oscillation_share": cell.oscillation_share,
        "published": cell.published.text,
        "published_value": cell.published.value,
        "published_gain_over_lsq": cell.published.gain_over_lsq,
        "published_trust": cell.published.trust,
        "difference_to_published": cell.difference_to_published,
        "seeds": ";".join(str(seed.seed) for seed in cell.seeds),
        "top1_by_seed": ";".join(repr(seed.top1) for seed in cell.seeds),
        "runs": ";".join(cell.runs),
        **{key: cell.details.get(key) for key in (*_DETAILS, _BIT_OPERATIONS)},
        "block": row.block.removeprefix("_"),
        "difference_to_own_fidelity_mean": of_block.mean if of_block else None,
        "difference_to_own_fidelity_sd": of_block.spread if of_block else None,
        "difference_to_own_fidelity_pairs": of_block.pairs if of_block else None,
    }
