"""The committed reference: its results, rendered again, give its tables byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tables.errors import TableError
from tables.names import method_name
from tables.reference import REFERENCE, main, refresh, render_reference
from tables.runs import OUTDATED, read_study

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


def rendered(folder: Path) -> dict[str, str]:
    """The pages of a study that lsq, statsq and dampening have run."""
    render_reference(folder, folder / "rendered")
    return {name: content.decode() for name, content in texts(folder / "rendered").items()}


def test_outdated_methods_are_marked_and_nothing_rests_on_them(
    study: SyntheticStudy, tmp_path: Path
) -> None:
    for seed in range(3):
        study.run("lsq", 2, seed, 360 + seed, share=0.05 + seed / 100)
        study.run("statsq", 2, seed, 370 - seed, share=0.06 + seed / 100)
        study.run("dampening", 2, seed, 350, share=0.01)
        study.run("dampening_qkr", 2, seed, 340, share=0.02)
    folder = tmp_path / "reference"
    shutil.copytree(study.folder, folder / "results")
    fresh = rendered(folder)
    assert not [name for name, page in fresh.items() if "outdated" in page.lower()]
    assert "Dampening added to LSQ" in fresh["claims.md"]
    assert "n = 12" in fresh["index.html"]

    reason = "it was done another way"
    (folder / "results" / OUTDATED).write_text(f"dampening: {reason}\n", encoding="utf-8")
    pages = rendered(folder)
    for name in ("methods", "cost"):
        for kind in ("md", "html", "tex", "csv"):
            assert pages[f"{name}.{kind}"].count("LSQ, dampening (outdated)") >= 1, (name, kind)
            assert "LSQ, dampening + QKR (outdated)" in pages[f"{name}.{kind}"]
            assert f"LSQ, dampening: {reason}." in pages[f"{name}.{kind}"] or kind == "csv"
            assert "StatsQ (outdated)" not in pages[f"{name}.{kind}"]
    for name in ("ablation", "main", "methods", "claims", "boundary", "noise", "cost"):
        assert (
            f"rests on them until they are run again. LSQ, dampening: {reason}."
            in (pages[f"{name}.md"])
        ), name
    # No claim, no figure, and no number where a program would look for one.
    for kind in ("md", "html", "tex", "csv", "json"):
        assert "StatsQ" in pages[f"claims.{kind}"] or "statsq" in pages[f"claims.{kind}"]
        assert "Dampening added" not in pages[f"claims.{kind}"]
        assert "to_dampening" not in pages[f"claims.{kind}"]
    assert "dampening" not in pages["figures/accuracy_oscillation.csv"]
    assert "n = 6" in pages["index.html"]
    assert "Left out: LSQ, dampening (outdated)." in pages["index.html"]
    summary = json.loads(pages["methods.json"])
    assert set(summary["outdated"]) == {"dampening", "dampening_qkr"}
    assert "dampening" not in summary
    assert set(json.loads(pages["cost.json"])["methods"]["outdated"]) == set(summary["outdated"])


def test_new_runs_are_not_outdated(study: SyntheticStudy, tmp_path: Path) -> None:
    """Refreshing takes the runs, not what was said of those before."""
    study.run("dampening", 2, 0)
    target = refresh(study.folder, None, tmp_path / "reference")
    (target / "results" / OUTDATED).write_text("dampening: was otherwise\n", encoding="utf-8")
    assert "(outdated)" in rendered(target)["methods.md"]
    refresh(study.folder, None, tmp_path / "reference")
    assert not (target / "results" / OUTDATED).exists()
    assert not [name for name, page in texts(target).items() if b"outdated" in page]


@pytest.mark.parametrize("folder", sorted(REFERENCE.iterdir()), ids=lambda path: path.name)
def test_what_a_reference_says_is_outdated_is_in_it(folder: Path) -> None:
    found = read_study(folder / "results")
    run = {method_name(run.method).weight for run in found.runs}
    assert set(found.outdated) <= run
    assert all(isinstance(why, str) for why in found.outdated.values())


def test_the_command_reports_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path / "nothing")]) == 1
    assert "no such results folder" in capsys.readouterr().err
