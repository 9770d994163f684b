"""Everything that is refused: one line, non-zero exit, an earlier rendering left as it was."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tables.errors import TableError
from tables.render import main, render
from tables.runs import read_study

if TYPE_CHECKING:
    from tests.tables.conftest import SyntheticStudy

Change = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]


def refused(results: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Run the command line, expect a one-line error and no output folder; returns the line."""
    out = results.parent.parent / "rendered"
    assert main(["--results", str(results), "--out", str(out), *more]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not out.exists()
    assert not list(out.parent.glob(".rendered-*"))
    return captured.err


def test_no_results_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such results folder" in refused(tmp_path / "results" / "nothing", capsys)


def test_an_empty_study(study: SyntheticStudy, capsys: pytest.CaptureFixture[str]) -> None:
    (study.folder / "ofq-w2a2-s0").mkdir()
    assert "holds no finished run" in refused(study.folder, capsys)


def test_no_run_of_this_table(study: SyntheticStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study.run("lsq", 8, 0)
    assert "none of its runs belongs to table 'ablation'" in refused(study.folder, capsys)


DAMAGED = {
    "empty": "",
    "cut off": '{"top1": 90.0, "top',
    "list": "[1, 2]",
    "nul": "\x00",
    "no end": '{"a":' * 100_000,
    "deep": '{"a":' * 300 + "1" + "}" * 300,
    "NaN": '{"top1": NaN}',
    "infinite": '{"top1": 1e999}',
    "huge": f'{{"top1": {"9" * 400}}}',
}


@pytest.mark.parametrize("words", DAMAGED.values(), ids=DAMAGED)
def test_truncated_metrics_name_the_file(
    study: SyntheticStudy, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    folder = study.run("lsq", 2, 0)
    (folder / "metrics.json").write_text(words, encoding="utf-8")
    assert "lsq-w2a2-s0/metrics.json: " in refused(study.folder, capsys)


def test_metrics_that_are_not_text(
    study: SyntheticStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = study.run("lsq", 2, 0)
    (folder / "metrics.json").write_bytes(b"\xff\xfe\x00")
    assert "lsq-w2a2-s0/metrics.json: cannot be read" in refused(study.folder, capsys)


def test_settings_that_are_missing(
    study: SyntheticStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    (study.run("lsq", 2, 0) / "settings.yaml").unlink()
    assert "lsq-w2a2-s0/settings.yaml: no such file" in refused(study.folder, capsys)


@pytest.mark.parametrize(
    "key",
    [
        "top1",
        "top5",
        "loss",
        "val_top1",
        "n_images",
        "n_correct",
        "oscillation",
        "cost",
        "epoch_selected",
        "settings_sha256",
    ],
)
def test_a_missing_key_is_named(
    study: SyntheticStudy, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    study.run("lsq", 2, 0, change=lambda _, metrics, __: metrics.pop(key))
    line = refused(study.folder, capsys)
    assert f"lsq-w2a2-s0/metrics.json: key '{key}' is missing" in line


def _set(section: int, *keys: str, value: Any) -> Change:
    """A change of one value in settings (0), metrics (1) or env (2)."""

    def change(*documents: dict[str, Any]) -> None:
        target = documents[section]
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(1, "top1", value=float("nan")), "top1 = nan, expected a finite number"),
        (_set(1, "top1", value="90"), "key 'top1' is '90', expected a finite number"),
        (_set(1, "top1", value=True), "key 'top1' is True, expected a finite number"),
        (_set(1, "top1", value=0.9), "top1 0.9 is not 100 * n_correct / n_images (360/400)"),
        (_set(1, "top1", value=130.0), "key 'top1' is 130.0, expected 0 to 100"),
        (_set(1, "n_images", value=0), "is not 100 * n_correct / n_images (360/0)"),
        (_set(1, "n_correct", value=360.0), "key 'n_correct' is 360.0, expected a whole number"),
        (_set(1, "oscillation", value={}), "key 'oscillation.share' is missing"),
        (_set(1, "oscillation", value=3), "key 'oscillation' is not a mapping"),
        (_set(1, "oscillation", "share", value=5.0), "'oscillation.share' is 5.0, expected 0 to 1"),
        (_set(1, "cost", "macs", value="many"), "key 'cost.macs' is 'many'"),
        (_set(0, "seed", value="zero"), "key 'seed' is 'zero', expected a whole number"),
        (_set(0, "quant", value={}), "key 'quant.wbits' is missing"),
        (_set(0, "method", value=None), "key 'method' is missing or not a name"),
    ],
)
def test_a_value_that_makes_no_sense(
    study: SyntheticStudy, capsys: pytest.CaptureFixture[str], change: Change, message: str
) -> None:
    study.run("lsq", 2, 0, change=change)
    assert message in refused(study.folder, capsys)


def test_the_same_run_twice(study: SyntheticStudy, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(study.run("lsq", 2, 0), study.folder / "lsq-w2a2-s1")
    line = refused(study.folder, capsys)
    assert "lsq-w2a2-s0 and " in line
    assert "lsq-w2a2-s1: both are method lsq, w2a2, seed 0; keep one" in line


def test_a_renamed_run(study: SyntheticStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study.run("lsq", 2, 0, name="ofq-w2a2-s0")
    assert "its settings.yaml belongs to lsq-w2a2-s0" in refused(study.folder, capsys)


def test_what_a_killed_process_left_is_no_run(study: SyntheticStudy) -> None:
    """It replaces a folder under names that begin with a dot."""
    study.run("lsq", 2, 0)
    for word in ("new", "former"):
        study.run("lsq", 2, 0, name=f".lsq-w2a2-s0.{word}")
    assert [run.folder.name for run in read_study(study.folder).runs] == ["lsq-w2a2-s0"]


def test_a_misspelt_folder(study: SyntheticStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study.run("lsq", 2, 0)
    study.run("lsq", 2, 1, name="lsq-w2a2-seed1")
    assert "is not named <method>-w<b>a<b>-s<seed>" in refused(study.folder, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(0, "recipe", "lr", value=0.002), "differ in recipe.lr: 0.001 and 0.002"),
        (_set(0, "recipe", "cga_epochs", value=9), "differ in recipe.cga_epochs: 5 and 9"),
        (_set(0, "data", "name", value="other"), "differ in data.name: synthetic and other"),
        (_set(0, "extra", value=1), "differ in extra: (absent) and 1"),
        (_set(2, "manifest_sha256", value="f"), "differ in the data manifest"),
        (
            _set(2, "teacher_sha256", value="f"),
            "were taught by different teachers",
        ),
    ],
)
def test_unlike_runs_are_not_compared(
    study: SyntheticStudy, capsys: pytest.CaptureFixture[str], change: Change, message: str
) -> None:
    study.run("lsq", 2, 0)
    study.run("ofq", 2, 0, change=change)
    line = refused(study.folder, capsys)
    assert message in line
    assert "lsq-w2a2-s0 and " in line
    assert "ofq-w2a2-s0" in line


def test_another_number_of_test_images(
    study: SyntheticStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    def fewer(_: dict[str, Any], metrics: dict[str, Any], __: dict[str, Any]) -> None:
        metrics.update(n_images=200, n_correct=180)

    study.run("lsq", 2, 0)
    study.run("ofq", 2, 0, change=fewer)
    assert "differ in the number of test images: 400 and 200" in refused(study.folder, capsys)


def test_seeds_of_one_cell_share_their_quantizer(
    study: SyntheticStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study.run("ofq", 2, 0)
    study.run("ofq", 2, 1, change=_set(0, "quant", "boundary_range", value=0.01))
    assert "differ in quant.boundary_range: 0.005 and 0.01" in refused(study.folder, capsys)


def test_full_precision_may_differ_in_its_recipe_only(
    study: SyntheticStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study.run("lsq", 2, 0)
    study.run("fp", 32, 0, change=_set(0, "model", "depth", value=3))
    assert "differ in model.depth: 2 and 3" in refused(study.folder, capsys)


def test_bit_widths_may_have_their_own_recipe_and_say_so(
    study: SyntheticStudy, tmp_path: Path
) -> None:
    """As in the paper's runs: DeiT-S has another batch and learning rate at 2 bits."""
    for method in ("lsq", "ofq"):
        study.run(method, 2, 0)
        study.run(method, 3, 0, change=_set(0, "recipe", "lr", value=0.002))
        study.run(method, 4, 0, change=_set(0, "recipe", "mix_group", value=100))
    notes = render(study.folder, tmp_path / "out").markdown.read_text(encoding="utf-8")
    assert (
        "Each bit width has its own recipe.lr 0.001 (w2a2), 0.002 (w3a3), 0.001 (w4a4); "
        "recipe.mix_group unset (w2a2), unset (w3a3), 100 (w4a4)." in notes
    )


def test_one_recipe_needs_no_word(complete: SyntheticStudy, tmp_path: Path) -> None:
    notes = render(complete.folder, tmp_path / "out").markdown.read_text(encoding="utf-8")
    assert "Each bit width has its own" not in notes


def test_rows_of_a_column_share_their_recipe(
    study: SyntheticStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study.run("lsq", 2, 0)
    study.run("lsq", 3, 0)
    study.run("ofq", 3, 0, change=_set(0, "recipe", "lr", value=0.002))
    assert "differ in recipe.lr: 0.001 and 0.002" in refused(study.folder, capsys)


def test_bit_widths_share_what_is_no_recipe(
    study: SyntheticStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study.run("lsq", 2, 0)
    study.run("lsq", 3, 0, change=_set(0, "recipe", "cga_epochs", value=9))
    assert "differ in recipe.cga_epochs: 5 and 9" in refused(study.folder, capsys)


def test_a_note_whose_setting_is_missing(
    study: SyntheticStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study.run("lsq", 2, 0, change=lambda settings, _, __: settings["recipe"].pop("epochs"))
    assert "a note needs one value of recipe.epochs" in refused(study.folder, capsys)


def test_a_note_whose_setting_varies(
    study: SyntheticStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study.run("lsq", 2, 0)
    study.run("ofq", 2, 0, change=_set(0, "quant", "edge_bits", value=4))
    assert "one value of quant.edge_bits in every settings.yaml, found 4, 8" in refused(
        study.folder, capsys
    )


@pytest.mark.parametrize("words", [None, "{}", '{"top1": 97.0, "n_images": "many"}', '{"top1": 9'])
def test_a_bad_teacher_file(
    study: SyntheticStudy, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str | None
) -> None:
    study.run("lsq", 2, 0)
    if words is not None:
        (tmp_path / "teacher.json").write_text(words, encoding="utf-8")
    line = refused(study.folder, capsys, "--teacher", str(tmp_path / "teacher.json"))
    assert "teacher.json: " in line


def test_an_unknown_table(study: SyntheticStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert "table 'main' is unknown" in refused(study.folder, capsys, "--table", "main")


def test_show_before_anything_is_rendered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--show", "--out", str(tmp_path)]) == 1
    assert "ablation.md: not rendered yet" in capsys.readouterr().err


def test_neither_results_nor_show(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "--results is needed" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be(study: SyntheticStudy, tmp_path: Path) -> None:
    study.run("lsq", 2, 0)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(TableError, match="cannot be written"):
        render(study.folder, tmp_path / "file" / "rendered")


def test_a_full_disk_leaves_the_earlier_rendering(
    study: SyntheticStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.run("lsq", 2, 0, 360)
    out = tmp_path / "rendered"
    paths = render(study.folder, out)
    before = {path: path.read_bytes() for path in paths.all()}
    study.run("lsq", 2, 1, 380)
    written = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.suffix == ".csv":
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(TableError, match="No space left on device"):
        render(study.folder, out)
    assert {path: path.read_bytes() for path in paths.all()} == before
    assert not list(tmp_path.glob(".rendered-*"))
