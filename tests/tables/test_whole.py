"""Everything of a study at once: tables, figures, report, and which cells agree with the paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tables.errors import TableError
from tables.paper import TABLES
from tables.whole import agreement, render_whole

if TYPE_CHECKING:
    from tests.tables.conftest import SyntheticStudy


def test_all_of_a_study(complete: SyntheticStudy, tmp_path: Path) -> None:
    out = tmp_path / "rendered"
    whole = render_whole(complete.folder, out)
    assert [table.name for table in whole.tables] == list(TABLES)
    page = whole.report.read_text(encoding="utf-8")
    assert whole.report == out / "index.html"
    for table in whole.tables:
        assert table.title in page
        assert f'href="{table.name}.csv"' in page
    assert 'href="rows/' not in page.partition("Files:")[2].partition("</p>")[0]
    for figure in whole.figures:
        assert figure.title in page, "a skipped one is named with its reason"
    assert not list(out.rglob("*.part"))


def test_agreement_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "main.csv"
    path.write_text(
        "model,label,wbits,abits,status,published,top1_mean\n"
        "deit_tiny,OFQ,2,2,within,64.33,64.289\n"
        "deit_tiny,Full precision,32,32,not run,72.02,\n"
        "deit_tiny,Q-ViT,3,3,unpublished,,\n",
        encoding="utf-8",
    )
    assert agreement(path) == [
        ("OFQ, deit_tiny, W2A2", "64.29", "64.33", "within"),
        ("Full precision, deit_tiny, FP32", "—", "72.02", "not run"),
        ("Q-ViT, deit_tiny, W3A3", "—", "—", "unpublished"),
    ]


def test_a_broken_study_writes_nothing(study: SyntheticStudy, tmp_path: Path) -> None:
    with pytest.raises(TableError):
        render_whole(study.folder, tmp_path / "rendered")
    assert not (tmp_path / "rendered").exists()
