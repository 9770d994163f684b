"""Post-training quantization through the trainer: no step is taken, all the rest is as ever."""

import json

import pytest
import torch

from ofq_core.evaluation import evaluate
from ofq_core.settings import QuantSettings
from ofq_core.training import engine
from pipelines import training

METHODS = ["rtn", "ptq"]


@pytest.fixture
def settings(micro):
    return lambda weight, **groups: micro("lsq", quant={"weight": weight}, **groups)


@pytest.mark.parametrize("weight", METHODS)
@pytest.mark.parametrize("recipe", [{}, {"cga_epochs": 0}, {"ema_decay": 0.9}])
def test_no_step(weight, recipe, settings, make_trainer, tmp_path, monkeypatch):
    """Validation is evaluated once, and the weights stay as they are in every bit."""
    evaluated = []
    monkeypatch.setattr(
        engine, "evaluate", lambda *args: evaluated.append(args[2]) or evaluate(*args)
    )
    steps = []
    trainer = make_trainer(settings(weight, recipe=recipe), tmp_path / "c.pt", steps.append)
    trainer.optimizer.step = lambda *args: pytest.fail("a step")
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    progress = trainer.run()
    assert steps == []
    assert evaluated == ["val"]
    assert (progress.epoch, progress.step, progress.history) == (0, 0, [])
    after = trainer.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert progress.best_epoch == 0
    assert progress.best_top1 == evaluate(trainer.model, trainer.data, "val", 32).top1
    assert trainer.oscillation is None
    assert trainer.oscillation_layers == {}
    assert trainer.tracker.trajectory is None
    assert not (tmp_path / "c.pt").exists()


def test_without_a_validation_split(settings, make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(settings("rtn"), tmp_path / "c.pt")
    monkeypatch.setattr(trainer.data, "split_size", lambda split: 0)
    progress = trainer.run()
    assert progress.best_top1 is None
    assert progress.best_state.keys() == trainer.model.state_dict().keys()


@pytest.mark.parametrize(
    ("wbits", "abits", "trains"), [(2, 2, False), (32, 2, False), (2, 32, False), (32, 32, True)]
)
def test_what_is_not_quantized_at_all_is_trained(wbits, abits, trains):
    quant = {"weight": "rtn", "wbits": wbits, "abits": abits, "qkr": False, "cga": False}
    assert QuantSettings(**quant).trains == trains


@pytest.mark.parametrize("weight", METHODS)
def test_what_a_stage_writes(weight, settings, digits, teacher_file, tmp_path, monkeypatch):
    """Nothing is divided by zero steps or seconds, and metrics say that there are no figures."""
    monkeypatch.chdir(tmp_path)
    run = settings(weight)
    inputs = training.Inputs(digits, teacher_file)
    log = []
    folder = training.train_run(run, inputs, "test", log.append)
    written = json.loads((folder / "training.json").read_text())
    assert written["oscillation"] is None
    assert written["epoch_selected"] == 0
    assert 0 <= written["val_top1"] <= 100
    assert written["cost"]["images_per_second"] is None
    assert written["cost"]["train_seconds"] == 0.0
    assert len((folder / "history.csv").read_text().splitlines()) == 1, "column names alone"
    assert json.loads((folder / "oscillation.json").read_text()) == {}
    assert json.loads((folder / "trajectories.json").read_text()) == {}
    histogram = json.loads((folder / "histogram.json").read_text())
    assert sum(histogram["position"]["counts"]) > 100, "where the weights stand is known"
    metrics = training.evaluate_run(folder, run, inputs)
    assert metrics["oscillation"] is None
    assert metrics["n_images"] == 75
