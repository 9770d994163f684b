"""The boundary range: its lines, the free share of the last epoch, what is and is not published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tables.boundary import boundary_sheet
from tables.errors import TableError
from tables.published import PublishedNumbers
from tables.runs import read_study
from tables.sheet import Sheet
from tables.sheet_write import sheet_csv, sheet_markdown
from tables.spec import load_spec

if TYPE_CHECKING:
    from tests.tables.conftest import SyntheticStudy

HISTORY = "epoch,phase,free_share\n0,qat,\n1,cga,0.5\n2,cga,{}\n"


def run(
    study: SyntheticStudy, range_: float, seed: int, correct: int, free: str = "", **settings: Any
) -> None:
    name = "ofq" if range_ == 0.005 else f"ofq_br{range_:g}".replace(".", "p")

    def change(document: dict[str, Any], _: Any, __: Any) -> None:
        document["quant"]["boundary_range"] = range_
        document["recipe"].update(settings)

    folder = study.run(name, 2, seed, correct, share=range_, change=change)
    (folder / "history.csv").write_text(HISTORY.format(free), encoding="utf-8")


def sheet_of(study: SyntheticStudy) -> Sheet:
    return boundary_sheet(read_study(study.folder), load_spec("ablation"), PublishedNumbers())


def words(sheet: Sheet) -> list[list[str]]:
    return [[item.words for item in line] for line in sheet.grids[0].lines]


def test_all_ranges_by_hand(study: SyntheticStudy) -> None:
    # 0.003: 90, 91 %; 0.005: 92, 92 %; so -2 and -1 per seed.
    for seed, (narrow, own) in enumerate([(360, 368), (364, 368)]):
        run(study, 0.003, seed, narrow, free=str(0.002 + 0.002 * seed))
        run(study, 0.005, seed, own, free="0.005")
    run(study, 0.02, 0, 360, free="0.02")
    sheet = sheet_of(study)
    assert sheet.grids[0].headings[2] == "Δ 0.005"
    assert words(sheet) == [
        [
            "0.003",
            "90.50 ± 0.71 (2)",
            "\N{MINUS SIGN}1.50 ± 0.71",
            "0.30",
            "0.30",
            "not found",
        ],
        ["0.005", "92.00 ± 0.00 (2)", "own", "0.50", "0.50", "best"],
        ["0.007", "not run", "—", "—", "—", "not found"],
        ["0.01", "not run", "—", "—", "—", "not found"],
        ["0.02", "90.00 (1)", "\N{MINUS SIGN}2.00", "2.00", "2.00", "—"],
    ]
    assert "best [secondary]" in sheet_markdown(sheet)
    assert sheet.summary["br0p003"]["w2a2"]["free_share"] == pytest.approx(0.003)
    assert "br0p007" not in sheet.summary
    assert "accuracies not found" in " ".join(sheet.notes)


def test_only_bit_widths_that_were_varied(study: SyntheticStudy) -> None:
    run(study, 0.005, 0, 368)
    run(study, 0.003, 0, 360)
    study.run("ofq", 4, 0, 380)
    assert [grid.title for grid in sheet_of(study).grids] == ["W2A2"]


def test_a_study_without_ofq_says_not_run(study: SyntheticStudy) -> None:
    study.run("lsq", 2, 0)
    study.run("ofq_released", 2, 0)
    sheet = sheet_of(study)
    assert [line[1] for line in words(sheet)] == ["not run"] * 4
    assert [line[-1] for line in words(sheet)] == ["not found", "best", "not found", "not found"]
    assert any("no run of OFQ" in note for note in sheet.notes)
    assert sheet_csv(sheet).count("not run") == 4


def test_the_range_is_that_of_the_settings(study: SyntheticStudy) -> None:
    def wider(settings: dict[str, Any], _: Any, __: Any) -> None:
        settings["quant"]["boundary_range"] = 0.01

    study.run("ofq", 2, 0, 368, change=wider)
    sheet = sheet_of(study)
    lines = {line[0]: line[1] for line in words(sheet)}
    assert (lines["0.005"], lines["0.01"]) == ("not run", "92.00 (1)")


def test_other_differences_are_refused(study: SyntheticStudy) -> None:
    run(study, 0.005, 0, 368)
    run(study, 0.003, 0, 360, lr=0.5)
    with pytest.raises(TableError, match=r"differ in recipe\.lr"):
        sheet_of(study)


@pytest.mark.parametrize(("free", "message"), [("x", "is 'x', expected a number"), ("7", "0 to 1")])
def test_a_broken_history_is_named(study: SyntheticStudy, free: str, message: str) -> None:
    run(study, 0.005, 0, 368, free=free)
    with pytest.raises(TableError, match=rf"ofq-w2a2-s0/history\.csv: free_share .*{message}"):
        sheet_of(study)
