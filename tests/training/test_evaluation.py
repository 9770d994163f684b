"""Evaluation counts exactly, whatever the batch size."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ofq_core.data import PreparedData, Split, load_prepared
from ofq_core.evaluation import evaluate


class Fixed(nn.Module):
    """Its logits are its images, so that every figure can be counted by hand."""

    def forward(self, images):
        return images.flatten(1)


def data_of(logits, labels):
    split = Split(torch.tensor(logits)[:, None, None, :], torch.tensor(labels))
    return PreparedData(split, split, split, mean=0.0, std=1.0, classes=10, manifest_sha256="")


def test_by_hand():
    """Four images, six classes: one right, one second, one fifth, one sixth."""
    ranks = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    data = data_of([ranks] * 4, [0, 1, 4, 5])
    result = evaluate(Fixed(), data, data.test, 3)
    assert result.as_dict() == {
        "top1": 25.0,
        "top5": 75.0,
        "loss": pytest.approx(2.956193, abs=1e-6),  # log(sum exp) - mean(5, 4, 1, 0)
        "n_images": 4,
        "n_correct": 1,
        "n_correct_top5": 3,
    }


def test_fewer_than_five_classes():
    data = data_of([[1.0, 0.0, 2.0]] * 2, [2, 0])
    result = evaluate(Fixed(), data, data.test, 8)
    assert (result.top1, result.top5, result.n_correct_top5) == (50.0, 100.0, 2)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_and_back(training):
    """Dropout of everything would leave no image right; the mode is restored."""
    model = nn.Sequential(nn.Dropout(1.0), Fixed()).train(training)
    data = data_of([[0.0, 1.0]] * 5, [1] * 5)
    assert evaluate(model, data, data.val, 2).n_correct == 5
    assert model.training is training


def test_images_are_normalised():
    split = Split(torch.tensor([[[[6.0, 2.0]]]]), torch.tensor([0]))
    data = PreparedData(split, split, split, 4.0, 2.0, 2, "")
    expected = float(F.cross_entropy(torch.tensor([[1.0, -1.0]]), torch.tensor([0])))
    assert evaluate(Fixed(), data, split, 1).loss == pytest.approx(expected)


def test_model_of_a_run_does_not_depend_on_the_batch_size(micro, make_trainer, digits, tmp_path):
    """In FP64: in FP32 the last bits, which depend on the batch size, may flip a code."""
    trainer = make_trainer(micro("ofq", bits=3), tmp_path / "c.pt")
    trainer.run()
    model = trainer.model.double()
    data = load_prepared(digits)
    test = replace(data.test, images=data.test.images.double())
    results = [evaluate(model, data, test, size) for size in (1, 7, 64, 1000)]
    reference = results[-1]
    assert reference.n_images == 75
    assert 0 < reference.n_correct < reference.n_correct_top5 < 75
    assert reference.top1 == 100 * reference.n_correct / 75
    for result in results:
        assert result.n_correct == reference.n_correct
        assert result.n_correct_top5 == reference.n_correct_top5
        assert result.loss == pytest.approx(reference.loss, rel=1e-12)
