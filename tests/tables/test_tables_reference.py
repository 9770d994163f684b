"""The committed reference: its results, rendered again, give its tables byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tables.errors import TableError
from tables.reference import REFERENCE, main, refresh, render_reference

if TYPE_CHECKING:
    from tests.tables.conftest import SyntheticStudy

REFRESH = "make reference"
TEXT = {".md", ".tex", ".csv", ".html", ".json", ".svg"}


def texts(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.suffix in TEXT]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("folder", sorted(REFERENCE.iterdir()), ids=lambda path: path.name)
def test_the_reference_renders_to_itself(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "rendered")
    render_reference(copy, copy / "rendered")
    expected, rendered = texts(folder / "rendered"), texts(copy / "rendered")
    assert sorted(rendered) == sorted(expected)
    changed = [name for name in expected if rendered[name] != expected[name]]
    assert not changed, f"differ from the reference: {', '.join(changed)}; if meant, {REFRESH}"


def test_the_studies_that_are_quoted_are_there() -> None:
    assert {path.name for path in REFERENCE.iterdir()} == {"digits_full", "fashion_mnist"}


def test_refresh_copies_small_files_and_renders(study: SyntheticStudy, tmp_path: Path) -> None:
    run = study.run("lsq", 2, 0)
    (run / "student.pt").write_bytes(b"large")
    teacher = tmp_path / "metrics.json"
    teacher.write_text('{"top1": 97.0, "n_images": 400}', encoding="utf-8")
    target = refresh(study.folder, teacher, tmp_path / "reference")
    assert target == tmp_path / "reference" / "synthetic"
    copied = {path.name for path in (target / "results" / "lsq-w2a2-s0").iterdir()}
    assert copied == {
        "metrics.json",
        "settings.yaml",
        "history.csv",
        "oscillation.json",
        "env.json",
    }
    page = (target / "rendered" / "ablation.html").read_text(encoding="utf-8")
    assert 'href="../results/lsq-w2a2-s0/metrics.json"' in page
    assert "97.00 % on 400 images" in page


def test_refresh_replaces_the_old_reference_or_leaves_it(
    study: SyntheticStudy, tmp_path: Path
) -> None:
    first = study.run("lsq", 2, 0)
    target = refresh(study.folder, None, tmp_path / "reference")
    shutil.rmtree(first)
    second = study.run("lsq", 2, 1)
    refresh(study.folder, None, tmp_path / "reference")
    assert [path.name for path in (target / "results").iterdir()] == ["lsq-w2a2-s1"]
    before = texts(target)
    (second / "settings.yaml").write_text("method: [", encoding="utf-8")
    with pytest.raises(TableError, match="no valid YAML"):
        refresh(study.folder, None, tmp_path / "reference")
    assert texts(target) == before
    assert [path.name for path in (tmp_path / "reference").iterdir()] == ["synthetic"]


def test_the_command_reports_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path / "nothing")]) == 1
    assert "no such results folder" in capsys.readouterr().err
