"""What stands in the rendered files, for synthetic runs whose statistics are worked out by hand."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tables.render import main, render
from tables.write import RenderedPaths

if TYPE_CHECKING:
    from tests.tables.conftest import SyntheticStudy

ROOT = Path(__file__).parents[2]


def lines_of(path: Path, method: str) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [line for line in csv.DictReader(file) if line["method"] == method]


def cells(markdown: str, label: str) -> list[list[str]]:
    """The cells of every Markdown table row that starts with `label`."""
    rows = [line.split("|")[1:-1] for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row[1:]] for row in rows if row[0].strip() == label]


@pytest.fixture
def small(study: SyntheticStudy, tmp_path: Path) -> RenderedPaths:
    """LSQ 90, 91, 92 % and OFQ 93, 92, 94 % at two bits: differences 3, 1, 2 per seed."""
    for seed, (lsq, ofq) in enumerate([(360, 372), (364, 368), (368, 376)]):
        study.run("lsq", 2, seed, lsq, share=0.10 + 0.01 * seed)
        study.run("ofq", 2, seed, ofq, share=0.02)
    study.run("ofq", 3, 0, 380)
    return render(study.folder, tmp_path / "rendered")


def test_markdown_cells(small: RenderedPaths) -> None:
    markdown = small.markdown.read_text(encoding="utf-8")
    accuracy, oscillation = cells(markdown, "LSQ")
    assert accuracy[:3] == ["91.00 ± 1.00 (3)", "—", "—"]
    assert accuracy[3:] == ["68.00 [d]", "not found", "not found"]
    assert oscillation == ["11.00", "—", "—"]
    accuracy, difference, oscillation = cells(markdown, "OFQ (StatsQ + QKR + CGA)")
    assert accuracy[:3] == ["93.00 ± 1.00 (3)", "95.00 (1)", "—"]
    assert accuracy[3:] == ["75.72 [p]", "79.57 [p]", "81.10 [p]"]
    assert difference == ["+2.00 ± 1.00", "—", "—"]
    assert oscillation == ["2.00", "5.00", "—"]
    assert cells(markdown, "StatsQ")[0][3:] == ["LSQ +6.3 [s]", "LSQ +0.8 [s]", "LSQ +1.0 [s]"]


def test_csv_has_every_digit_and_the_run_folders(small: RenderedPaths) -> None:
    two, three, four = lines_of(small.csv, "ofq")
    assert (two["wbits"], two["status"], two["n"]) == ("2", "ok", "3")
    assert [float(two[key]) for key in ("top1_mean", "top1_sd")] == [93.0, 1.0]
    assert [float(two[key]) for key in ("difference_mean", "difference_sd")] == [2.0, 1.0]
    assert two["top1_by_seed"] == "93.0;92.0;94.0"
    folders = two["runs"].split(";")
    assert [Path(folder).name for folder in folders] == [
        "ofq-w2a2-s0",
        "ofq-w2a2-s1",
        "ofq-w2a2-s2",
    ]
    assert all((small.csv.parent / folder / "metrics.json").is_file() for folder in folders)
    # The synthetic loss is 0.25 + seed and the time 10 + seed.
    assert [float(two[key]) for key in ("loss_mean", "train_seconds_mean")] == [1.25, 11.0]
    assert (three["status"], three["n"], three["top1_sd"]) == ("single", "1", "")
    assert (four["status"], four["reason"], four["top1_mean"]) == ("missing", "no run", "")
    assert (two["published_value"], two["difference_to_published"]) == ("75.72", "")


def test_json_summary_holds_known_numbers_only(small: RenderedPaths) -> None:
    summary = json.loads(small.json.read_text(encoding="utf-8"))
    assert summary["ofq"]["w2a2"] == {
        "top1_mean": 93.0,
        "top1_sd": 1.0,
        "n": 3,
        "oscillation_share": pytest.approx(0.02),
        "diff_to_lsq": 2.0,
    }
    assert summary["ofq"]["w3a3"] == {"top1_mean": 95.0, "n": 1, "oscillation_share": 0.05}
    assert "w4a4" not in summary["ofq"]
    assert "statsq" not in summary


def test_row_files(small: RenderedPaths) -> None:
    rows = {path.stem: path.read_text(encoding="utf-8") for path in small.rows}
    assert list(rows) == ["fp", "lsq", "statsq", "statsq_qkr", "ofq"]
    assert "93.00 ± 1.00 (3)" in rows["ofq"]
    assert "[ofq-w2a2-s1](../../results/synthetic/ofq-w2a2-s1)" in rows["ofq"]
    assert "— W2A2: no run." in rows["statsq"]


def test_notes_are_filled_from_the_settings(rendered: RenderedPaths) -> None:
    markdown = rendered.markdown.read_text(encoding="utf-8")
    assert "takes 30 epochs of a cosine schedule followed by 5 epochs at the minimum" in markdown
    assert "the same 35 epochs" in markdown
    assert "(400 images; one image is 0.25 points)" in markdown
    assert "not comparable with synthetic_micro on synthetic" in markdown
    assert "39 runs at commit abcdef0123; torch 0.0.synthetic; device cpu." in markdown
    assert "{" not in markdown


def test_full_precision_is_one_value_for_all_columns(rendered: RenderedPaths) -> None:
    # 390, 391 and 392 of 400 images.
    (row,) = cells(rendered.markdown.read_text(encoding="utf-8"), "Full precision")
    assert row == ["97.75 ± 0.25 (3)"] * 3 + ["79.9 [p]"] * 3
    (line,) = lines_of(rendered.csv, "fp")
    assert (line["wbits"], line["abits"], line["oscillation_share"]) == ("32", "32", "")


def test_what_is_missing_or_left_out_is_said(study: SyntheticStudy, tmp_path: Path) -> None:
    for seed in range(3):
        study.run("lsq", 2, seed)
        study.run("ofq", 2, seed, 368 + 4 * seed)
    (study.folder / "lsq-w2a2-s2" / "metrics.json").unlink()
    (study.run("statsq", 2, 0) / "metrics.json").unlink()
    study.run("ofq", 8, 0)
    markdown = render(study.folder, tmp_path / "rendered").markdown.read_text(encoding="utf-8")
    assert "StatsQ W2A2: not finished; StatsQ W3A3: no run" in markdown
    assert "Not finished, so not counted: lsq-w2a2-s2, statsq-w2a2-s0." in markdown
    assert "not in this table: ofq-w8a8." in markdown
    # Seeds 0 and 1 pair: 92 - 90 and 93 - 90.
    assert cells(markdown, "OFQ (StatsQ + QKR + CGA)")[1][0] == "+2.50 ± 0.71 (2 of 3 seeds)"


def test_a_recipe_of_its_own_is_disclosed(study: SyntheticStudy, tmp_path: Path) -> None:
    def longer(settings: dict[str, Any], _: dict[str, Any], __: dict[str, Any]) -> None:
        settings["recipe"]["epochs"] = 100

    study.run("lsq", 2, 0)
    study.run("fp", 32, 0, change=longer)
    markdown = render(study.folder, tmp_path / "rendered").markdown.read_text(encoding="utf-8")
    assert "Full precision has its own recipe.epochs 100 (quantized rows: 30)." in markdown
    assert "takes 30 epochs" in markdown


def test_the_teacher_is_quoted(study: SyntheticStudy, tmp_path: Path) -> None:
    study.run("lsq", 2, 0)
    teacher = tmp_path / "teacher.json"
    teacher.write_text('{"top1": 97.222, "n_images": 360, "epochs": 80}', encoding="utf-8")
    markdown = render(study.folder, tmp_path / "out", teacher).markdown.read_text(encoding="utf-8")
    assert "a test top-1 of 97.22 % on 360 images after 80 epochs." in markdown


def test_the_published_model_itself_gets_a_difference(
    study: SyntheticStudy, tmp_path: Path
) -> None:
    def imagenet(settings: dict[str, Any], _: dict[str, Any], __: dict[str, Any]) -> None:
        settings["data"]["name"] = "imagenet"
        settings["model"] = dict.fromkeys(settings["model"]) | {"name": "deit_small"}

    study.run("ofq", 2, 0, 300, change=imagenet)
    paths = render(study.folder, tmp_path / "rendered")
    (line, *_) = lines_of(paths.csv, "ofq")
    assert float(line["difference_to_published"]) == pytest.approx(75.0 - 75.72)
    markdown = paths.markdown.read_text(encoding="utf-8")
    assert "75.72 (\N{MINUS SIGN}0.72) [p]" in markdown
    assert "stands here for orientation" not in markdown


def test_same_input_same_bytes_anywhere(rendered: RenderedPaths, tmp_path: Path) -> None:
    """Another place, another current folder, another process, another hash seed."""
    shutil.copytree(rendered.html.parents[1] / "results", tmp_path / "results")
    command = [sys.executable, "-W", "error", "-m", "tables.render", "--results"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [*command, "results/synthetic", "--out", "rendered"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    out = rendered.html.parent
    for path in rendered.all():
        assert (tmp_path / "rendered" / path.relative_to(out)).read_bytes() == path.read_bytes(), (
            path
        )
    assert done.stdout.startswith(rendered.markdown.read_text(encoding="utf-8"))
    assert done.stdout.splitlines()[-3:] == [
        "HTML     rendered/ablation.html",
        "LaTeX    rendered/ablation.tex",
        "Markdown rendered/ablation.md",
    ]


def test_no_absolute_path_is_written(rendered: RenderedPaths) -> None:
    root = str(rendered.html.parents[1]).encode()
    assert not [path for path in rendered.all() if root in path.read_bytes()]


def test_show_prints_what_is_there(
    rendered: RenderedPaths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rendered.html.parents[1])
    assert main(["--show", "--out", "rendered"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(rendered.markdown.read_text(encoding="utf-8"))
    assert "HTML     rendered/ablation.html\n" in out


def test_other_files_stay_and_stale_rows_go(study: SyntheticStudy, tmp_path: Path) -> None:
    study.run("lsq", 2, 0)
    out = tmp_path / "rendered"
    paths = render(study.folder, out)
    stale, own, note = out / "rows" / "gone.md", out / "rows" / "mine.md", out / "note.txt"
    shutil.copyfile(paths.rows[0], stale)
    own.write_text("a file of the user", encoding="utf-8")
    note.write_text("a file of the user", encoding="utf-8")
    render(study.folder, out)
    assert not stale.exists()
    assert own.exists()
    assert note.exists()


def test_show_imports_nothing_heavy(rendered: RenderedPaths) -> None:
    code = (
        "import sys; from tables.render import main; main(['--show', '--out', sys.argv[1]]);"
        "heavy = {'torch', 'pandas', 'matplotlib', 'jinja2', 'pydantic'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(rendered.html.parent)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def test_rendering_imports_no_torch(rendered: RenderedPaths, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tables.render import render;"
        "render(Path(sys.argv[1]), Path(sys.argv[2]));"
        "heavy = {'torch', 'pandas', 'pydantic'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    results = rendered.html.parents[1] / "results" / "synthetic"
    subprocess.run([sys.executable, "-c", code, str(results), str(tmp_path)], cwd=ROOT, check=True)


def test_runs_without_a_validation_split(study, tmp_path):
    """Nothing was held out: the accuracy that selects is unknown, and so left empty."""

    def nothing_held_out(settings, metrics, env):
        metrics["val_top1"] = None

    study.run("lsq", 2, 0, 380, change=nothing_held_out)
    study.run("lsq", 2, 1, 390, change=nothing_held_out)
    paths = render(study.folder, tmp_path / "rendered")
    line = lines_of(paths.csv, "lsq")[0]
    assert (line["n"], line["val_top1_mean"]) == ("2", "")
    assert float(line["top5_mean"]) == 99.5


@pytest.mark.parametrize(
    ("on", "sentence", "total"),
    [
        (
            True,
            "followed by 10 epochs of cool-down and 5 epochs at the minimum",
            "the same 45 epochs",
        ),
        (False, "followed by 5 epochs at the minimum", "the same 35 epochs"),
    ],
)
def test_note_on_epochs_counts_the_cool_down(study, tmp_path, on, sentence, total):
    """Only where the switch lets the recipe's cool-down happen."""

    def cooled(settings, metrics, env):
        settings["recipe"]["cooldown_epochs"] = 10
        settings["fidelity"] = {"cooldown": on}

    study.run("lsq", 2, 0, 380, change=cooled)
    text = render(study.folder, tmp_path / "rendered").markdown.read_text(encoding="utf-8")
    assert sentence in text
    assert total in text
