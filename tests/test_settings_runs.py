"""The runs that settings describe: their names, what they take over, and which cannot be."""

import copy

import pytest

from ofq_core.errors import SettingsError
from ofq_core.explain import validated
from ofq_core.settings import RunSettings
from tests.test_settings import VALID, changed, message_of, read


@pytest.mark.parametrize(
    ("toggles", "name"),
    [
        (("lsq", 2, False, False), "lsq"),
        (("statsq", 2, False, False), "statsq"),
        (("statsq", 2, True, False), "statsq_qkr"),
        (("statsq", 2, True, True), "ofq"),
        (("statsq", 2, False, True), "statsq_cga"),
        (("lsq", 2, True, True), "lsq_qkr_cga"),
    ],
)
def test_method_is_named_after_its_toggles(toggles, name):
    raw = copy.deepcopy(VALID)
    raw["quant"] = dict(zip(("weight", "wbits", "qkr", "cga"), toggles, strict=True))
    raw["quant"]["abits"] = 2
    assert read(raw).experiment().method == name


def test_cells_of_the_grid():
    settings = read(VALID)
    cell = settings.cell("ofq", 3, 1)
    assert cell.name == "ofq-w3a3-s1"
    assert (cell.quant.qkr, cell.quant.cga, cell.quant.weight) == (True, True, "statsq")
    assert settings.cell("lsq", 2, 0).quant.weight == "lsq"
    assert settings.full_precision(2).name == "fp-w32a32-s2"
    with pytest.raises(SettingsError, match="method = 'ofk' is unknown, did you mean 'ofq'"):
        settings.cell("ofk", 2, 0)
    with pytest.raises(SettingsError, match=r"grid cell ofq-9-0: quant\.wbits = 9: expected 2"):
        settings.cell("ofq", 9, 0)


def test_runs_of_the_grid():
    """The cells, and the full-precision runs that the grid names: 2*3*3 + 2."""
    names = [run.name for run in read(changed("grid.full_precision_seeds", [5, 7])).runs_of_grid()]
    assert len(names) == 20
    assert names[:3] == ["lsq-w2a2-s0", "lsq-w2a2-s1", "lsq-w2a2-s2"]
    assert names[-3:] == ["ofq-w4a4-s2", "fp-w32a32-s5", "fp-w32a32-s7"]
    assert len(read(VALID).runs_of_grid()) == 18, "by default there is no full-precision run"


def test_a_teacher_that_is_not_trained_has_no_full_precision_runs():
    raw = changed("teacher", {"seed": 0, "pretrained": "timm"})
    assert len(read(raw).runs_of_grid()) == 18
    raw["grid"]["full_precision_seeds"] = [3]
    with pytest.raises(SettingsError) as error:
        read(raw).runs_of_grid()
    message = str(error.value)
    assert message.startswith("full-precision run with seed 3: teacher.recipe = None")
    assert "grid.full_precision_seeds = []" in message


def test_two_teachers():
    raw = changed("teacher.checkpoint", "weights.pt")
    assert read(raw).teacher.checkpoint == "weights.pt", "the recipe of the full-precision runs"
    raw["teacher"]["pretrained"] = "timm"
    message = message_of(raw)
    assert "checkpoint = 'weights.pt' and pretrained = 'timm' name two teachers" in message


def test_cga_without_epochs():
    settings = read(changed("recipe.cga_epochs", 0))
    with pytest.raises(SettingsError, match=r"experiment ofq: quant\.cga = true, but recipe\.cga"):
        settings.experiment()


def test_hash_depends_on_values_only():
    settings = read(VALID)
    backwards = {key: VALID[key] for key in reversed(VALID)}
    assert read(backwards).experiment().sha256() == settings.experiment().sha256()
    other = read(changed("recipe.lr", 2e-3)).experiment()
    assert other.sha256() != settings.experiment().sha256()


def test_run_settings_survive_a_file():
    run = read(VALID).experiment()
    again = validated(RunSettings, run.model_dump(mode="json"), "settings.yaml")
    assert again == run
    assert again.sha256() == run.sha256()
