"""Evaluation counts exactly, whatever the batch size."""

import math

import pytest
import torch
from torch import nn

from ofq_core.data import ArrayData, Batch, PreparedData, Split
from ofq_core.errors import DataError, ModelError
from ofq_core.evaluation import evaluate, wilson_interval
from ofq_core.settings import DigitsSettings
from tests.training.doubled import Doubled


class Fixed(nn.Module):
    """Its logits are its images, so that every figure can be counted by hand."""

    def forward(self, images):
        return images.flatten(1)


def data_of(logits, labels, mean=0.0, std=1.0):
    """Images that are logits, as validation and as test split."""
    split = Split(torch.tensor(logits)[:, None, None, :], torch.tensor(labels))
    prepared = PreparedData(split, split, split, mean, std, len(logits[0]), manifest_sha256="")
    return ArrayData(prepared, DigitsSettings(name="digits"))


def test_by_hand():
    """Four images, six classes: one right, one second, one fifth, one sixth."""
    ranks = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    data = data_of([ranks] * 4, [0, 1, 4, 5])
    result = evaluate(Fixed(), data, "test", 3)
    assert result.as_dict() == {
        "top1": 25.0,
        # p = 1/4, n = 4: (0.25 + 0.4802 -+ 1.96 sqrt(0.0469 + 0.0600)) / 1.9604
        "top1_low": pytest.approx(4.5587, abs=1e-3),
        "top1_high": pytest.approx(69.9358, abs=1e-3),
        "top5": 75.0,
        "loss": pytest.approx(2.956193, abs=1e-6),  # log(sum exp) - mean(5, 4, 1, 0)
        "n_images": 4,
        "n_correct": 1,
        "n_correct_top5": 3,
        "n_unreadable": 0,
        "per_class_images": [1, 1, 0, 0, 1, 1],
        "per_class_correct": [1, 0, 0, 0, 0, 0],
    }
    assert result.per_class[0] == (0, 1, 1)


def test_fewer_than_five_classes():
    data = data_of([[1.0, 0.0, 2.0]] * 2, [2, 0])
    result = evaluate(Fixed(), data, "test", 8)
    assert (result.top1, result.top5, result.n_correct_top5) == (50.0, 100.0, 2)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_and_back(training):
    """Dropout of everything would leave no image right; the mode is restored."""
    model = nn.Sequential(nn.Dropout(1.0), Fixed()).train(training)
    data = data_of([[0.0, 1.0]] * 5, [1] * 5)
    assert evaluate(model, data, "val", 2).n_correct == 5
    assert model.training is training


def test_images_are_normalised():
    data = data_of([[6.0, 2.0]], [0], mean=4.0, std=2.0)
    # Logits 1 and -1; FP32 leaves a unit in the last place of the logits, 1.2e-7.
    expected = math.log1p(math.exp(-2.0))
    assert evaluate(Fixed(), data, "test", 1).loss == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe 1998, table I: intervals of the score method, in percent.
        (81, 263, 25.53, 36.62),
        (15, 148, 6.24, 16.05),
        (0, 20, 0.0, 16.11),
        (1, 29, 0.61, 17.18),
        (20, 20, 83.89, 100.0),
    ],
)
def test_wilson_interval(correct, total, low, high):
    found = wilson_interval(correct, total)
    assert [round(100 * end, 2) for end in found] == [low, high]


@pytest.mark.parametrize(("correct", "total"), [(-1, 5), (6, 5), (0, 0)])
def test_no_interval_of_impossible_counts(correct, total):
    with pytest.raises(ValueError, match="expected a count from 0 to total"):
        wilson_interval(correct, total)


class Torn(ArrayData):
    """Some of its images cannot be read."""

    def eval_batches(self, *where):
        for batch in super().eval_batches(*where):
            there = batch.targets != 3
            if there.any():
                yield Batch(batch.images[there], batch.targets[there])


def test_unreadable_images_are_left_out_and_counted():
    data = data_of([[3.0, 2.0, 1.0, 0.0]] * 5, [0, 3, 1, 3, 0])
    torn = Torn(data.prepared, data.settings)
    result = evaluate(Fixed(), torn, "test", 1)
    assert (result.n_images, result.n_correct, result.n_unreadable) == (3, 2, 2)
    assert result.top1 == pytest.approx(200 / 3)


def test_nothing_that_can_be_read():
    data = data_of([[0.0, 0.0, 0.0, 1.0]] * 2, [3, 3])
    with pytest.raises(DataError, match="not one of 2 images of the val split was read"):
        evaluate(Fixed(), Torn(data.prepared, data.settings), "val", 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_logits_that_are_not_finite_are_no_answer(value, batch_size):
    """NaN would count as class 0, and the loss does not know of -inf for a wrong class."""
    model = nn.Sequential(nn.Identity(), Fixed())
    data = data_of([[3.0, 2.0, 1.0], [3.0, 2.0, value], [3.0, value, value]], [0, 0, 0])
    with pytest.raises(ModelError) as error:
        evaluate(model, data, "test", batch_size)
    said = "2 of 3 test images get logits that are NaN or infinite, first in 0: no accuracy can be"
    assert str(error.value).startswith(said)


def test_weights_that_are_not_finite():
    """Also where what follows would hide them."""
    model = nn.Sequential(Fixed(), nn.Linear(3, 3), nn.Hardtanh())
    with torch.no_grad():
        model[1].weight[0, 1] = -math.inf
    with pytest.raises(ModelError) as error:
        evaluate(model, data_of([[3.0, 2.0, 1.0]], [0]), "test", 1, name="a.pt")
    assert str(error.value) == (
        "a.pt: 1.weight has 1 of 9 values like -inf: no accuracy can be told"
    )


def test_finite_weights_that_overflow():
    """In BF16 as in FP32 the largest number is 3e38."""
    model = nn.Sequential(Fixed(), nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        for layer in model[1:]:
            layer.weight.copy_(1e20 * torch.eye(3))
    data = data_of([[3.0, 2.0, 1.0]], [0])
    with pytest.raises(ModelError, match=r"1 of 1 test images .* first in 2: no accuracy"):
        evaluate(model, data, "test", 1, precision="bf16")


def test_model_of_a_run_does_not_depend_on_the_batch_size(micro, make_trainer, tmp_path):
    """In FP64: in FP32 the last bits, which depend on the batch size, may flip a code."""
    trainer = make_trainer(micro("ofq", bits=3), tmp_path / "c.pt")
    trainer.run()
    model = trainer.model.double()
    data = Doubled(trainer.data)
    results = [evaluate(model, data, "test", size) for size in (1, 7, 64, 1000)]
    reference = results[-1]
    assert reference.n_images == 75
    assert 0 < reference.n_correct < reference.n_correct_top5 < 75
    assert reference.top1 == 100 * reference.n_correct / 75
    for result in results:
        assert result.n_correct == reference.n_correct
        assert result.n_correct_top5 == reference.n_correct_top5
        assert result.per_class == reference.per_class
        assert result.loss == pytest.approx(reference.loss, rel=1e-12)
