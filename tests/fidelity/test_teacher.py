"""The teacher is a fixed function, and which of its outputs is the target is stated."""

import pytest
import torch
from torch.nn import functional as F


@pytest.mark.claim(
    "The teacher gets no gradient and does not change.",
    released="Gradients are computed for the teacher and thrown away.",
)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_teacher_does_not_learn(mode, run_settings, wired):
    """After a whole run every tensor of it is bit-identical; no graph leads to it."""
    trainer = wired(run_settings(fidelity={"teacher_mode": mode}))
    teacher = trainer.teacher
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    trainer.run()
    assert teacher.model.training == (mode == "train")
    for name, parameter in teacher.model.named_parameters():
        assert parameter.grad is None, name
        assert not parameter.requires_grad, name
    for name, value in teacher.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    (batch,) = (
        trainer.data.eval_batches("val", 4, trainer.world.share, trainer.world.device)
        .__iter__()
        .__next__(),
    )
    assert teacher(batch.images.requires_grad_()).grad_fn is None


@pytest.mark.claim(
    "The soft target is the stated head of the teacher: the mean of both heads (its inference "
    "output) or the class head alone, in either mode.",
    released="The class head alone, since the teacher is in training mode and its first output is "
    "taken; never a mean.",
)
@pytest.mark.parametrize("head", ["mean", "cls"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_target_is_the_stated_head(mode, head, run_settings, wired, source, images):
    """Heads by hand from the tokens of timm's model; the loss of a step has that target."""
    trainer = wired(run_settings(fidelity={"teacher_mode": mode, "teacher_head": head}))
    full = source().eval()
    x = images()
    with torch.no_grad():
        tokens = full.forward_features(x)
        heads = [full.head(tokens[:, 0]), full.head_dist(tokens[:, 1])]
    wanted = {"mean": (heads[0] + heads[1]) / 2, "cls": heads[0]}
    torch.testing.assert_close(trainer.teacher(x), wanted[head], rtol=1e-5, atol=1e-6)
    other = wanted["cls" if head == "mean" else "mean"]
    assert (wanted[head] - other).abs().max() > 0.1

    trainer.model.train()
    batch = next(
        trainer.data.train_batches(
            trainer.recipe, 0, 0, 0, trainer.world.share, trainer.world.device
        )
    )
    _, hard, soft = trainer.gradients.fill(batch, 0, 0).tolist()
    with torch.no_grad():
        class_logits, other_logits = trainer.model(batch.images)
        target = trainer.teacher(batch.images).softmax(dim=1)
        assert soft == pytest.approx(
            float(-(target * other_logits.log_softmax(dim=1)).sum(dim=1).mean()), rel=1e-5
        )
        assert hard == pytest.approx(float(F.cross_entropy(class_logits, batch.targets)), rel=1e-5)
