"""Costs: means of the runs, the backbones that are kept beside the tables, published figures."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tables.cost import BACKBONE_COSTS, cost_sheet
from tables.errors import TableError
from tables.published import PublishedNumbers
from tables.runs import read_study
from tables.sheet import Grid, Sheet, quantity
from tables.sheet_write import sheet_csv, sheet_markdown

if TYPE_CHECKING:
    from tests.tables.conftest import SyntheticStudy


def costing(**costs: float) -> Any:
    def change(_: Any, metrics: dict[str, Any], __: Any) -> None:
        metrics["cost"] = costs

    return change


def sheet_of(study: SyntheticStudy, backbones: Path = BACKBONE_COSTS) -> Sheet:
    return cost_sheet(read_study(study.folder), PublishedNumbers(), backbones)


def lines(grid: Grid) -> list[list[str]]:
    return [[item.words for item in line] for line in grid.lines]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "—"),
        (0, "0.00 B"),
        (999, "999 B"),
        (999.9, "1.00 kB"),
        (25364, "25.4 kB"),
        (4624140288, "4.62 GB"),
        (4.735e12, "4.74 TB"),
        (99960, "100 kB"),
    ],
)
def test_quantities(value: float | None, words: str) -> None:
    assert quantity(value, "B") == words


def test_methods_by_hand(study: SyntheticStudy) -> None:
    of_lsq = {"model_bytes": 25364, "macs": 507264, "bit_operations": 2029056}
    study.run("lsq", 2, 0, change=costing(train_seconds=10, images_per_second=900, **of_lsq))
    study.run("lsq", 2, 1, change=costing(train_seconds=13, images_per_second=1000, **of_lsq))
    study.run("fp", 32, 0, change=costing(train_seconds=20, model_bytes=100000))
    study.run("ofq_br0p003", 2, 0, change=costing(train_seconds=1))
    sheet = sheet_of(study)
    assert sheet.grids[0].headings == (
        *("Method", "Bits", "Training (s)", "Images/s", "Model", "MACs", "Bit ops"),
    )
    assert lines(sheet.grids[0]) == [
        ["Full precision", "FP32", "20.0", "—", "100 kB", "—", "—"],
        ["LSQ", "W2A2", "11.5 ± 2.1", "950", "25.4 kB", "507 k", "2.03 M"],
        ["OFQ (StatsQ + QKR + CGA), boundary range 0.003", "W2A2", "1.0", *["—"] * 4],
    ]
    assert sheet.summary["methods"]["lsq"]["w2a2"]["train_seconds"] == 11.5


def test_backbones_are_those_of_the_specification(study: SyntheticStudy) -> None:
    study.run("lsq", 2, 0)
    sheet = sheet_of(study)
    of_blocks = {tuple(line[:2]): line[2:] for line in lines(sheet.grids[2])}
    assert of_blocks["DeiT-S", "all blocks"] == ["1.50", "1.33"]
    assert of_blocks["DeiT-T", "all blocks"] == ["1.22", "1.08"]
    assert ("Swin-T", "width 768") in of_blocks
    of_models = {tuple(line[:2]): line[2:] for line in lines(sheet.grids[1])}
    assert of_models["DeiT-S", "FP32"] == ["4.62 G", "4.74 T", "89.7 MB"]
    assert len(of_models) == 3 * (1 + 2 * 3)
    assert sheet.summary["backbones"]["deit_small"]["qkr"]["w2a2"]["qkr_extra_weights"] == 7077888


def test_published_training_costs_show_their_trust(study: SyntheticStudy) -> None:
    study.run("lsq", 2, 0)
    sheet = sheet_of(study)
    markdown = sheet_markdown(sheet)
    assert "18360 [secondary]" in markdown
    assert "10 [user]" in markdown
    assert lines(sheet.grids[3])[2] == ["GPLQ Swin-T, 8 GPUs", "35", "6.6", "GPLQ"]
    assert sheet.grids[3].lines[2][1].mark == ""
    parts = {line["part"] for line in csv.DictReader(io.StringIO(sheet_csv(sheet)))}
    assert parts == {"method", "backbone", "published"}


def test_backbones_that_are_incomplete(study: SyntheticStudy, tmp_path: Path) -> None:
    study.run("lsq", 2, 0)
    document = json.loads(BACKBONE_COSTS.read_text(encoding="utf-8"))
    del document["swin_tiny"]["qkr"]["w2a2"]["macs"]
    path = tmp_path / "backbones.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(TableError, match=r"backbones\.json: 'swin_tiny\.qkr\.w2a2' is missing"):
        sheet_of(study, path)
