"""Rounding, and independence of how many images or processes there are."""

import math

import pytest
import torch

from ofq_core.data import open_data
from ofq_core.evaluation import evaluate
from ofq_core.quant import lsq, statsq_codes
from tests.training.doubled import Doubled


@pytest.mark.claim(
    "Ties round half to even, in StatsQ and LSQ, and no code leaves the grid.",
    released="The same at 2 bits and more; at 1 bit its StatsQ has three levels (refused here).",
)
def test_half_to_even():
    """By hand: s = 2 mean|W| = 1.5, u = W / s * 2 - 1/2; 0 is no level, and goes up."""
    weight = torch.tensor([[0.75, -0.75, 0.0, 1.5, -1.5, 0.0]])
    #              u =      0.5   -1.5   -0.5  top  -2.5  -0.5
    assert statsq_codes(weight, 2).tolist() == [[0, -2, 0, 1, -2, 0]]
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -9.0, 9.0])
    assert lsq(x, torch.ones(1), -4, 3, None).tolist() == [0, 2, 2, 0, -2, -2, -4, 3]


@pytest.mark.claim(
    "The evaluation does not depend on the batch size: 1, 7 and 64 give the same counts.",
    released="No functional dependence either, though its README demands a batch size.",
)
@pytest.mark.parametrize("qkr", [False, True], ids=["plain", "qkr"])
@pytest.mark.parametrize("model", ["deit", "swin"])
def test_batch_size_of_the_evaluation(model, qkr, run_settings, wired):
    """Logits of an image agree to 1e-10, counts and classes exactly, the last batch is partial.

    In FP64: a matrix product may add in another order for another number of rows, and in FP32 one
    of the half million values that are quantized here may then get another code.
    """
    trainer = wired(run_settings(model, qkr=qkr))
    student, data = trainer.model.eval().double(), Doubled(trainer.data)
    assert data.split_size("test") % 7
    assert data.split_size("test") % 64
    results, logits = [], []
    for size in (1, 7, 64):
        result = evaluate(student, data, "test", size).as_dict()
        results.append({key: value for key, value in result.items() if key != "loss"})
        batches = data.eval_batches("test", size, trainer.world.share, trainer.world.device)
        with torch.no_grad():
            logits.append(torch.cat([student(batch.images) for batch in batches]))
    assert results[0] == results[1] == results[2]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=0, atol=1e-10)
    assert results[0]["n_images"] == data.split_size("test")


@pytest.mark.claim(
    "The evaluation does not depend on the number of processes: each image counts once.",
    released="Images are counted twice where the number of processes does not divide theirs.",
)
def test_processes_of_the_evaluation(two_processes, run_settings, wired, inputs):
    """75 images in two processes, in FP64 as above: the counts of one process, loss to 1e-12."""
    first, second = (found["evaluation"] for found in two_processes)
    assert first == second
    settings = run_settings()
    data = open_data(settings.data, inputs["deit"].data)
    assert data.split_size("test") % 2 == 1
    model = wired(settings).model
    model.load_state_dict(two_processes[0]["undisturbed"]["state"])
    alone = evaluate(model.double(), Doubled(data), "test", 64).as_dict()
    for key, value in alone.items():
        if key == "loss":
            assert first[key] == pytest.approx(value, rel=1e-12)
        else:
            assert first[key] == value, key


@pytest.mark.claim(
    "LSQ's gradient scale counts the entries of the whole batch, so that it does not depend on how "
    "many processes share it; `fidelity.lsq_group=per_process` counts those of one process.",
    released="Entries of one GPU's batch: twice the GPUs, sqrt(2) times the gradient of a scale.",
)
@pytest.mark.switch("lsq_group")
def test_lsq_group_of_two_processes(two_processes):
    """Two processes: scales of activations get sqrt(2) times the gradient, all else the same."""
    for found in two_processes:
        ratios = set()
        for name, whole in found["global"].items():
            part = found["per_process"][name]
            scale = name.endswith("quantizer.scale") and "weight_quantizer" not in name
            scale |= ".quant_" in name and name.endswith(".scale")
            expected = whole * math.sqrt(2) if scale else whole
            torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-9, msg=name)
            ratios.add(scale and bool(whole.abs().max() > 0))
        assert ratios == {False, True}
