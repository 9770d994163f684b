"""Which epoch's weights a run ends with, and when checkpoints are written."""

from dataclasses import replace

import pytest
import torch

from ofq_core.data import ArrayData, load_prepared
from ofq_core.errors import DataError
from ofq_core.evaluation import Evaluation
from ofq_core.training import engine

ANY = Evaluation(0.0, 0.0, 0.0, 100.0, 1.0, 30, 0, 30, 0, [30], [0])


@pytest.fixture
def selected(monkeypatch, micro, make_trainer, tmp_path):
    """Train with scripted validation accuracies; returns progress, and whether its weights are
    those of the selected epoch."""

    def run(top1, method="ofq", **recipe):
        settings = micro(method, recipe=recipe)
        epochs = []

        def scripted(model, data, split, *how):
            assert split == "val", "the test split is not for selection"
            epochs.append({key: value.clone() for key, value in model.state_dict().items()})
            return replace(ANY, top1=top1[len(epochs) - 1])

        monkeypatch.setattr(engine, "evaluate", scripted)
        trainer = make_trainer(settings, tmp_path / "checkpoint.pt")
        progress = trainer.run()
        assert [row["val_top1"] for row in progress.history] == top1
        chosen = epochs[progress.best_epoch]
        final = trainer.model.state_dict()
        assert all(torch.equal(final[key], chosen[key]) for key in chosen)
        others = [state for state in epochs if state is not chosen]
        name = "blocks.0.mlp.fc1.bias"  # never frozen
        assert not any(torch.equal(final[name], state[name]) for state in others)
        return progress.best_epoch, progress.best_top1

    return run


@pytest.mark.parametrize("method", ["ofq", "lsq"])
def test_only_epochs_of_the_last_phase_compete(method, selected):
    """The same for a method without CGA, so that both choose among as many epochs."""
    assert selected([90.0, 95.0, 50.0, 60.0, 55.0], method, epochs=2, cga_epochs=3) == (3, 60.0)


def test_without_a_last_phase_all_epochs_compete(selected):
    assert selected([20.0, 70.0, 60.0], "fp", epochs=3, cga_epochs=0) == (1, 70.0)


def test_on_a_tie_the_later_epoch_is_taken(selected):
    assert selected([10.0, 60.0, 60.0, 50.0], epochs=1, cga_epochs=3) == (2, 60.0)


def test_a_model_that_gets_nothing_right_is_still_selected(selected):
    assert selected([0.0, 0.0, 0.0], epochs=1, cga_epochs=2) == (2, 0.0)


class WithoutValidation(ArrayData):
    """Nothing is held out."""

    def split_size(self, split):
        return 0 if split == "val" else super().split_size(split)


def test_without_a_validation_split_the_last_epoch_is_taken(micro, make_trainer, digits, tmp_path):
    """Nothing is selected, and no accuracy is made up."""
    settings = micro("ofq", recipe={"epochs": 1, "cga_epochs": 2})
    data = WithoutValidation(load_prepared(digits), settings.data)
    weights = []
    trainer = make_trainer(settings, tmp_path / "c.pt", data=data)
    trainer.observe = lambda event: weights.append(trainer.model.head.weight.detach().clone())
    progress = trainer.run()
    assert (progress.best_epoch, progress.best_top1) == (2, None)
    assert torch.equal(trainer.model.head.weight, weights[-1])
    assert not torch.equal(weights[-1], weights[-7])
    assert {(row["val_loss"], row["val_top1"]) for row in progress.history} == {(None, None)}


def test_a_batch_that_the_data_cannot_fill(micro, make_trainer, tmp_path):
    """Silently smaller batches would be another recipe."""
    settings = micro("ofq", recipe={"batch_size": 196})
    with pytest.raises(DataError) as error:
        make_trainer(settings, tmp_path / "checkpoint.pt")
    assert "recipe.batch_size = 196, but there are only 195 training images" in str(error.value)


@pytest.fixture
def written(micro, make_trainer, monkeypatch, tmp_path):
    """After how many steps a checkpoint was written; a step takes ten seconds."""

    def run(seconds):
        clock, steps, saved = [0.0], [], []
        monkeypatch.setattr(engine.time, "monotonic", lambda: clock[0])
        monkeypatch.setattr(engine.checkpoints, "save", lambda *given: saved.append(len(steps)))
        recipe = {"checkpoint_seconds": seconds}
        trainer = make_trainer(micro("statsq", recipe=recipe), tmp_path / "checkpoint.pt")
        fill = trainer.gradients.fill

        def slowly(*arguments):
            clock[0] += 10.0
            return fill(*arguments)

        monkeypatch.setattr(trainer.gradients, "fill", slowly)
        trainer.observe = steps.append
        trainer.run()
        return saved

    return run


@pytest.mark.parametrize(
    ("seconds", "after"),
    [
        (0.0, [6, 12, 18]),  # after every epoch, and never within one
        (3600.0, [18]),
        # 40 s have passed when the fifth step begins, and again when the tenth does. At 15 and at
        # the end of the second epoch it is too early.
        (40.0, [5, 10, 15, 18]),
        (10.0, [2, 4, 6, 8, 10, 12, 14, 16, 18]),
    ],
)
def test_when_checkpoints_are_written(seconds, after, written):
    """`checkpoint_seconds` counts within epochs too; the end is always written."""
    assert written(seconds) == after
