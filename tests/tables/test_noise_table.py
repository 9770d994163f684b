"""Noise injection: means over trials by hand, and a clear error for every broken key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tables.errors import TableError
from tables.noise import noise_sheet
from tables.published import PublishedNumbers
from tables.runs import read_study
from tables.sheet import Sheet
from tables.sheet_write import sheet_csv, sheet_markdown

if TYPE_CHECKING:
    from tests.tables.conftest import SyntheticStudy


def row(**change: Any) -> dict[str, Any]:
    return {
        "method": "ofq",
        "bits": 2,
        "seed": 0,
        "boundary_range": 0.005,
        "clean_top1": 91.0,
        "weights": 2000,
        "inside": 100,
        "perturbed": 50,
        "boundary": {"top1": [90.0, 91.0]},
        "random": {"top1": [80.0, 84.0]},
    } | change


def sheet_of(study: SyntheticStudy, rows: Any, trials: Any = 2) -> Sheet:
    study.run("ofq", 2, 0)
    path = study.folder / "noise.json"
    path.write_text(json.dumps({"trials": trials, "rows": rows}), encoding="utf-8")
    return noise_sheet(read_study(study.folder), PublishedNumbers(), path)


def test_a_line_by_hand(study: SyntheticStudy) -> None:
    sheet = sheet_of(study, [row(), row(method="lsq", clean_top1=90.5)])
    # Random 82 ± sqrt(8), boundary 90.5 ± sqrt(0.5); drops 91 - 82 and 91 - 90.5.
    assert [[item.words for item in line] for line in sheet.grids[0].lines] == [
        [
            *("LSQ", "W2A2", "0", "90.50", "50", "2.50"),
            *("82.00 ± 2.83", "+8.50", "90.50 ± 0.71", "0.00", "not found"),
        ],
        [
            *("OFQ (StatsQ + QKR + CGA)", "W2A2", "0", "91.00", "50", "2.50"),
            *("82.00 ± 2.83", "+9.00", "90.50 ± 0.71", "+0.50", "not found"),
        ],
    ]
    assert sheet.notes[0].startswith("2 trials per run, boundary range 0.005 quantization steps.")
    assert sheet.summary["ofq"]["w2a2"] == {
        "n": 1,
        "clean_top1": 91.0,
        "perturbed_share": 0.025,
        "random_drop": 9.0,
        "boundary_drop": 0.5,
    }
    assert "80.0;84.0" in sheet_csv(sheet)


def test_no_file_is_not_run(study: SyntheticStudy, tmp_path: Path) -> None:
    study.run("ofq", 2, 0)
    sheet = noise_sheet(read_study(study.folder), PublishedNumbers(), tmp_path / "noise.json")
    markdown = sheet_markdown(sheet)
    assert "| not run |" in markdown
    assert "the study has no noise.json" in markdown
    assert "values not found" in markdown
    assert (sheet.records, sheet.summary) == ((), {})


@pytest.mark.parametrize(
    ("rows", "trials", "message"),
    [
        ([row()], None, "key 'trials' is None"),
        ({}, 2, "key 'rows' is missing or not a list"),
        ([row(method=3)], 2, r"key 'rows\[0\]\.method' is missing"),
        ([row(bits="2")], 2, r"key 'rows\[0\]\.bits' is '2', expected a whole number"),
        ([row(clean_top1=101)], 2, r"key 'rows\[0\]\.clean_top1' is 101\.0, expected 0 to 100"),
        ([row(inside=2001)], 2, r"key 'rows\[0\]\.inside' is 2001, of 2000 weights"),
        ([row(perturbed=101)], 2, r"key 'rows\[0\]\.perturbed' is 101, of 100 inside"),
        ([row(random={})], 2, r"key 'rows\[0\]\.random\.top1' does not hold 2 trials"),
        ([row()], 3, r"key 'rows\[0\]\.random\.top1' does not hold 3 trials"),
        ([row(boundary={"top1": [1, "x"]})], 2, r"boundary\.top1' is 'x', expected a number"),
        ([row(), row()], 2, "two rows are method ofq, 2 bits, seed 0, boundary range 0.005"),
    ],
)
def test_a_broken_file_is_named(
    study: SyntheticStudy, rows: Any, trials: Any, message: str
) -> None:
    with pytest.raises(TableError, match=rf"noise\.json: .*{message}"):
        sheet_of(study, rows, trials)
