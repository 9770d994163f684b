"""The comparison of methods: order, labels, paired differences, figures on oscillation."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from tables.errors import TableError
from tables.methods import methods_sheet
from tables.names import method_name
from tables.runs import read_study
from tables.sheet import Sheet
from tables.sheet_write import sheet_csv, sheet_markdown
from tables.spec import load_spec

if TYPE_CHECKING:
    from tests.tables.conftest import SyntheticStudy


def sheet_of(study: SyntheticStudy) -> Sheet:
    return methods_sheet(read_study(study.folder), load_spec("ablation"))


def cells(markdown: str, label: str) -> list[list[str]]:
    rows = [line.split("|")[1:-1] for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row[1:]] for row in rows if row[0].strip() == label]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("fp", "Full precision"),
        ("lsq", "LSQ"),
        ("lsqplus_qkr", "LSQ+ + QKR"),
        ("statsq_cga", "StatsQ + CGA"),
        ("ofq", "OFQ (StatsQ + QKR + CGA)"),
        ("ofq_br0p003", "OFQ (StatsQ + QKR + CGA), boundary range 0.003"),
        ("lsq_qkr_released", "LSQ + QKR, released code"),
        ("statsq_described", "StatsQ, as described"),
        ("of_another_kind", "of_another_kind"),
    ],
)
def test_names_are_taken_apart(name: str, label: str) -> None:
    assert method_name(name).label == label


def test_the_order_is_that_of_the_methods() -> None:
    wanted = ["fp", "lsq", "lsq_qkr", "lsq_cga", "statsq", "statsq_qkr", "ofq", "pact", "ptq", "x"]
    ranks = [method_name(name).rank for name in wanted]
    assert ranks == sorted(ranks)


def test_accuracy_and_difference_by_hand(study: SyntheticStudy) -> None:
    # LSQ 90, 91, 92; OBR 93, 92, 94: per seed 3, 1, 2.
    for seed, (lsq, obr) in enumerate([(360, 372), (364, 368), (368, 376)]):
        study.run("lsq", 2, seed, lsq)
        study.run("obr", 2, seed, obr)
    study.run("pact", 3, 0, 380)
    study.run("fp", 32, 0, 392)
    sheet = sheet_of(study)
    assert [line[0].words for line in sheet.grids[0].lines] == [
        "Full precision",
        "LSQ",
        "PACT (DoReFa weights)",
        "LSQ, OBR (VVTQ)",
    ]
    markdown = sheet_markdown(sheet)
    assert cells(markdown, "LSQ")[0] == ["91.00 ± 1.00 (3)", "—", "baseline"]
    assert cells(markdown, "LSQ, OBR (VVTQ)")[0] == ["93.00 ± 1.00 (3)", "—", "+2.00 ± 1.00"]
    # Nothing can be paired at three bits, so that column of differences is left out.
    assert sheet.grids[0].headings == ("Method", "W2A2", "W3A3", "Δ LSQ W2A2")
    assert cells(markdown, "Full precision") == [["98.00 (1)", "98.00 (1)", "—"]]


def test_figures_on_oscillation(study: SyntheticStudy) -> None:
    def told(share: float, flips: float) -> Any:
        def change(_: Any, metrics: dict[str, Any], __: Any) -> None:
            metrics["oscillation"] = {
                "share": share,
                "flip_rate_last_phase": flips,
                "path_ratio": None,
                "gradient_flips": {"0.005": 0.25},
            }

        return change

    study.run("lsq", 2, 0, change=told(0.10, 0.001))
    study.run("lsq", 2, 1, change=told(0.20, 0.003))
    sheet = sheet_of(study)
    assert sheet.grids[1].title == "Low-bit weights in training, W2A2"
    assert sheet.grids[1].headings == (
        "Method",
        "Oscillating %",
        "Flips / 1000",
        "Gradient flips %",
    )
    assert [item.words for item in sheet.grids[1].lines[0]] == ["LSQ", "15.00", "2.00", "25.00"]
    (record,) = csv.DictReader(io.StringIO(sheet_csv(sheet)))
    assert float(record["oscillation.share"]) == pytest.approx(0.15)
    assert float(record["oscillation.gradient_flips.0.005"]) == 0.25
    assert "oscillation.path_ratio" not in record
    summary = json.loads(json.dumps(sheet.summary))["lsq"]["w2a2"]
    assert summary["flip_rate_last_phase"] == pytest.approx(0.002)
    assert summary["n"] == 2


def test_a_method_without_training_has_no_figures(study: SyntheticStudy) -> None:
    def untrained(_: Any, metrics: dict[str, Any], __: Any) -> None:
        metrics["oscillation"] = None

    study.run("rtn", 2, 0, change=untrained)
    sheet = sheet_of(study)
    assert [item.words for item in sheet.grids[1].lines[0]] == ["Round to nearest (PTQ)"]
    assert any("Not trained" in note and "Round to nearest" in note for note in sheet.notes)
    assert any("no run of LSQ" in note for note in sheet.notes)


def test_other_fidelities_and_ranges_are_in_other_tables(study: SyntheticStudy) -> None:
    study.run("lsq", 2, 0)
    study.run("ofq_br0p003", 2, 0)
    study.run("lsq_released", 2, 0)
    sheet = sheet_of(study)
    assert [line[0].words for line in sheet.grids[0].lines] == ["LSQ"]
    assert any("lsq_released, ofq_br0p003" in note for note in sheet.notes)


def test_unlike_runs_are_refused(study: SyntheticStudy) -> None:
    def slower(settings: dict[str, Any], _: Any, __: Any) -> None:
        settings["recipe"]["lr"] = 0.5

    study.run("lsq", 2, 0)
    study.run("obr", 2, 0, change=slower)
    with pytest.raises(TableError, match=r"obr-w2a2-s0 differ in recipe\.lr: 0\.001 and 0\.5"):
        sheet_of(study)
