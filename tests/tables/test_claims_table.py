"""Claims: paired differences, and an exact test, against numbers worked out by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tables.claims import MOST_PAIRS, claims_sheet, sign_flip_p
from tables.errors import TableError
from tables.runs import read_study
from tables.spec import load_spec

if TYPE_CHECKING:
    from tests.tables.conftest import SyntheticStudy


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0], 1.0),  # +1 and -1 are as far from zero
        ([1.0, 1.0, 1.0], 0.25),  # +++ and --- of eight
        ([3.0, 1.0], 0.5),  # sums 4, 2, -2, -4: two of four reach 4
        ([1.0, -1.0], 1.0),  # observed 0
        ([2.0, 1.0, -1.0], 0.75),  # sums 4, 2, 2, 0, 0, -2, -2, -4: six of eight reach 2
        ([0.0, 0.0], 1.0),
        ([0.1, 0.2, -0.3], 1.0),  # zero but for the last bits
    ],
)
def test_p_by_hand(differences: list[float], p: float) -> None:
    assert sign_flip_p(differences) == p
    assert sign_flip_p([-value for value in differences]) == p


@pytest.mark.parametrize("count", [0, MOST_PAIRS + 1])
def test_too_few_or_too_many(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} differences: expected 1 to {MOST_PAIRS}"):
        sign_flip_p([1.0] * count)


def test_a_line_by_hand(study: SyntheticStudy) -> None:
    # Of 400 test images: 0.25 points each.
    for seed, (lsq, statsq) in enumerate([(360, 364), (362, 364), (361, 367)]):
        study.run("lsq", 2, seed, n_correct=lsq)
        study.run("statsq", 2, seed, n_correct=statsq)
    sheet = claims_sheet(read_study(study.folder), load_spec("ablation"))
    (grid,) = sheet.grids
    assert grid.title == "W2A2"
    assert grid.headings[:5] == ("Claim", "n", "Δ top-1", "above 0", "p")
    # +1.0, +0.5, +1.5: mean 1, sample standard deviation 0.5.
    assert [item.words for item in grid.lines[0][:5]] == [
        *("StatsQ instead of LSQ", "3", "+1.00 ± 0.50", "3/3", "0.250"),
    ]
    (record,) = sheet.records
    assert record["top1_difference"] == pytest.approx(1.0)
    assert (record["from"], record["to"], record["top1_above_zero"]) == ("lsq", "statsq", 3)
    assert sheet.summary["lsq_to_statsq"]["top1"]["p"] == 0.25


def test_several_bit_widths_together_and_alone(study: SyntheticStudy) -> None:
    for bits in (2, 3):
        for seed in (0, 1):
            study.run("lsq", bits, seed)
            study.run("lsq_qkr", bits, seed)
    study.run("lsq", 3, 2)  # without a partner
    sheet = claims_sheet(read_study(study.folder), load_spec("ablation"))
    assert [grid.title for grid in sheet.grids] == ["All bit widths together", "W2A2", "W3A3"]
    assert [grid.lines[0][1].words for grid in sheet.grids] == ["4", "2", "2"]


def test_a_study_without_pairs_has_no_line(study: SyntheticStudy) -> None:
    study.run("lsq", 2, 0)
    study.run("statsq", 2, 1)
    assert claims_sheet(read_study(study.folder), load_spec("ablation")).grids == ()


def test_unlike_runs_are_refused(study: SyntheticStudy) -> None:
    study.run("lsq", 2, 0)
    study.run("statsq", 2, 0, change=lambda settings, _, __: settings["recipe"].update(epochs=99))
    with pytest.raises(TableError, match=r"recipe\.epochs"):
        claims_sheet(read_study(study.folder), load_spec("ablation"))
