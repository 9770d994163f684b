"""Which epoch's weights a run ends with, and how it ends when its loss is not finite."""

import pytest
import torch

from ofq_core import checkpoints
from ofq_core.errors import DataError
from ofq_core.evaluation import Evaluation
from ofq_core.training import TrainingError, engine


@pytest.fixture
def selected(monkeypatch, micro, make_trainer, tmp_path):
    """Train with scripted validation accuracies; returns progress, and whether its weights are
    those of the selected epoch."""

    def run(top1, method="ofq", **recipe):
        settings = micro(method, recipe=recipe)
        epochs = []

        def scripted(model, data, split, batch_size):
            assert split is data.val, "the test split is not for selection"
            epochs.append({key: value.clone() for key, value in model.state_dict().items()})
            return Evaluation(top1[len(epochs) - 1], 100.0, 1.0, 30, 0, 30)

        monkeypatch.setattr(engine, "evaluate", scripted)
        trainer = make_trainer(settings, tmp_path / "checkpoint.pt")
        progress = trainer.run()
        assert [row["val_top1"] for row in progress.history] == top1
        chosen = epochs[progress.best_epoch]
        final = trainer.model.state_dict()
        assert all(torch.equal(final[key], chosen[key]) for key in chosen)
        others = [state for state in epochs if state is not chosen]
        name = "blocks.0.mlp.fc1.weight"
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


def poison(trainer, step, name):
    """Put a NaN into a weight after the given step."""

    def observe(event):
        if event.epoch * event.steps + event.step == step:
            with torch.no_grad():
                trainer.model.get_parameter(name)[0, 0] = float("nan")

    trainer.observe = observe


def test_loss_that_is_not_a_number_stops_the_run(micro, make_trainer, tmp_path):
    """The message names step, layer, checkpoint and what to change; the checkpoint stays good."""
    settings = micro("ofq")
    trainer = make_trainer(settings, tmp_path / "checkpoint.pt")
    poison(trainer, 8, "blocks.0.mlp.fc2.weight")
    with pytest.raises(TrainingError) as error:
        trainer.run()
    message = str(error.value)
    assert "\n" not in message
    assert "loss = nan at step 9 (epoch 1)" in message
    assert "first in blocks.0.mlp.fc2.weight" in message
    assert f"last good checkpoint: {tmp_path / 'checkpoint.pt'}" in message
    assert "Lower recipe.lr = 0.005" in message

    state = checkpoints.load_checkpoint(tmp_path / "checkpoint.pt", settings.sha256())
    assert state["progress"]["epoch"] == 1
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())
    # And the run goes on from there.
    again = make_trainer(settings, tmp_path / "checkpoint.pt").run()
    undisturbed = make_trainer(settings, tmp_path / "other.pt").run()
    losses = [[row["train_loss"] for row in run.history] for run in (again, undisturbed)]
    assert losses[0] == losses[1]


def test_infinite_loss_with_finite_weights(micro, make_trainer, tmp_path):
    """Before any checkpoint none is named, and no layer is blamed."""
    settings = micro("ofq", distill={"hard_weight": 1e39})
    with pytest.raises(TrainingError) as error:
        make_trainer(settings, tmp_path / "checkpoint.pt").run()
    message = str(error.value)
    assert "loss = inf at step 0 (epoch 0) (all weights are still finite). Lower" in message
    assert "checkpoint" not in message
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_batch_that_the_data_cannot_fill(micro, make_trainer, tmp_path):
    """Silently smaller batches would be another recipe."""
    settings = micro("ofq", recipe={"batch_size": 196})
    with pytest.raises(DataError) as error:
        make_trainer(settings, tmp_path / "checkpoint.pt")
    assert "recipe.batch_size = 196, but there are only 195 training images" in str(error.value)


def test_checkpoints_are_not_written_more_often_than_asked(micro, make_trainer, tmp_path):
    """An hour between two: the only one is that of the end."""
    saved = []
    recipe = {"checkpoint_seconds": 3600.0}
    trainer = make_trainer(micro("ofq", recipe=recipe), tmp_path / "checkpoint.pt")
    trainer.observe = lambda event: saved.append((tmp_path / "checkpoint.pt").exists())
    trainer.run()
    assert not any(saved)
    assert (tmp_path / "checkpoint.pt").exists()
