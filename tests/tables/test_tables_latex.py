"""LaTeX: escaping, and documents that really compile without an overfull line."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tables.latex import escape
from tables.write import RenderedPaths
from tests.patience import PATIENCE

SPECIAL = "\\ { } ~ ^ & % $ # _ < > | \" ' ` ± \N{MINUS SIGN} — Δ é"


@pytest.fixture
def compiled(tmp_path: Path) -> "Compiler":
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    return Compiler(tmp_path)


class Compiler:
    """Runs pdflatex in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, words: str) -> str:
        """Compile a document; fails with the end of the log if there is no PDF."""
        (self.folder / "document.tex").write_text(words, encoding="utf-8")
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"],
            cwd=self.folder,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        log = done.stdout.decode("utf-8", errors="replace")
        assert done.returncode == 0, log[-2000:]
        assert (self.folder / "document.pdf").read_bytes().startswith(b"%PDF")
        return log


def in_document(words: str) -> str:
    head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\small\n"
    return f"{head}{words}\n\\end{{document}}\n"


def test_escape() -> None:
    assert escape("50% & a_b") == r"50\% \& a\_b"
    assert escape("{x}\\") == r"\{x\}\textbackslash{}"
    assert escape("\N{MINUS SIGN}0.5 ± 1") == r"\ensuremath{-}0.5 \ensuremath{\pm} 1"


def test_the_document_compiles(rendered: RenderedPaths, compiled: "Compiler") -> None:
    log = compiled.log(rendered.latex.read_text(encoding="utf-8"))
    assert "(1 page" in log
    assert "Overfull" not in log


def test_the_bare_tabular_can_be_input(rendered: RenderedPaths, compiled: "Compiler") -> None:
    shutil.copyfile(rendered.latex_tabular, compiled.folder / "ablation_tabular.tex")
    compiled.log(in_document(r"\input{ablation_tabular}"))


def test_special_characters_compile(compiled: "Compiler") -> None:
    compiled.log(in_document(escape(SPECIAL)))


def test_booktabs_and_all_rows(rendered: RenderedPaths) -> None:
    words = rendered.latex_tabular.read_text(encoding="utf-8")
    for part in (r"\toprule", r"\cmidrule(lr){2-4}", r"\cmidrule(lr){11-13}", r"\bottomrule"):
        assert part in words
    assert r"Full precision & \multicolumn{9}{c}{97.75 \ensuremath{\pm} 0.25}" in words
    assert (
        r"75.72\textsuperscript{p} & 79.57\textsuperscript{p} & 81.10\textsuperscript{p}" in words
    )
