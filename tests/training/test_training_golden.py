"""CGA steps, the distillation loss and the schedule against numbers of the released code."""

import pytest
import torch
from torch import nn

from ofq_core.methods.statsq import StatsQWeight
from ofq_core.training.cga import ConfidenceGuidedAnnealing
from ofq_core.training.distill import distillation_loss
from ofq_core.training.lowbit import LowBitWeight
from ofq_core.training.schedule import learning_rate

TABLES = {  # peak rate and warm-up epochs of the released scripts
    "lr5.47e-4_wu5": (5.47e-4, 5),
    "lr3.2e-4_wu0": (3.2e-4, 0),
    "lr5e-4_wu5": (5e-4, 5),
    "lr2e-4_wu0": (2e-4, 0),
}


def test_cga_steps(golden, close, exact):
    """Three steps of AdamW; frozen entries keep every bit, decay and momentum included."""
    group = golden["cga_adamw_steps"]
    steps = group["steps"]
    parameter = nn.Parameter(torch.tensor(steps[0]["weight_before"]))
    quantizer = StatsQWeight(parameter, group["bits"])
    quantizer.observed_range = True  # as released
    optimizer = torch.optim.AdamW(
        [parameter], lr=1e-2, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8
    )
    weight = LowBitWeight("weight", quantizer, parameter, parameter.detach, lambda: parameter)
    annealing = ConfidenceGuidedAnnealing(optimizer, [weight], group["boundary_range"])
    for step in steps:
        before = parameter.detach().clone()
        close(before, step["weight_before"], "weight before")
        exact(~quantizer.free(parameter, group["boundary_range"]), step["freeze_mask"])
        parameter.grad = torch.tensor(step["grad"])
        annealing.step()
        close(parameter, step["weight_after"], "weight after")
        frozen = torch.tensor(step["freeze_mask"]).bool()
        assert torch.equal(parameter[frozen], before[frozen])
        assert not torch.isclose(parameter[~frozen], before[~frozen], rtol=1e-4).any()
        assert int(annealing.frozen) == int(frozen.sum())
        assert annealing.total == frozen.numel()


def logits(group, name):
    return torch.tensor(group[name], requires_grad=True)


def test_loss_of_a_distilled_student(golden, close):
    group = golden["kd_loss"]
    cls, dist = logits(group, "student_cls"), logits(group, "student_dist")
    teacher = logits(group, "teacher_cls")
    losses = distillation_loss((cls, dist), torch.tensor(group["target"]), teacher)
    losses.total.backward()
    close(losses.total, group["loss"], "loss")
    close(losses.hard + losses.soft, group["loss"], "parts")
    close(cls.grad, group["grad_cls"], "grad_cls")
    close(dist.grad, group["grad_dist"], "grad_dist")
    assert teacher.grad is None


def test_loss_of_a_student_with_one_head(golden, close):
    group = golden["kd_loss"]
    output, teacher = logits(group, "single_output"), logits(group, "teacher_cls")
    losses = distillation_loss(output, torch.tensor(group["target"]), teacher)
    losses.total.backward()
    close(losses.total, group["single_loss"], "loss")
    close(output.grad, group["single_grad"], "gradient")


def test_loss_with_soft_labels(golden, close):
    group = golden["kd_loss"]
    heads = (logits(group, "student_cls"), logits(group, "student_dist"))
    losses = distillation_loss(
        heads, torch.tensor(group["soft_target"]), logits(group, "teacher_cls")
    )
    close(losses.total, group["soft_target_loss"], "loss")


@pytest.mark.parametrize("key", TABLES)
def test_schedule(golden, key):
    rate, warmup = TABLES[key]
    table = golden["lr_schedule"]["tables"][key]
    assert table["total_epochs"] == 310
    for epoch, expected in table["lr"].items():
        actual = learning_rate(
            int(epoch), 300, rate, min_lr=1e-5, warmup_lr=1e-6, warmup_epochs=warmup
        )
        # Digits in the file: 7. Far stricter than 2e-5, as rates are below the absolute tolerance.
        assert actual == pytest.approx(expected, rel=1e-6)


def test_every_schedule_is_tested(golden):
    assert golden["lr_schedule"]["tables"].keys() == TABLES.keys()
