"""The teacher: frozen, in evaluation mode, with the output head that was asked for."""

import pytest
import torch
from torch import nn

from ofq_core.models import build_model
from ofq_core.training import Teacher


@pytest.fixture
def model(micro):
    """A distilled model whose two heads disagree, with dropout that evaluation must switch off."""
    model = build_model(micro("fp").model, 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for head in (model.head, model.head_dist):
            head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
    model.pos_drop = nn.Dropout(0.5)
    model.head_drop = nn.Dropout(0.5)
    return model.train()


@pytest.fixture
def images():
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens(model, images):
    """Class and distillation token after the last norm, in evaluation mode."""
    with torch.no_grad():
        features = model.eval().forward_features(images)
    return features[:, 0], features[:, 1]


def test_class_head(model, images, tokens):
    expected = nn.functional.linear(tokens[0], model.head.weight, model.head.bias)
    assert torch.equal(Teacher(model.train(), "cls")(images), expected)


def test_mean_of_both_heads(model, images, tokens):
    cls = nn.functional.linear(tokens[0], model.head.weight, model.head.bias)
    dist = nn.functional.linear(tokens[1], model.head_dist.weight, model.head_dist.bias)
    logits = Teacher(model.train(), "mean")(images)
    assert torch.equal(logits, (cls + dist) / 2)
    assert not torch.allclose(logits, cls, atol=0.1), "the heads differ, so the choice matters"


@pytest.mark.parametrize("head", ["cls", "mean"])
def test_a_model_with_one_head_has_one_output(head, micro, images):
    plain = build_model(micro("fp", model={"name": "vit_tiny_patch16_224"}).model, 0)
    with torch.no_grad():
        expected = plain.eval()(images)
    assert torch.equal(Teacher(plain, head)(images), expected)


@pytest.mark.parametrize("head", ["cls", "mean"])
def test_nothing_of_it_is_differentiated(head, model, images):
    teacher = Teacher(model, head)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    logits = teacher(images)
    assert not logits.requires_grad
    # The student's graph may save these logits, which it could not if they were of inference mode.
    assert not logits.is_inference()
    student = torch.zeros(5, 10, requires_grad=True)
    nn.functional.cross_entropy(student, logits).backward()
    with torch.no_grad():
        expected = (student.softmax(-1) * logits.sum(-1, keepdim=True) - logits) / 5
    assert torch.allclose(student.grad, expected, atol=1e-6)
    # The same bits as in a forward that keeps no graph.
    with torch.no_grad():
        assert torch.equal(logits, teacher._logits(images))


@pytest.mark.parametrize("head", ["cls", "mean"])
def test_a_run_leaves_it_as_it_was(head, micro, make_trainer, tmp_path):
    trainer = make_trainer(micro("ofq", fidelity={"teacher_head": head}), tmp_path / "c.pt")
    model = trainer.teacher.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in model.parameters()}


def test_the_head_changes_the_run(micro, make_trainer, tmp_path):
    """The setting reaches the loss."""
    losses = []
    for head in ("cls", "mean"):
        settings = micro("statsq", fidelity={"teacher_head": head})
        progress = make_trainer(settings, tmp_path / f"{head}.pt").run()
        losses.append(progress.history[0]["train_soft_loss"])
    assert losses[0] != losses[1]
