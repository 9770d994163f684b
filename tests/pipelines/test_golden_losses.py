"""No result moves unseen: losses and accuracies of a tiny pipeline against tests/golden.

After a change that is meant to move them: `make golden` (python -m tests.refresh_golden) prints
the differences and rewrites the file. Why the comparison is in double precision and how tight it
is: see that module.
"""

import copy
import json

import pytest
import torch

from tests import refresh_golden
from tests.refresh_golden import COLUMNS, GOLDEN, METHODS, RTOL, STUDY, differences, tiny_losses


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return tiny_losses(tmp_path_factory.mktemp("golden"))


def test_losses_are_the_golden_ones(golden, measured):
    changed = differences(golden, measured, RTOL)
    assert not changed, "\n".join([*changed, "intended? then run: make golden"])


def test_golden_file_covers_every_method_and_epoch(golden):
    assert set(golden) == {"teacher", *METHODS}
    epochs = STUDY["recipe"]["epochs"] + STUDY["recipe"]["cga_epochs"]
    for method in METHODS:
        assert set(golden[method]) == set(COLUMNS)
        assert {len(values) for values in golden[method].values()} == {epochs}


def test_methods_differ_by_far_more_than_the_tolerance(golden):
    """Otherwise a method could be another one unseen."""
    for one in METHODS:
        for two in METHODS:
            if one != two:
                last = [golden[name]["train_loss"][-1] for name in (one, two)]
                assert abs(last[0] / last[1] - 1) > 100 * RTOL, f"{one} and {two}"
    # CGA is the same as no CGA until the last phase.
    assert golden["ofq"]["train_loss"][:2] == golden["statsq_qkr"]["train_loss"][:2]


def test_the_teacher_has_learned(golden):
    """Students of a teacher that guesses would be insensitive to everything."""
    assert golden["teacher"]["train_loss"][-1] < 0.9 * golden["teacher"]["train_loss"][0]
    assert golden["teacher"]["val_top1"][-1] >= 30


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("factor", [1 + 3e-6, 1 - 3e-6])
def test_a_perturbed_value_is_caught(column, factor, golden):
    """Three millionths in one number of one epoch of one method."""
    perturbed = copy.deepcopy(golden)
    perturbed["ofq"][column][1] *= factor
    (line,) = differences(golden, perturbed, RTOL)
    assert line.startswith(f"ofq.{column}[1]: ")
    rounding = copy.deepcopy(golden)
    rounding["ofq"][column][1] *= 1 + 1e-9
    assert not differences(golden, rounding, RTOL), "last bits are not a change"


def test_missing_and_new_numbers_are_caught(golden):
    shorter = copy.deepcopy(golden)
    shorter["lsq"]["val_loss"].pop()
    assert len(differences(golden, shorter, RTOL)) == 1
    without = {name: run for name, run in golden.items() if name != "lsq"}
    assert differences(golden, without, RTOL) == ["lsq: only in golden"]
    assert differences(without, golden, RTOL) == ["lsq: only in measured"]
    nan = copy.deepcopy(golden)
    nan["lsq"]["val_loss"][0] = float("nan")
    assert len(differences(golden, nan, RTOL)) == 1


def test_a_changed_recipe_is_caught(golden, monkeypatch, tmp_path):
    """End to end: one per mille of the learning rate, for one method."""
    monkeypatch.setitem(STUDY["recipe"], "lr", STUDY["recipe"]["lr"] * 1.001)
    monkeypatch.setattr(refresh_golden, "METHODS", ("statsq",))
    measured = tiny_losses(tmp_path)
    assert not differences(golden["teacher"], measured["teacher"], RTOL)
    lines = differences(golden["statsq"], measured["statsq"], RTOL)
    assert any(line.startswith("train_loss[0]: ") for line in lines)


def test_nothing_of_it_stays(measured):
    """The rest of the suite runs in single precision."""
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()


def test_refreshing_writes_the_file_and_prints_what_changed(
    golden, measured, tmp_path, monkeypatch, capsys
):
    """On a copy whose first number is wrong."""
    wrong = copy.deepcopy(golden)
    wrong["statsq"]["val_loss"][0] *= 1.5
    file = tmp_path / "golden.json"
    file.write_text(json.dumps(wrong))
    monkeypatch.setattr(refresh_golden, "GOLDEN", file)
    monkeypatch.setattr(refresh_golden, "tiny_losses", lambda folder: measured)
    assert refresh_golden.main() == 0
    lines = capsys.readouterr().out.splitlines()
    (changed,) = [line for line in lines if "(-3.33e-01)" in line]
    assert changed.startswith("statsq.val_loss[0]: ")
    assert lines[-1].endswith(" differ, 1 by more than 1e-06")
    assert json.loads(file.read_text()) == measured
    assert refresh_golden.main() == 0
    assert capsys.readouterr().out.startswith("nothing changed")
