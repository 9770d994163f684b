"""Which parameters are decayed; that every one is trained."""

import pytest
import torch

from ofq_core.models import build_model
from ofq_core.training import make_optimizer, parameter_groups

# Matrices and the convolution. Everything else (biases, norms, scales, tokens, position
# embedding) is not decayed.
DECAYED = {
    "fp": ["patch_embed.proj.weight", "head.weight", "head_dist.weight"]
    + [f"blocks.0.{n}.weight" for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")],
    "lsq": ["patch_embed.proj.weight", "head.weight", "head_dist.weight"]
    + [f"blocks.0.{n}.weight" for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")],
    "ofq": ["patch_embed.proj.weight", "head.weight", "head_dist.weight"]
    + [f"blocks.0.{n}.weight" for n in ("attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")]
    + ["blocks.0.attn.q_weight", "blocks.0.attn.k_weight"],
}
# A few that must be there, one of each kind.
KEPT = {
    "fp": ["cls_token", "dist_token", "pos_embed", "norm.weight", "blocks.0.attn.qkv.bias"],
    "lsq": [
        "cls_token",
        "dist_token",
        "pos_embed",
        "blocks.0.norm1.weight",
        "blocks.0.attn.qkv.weight_quantizer.scale",
        "blocks.0.attn.quant_map.scale",
        "patch_embed.proj.input_quantizer.bias_before",
        "head.weight_quantizer.scale",
    ],
    "ofq": [
        "pos_embed",
        "blocks.0.attn.q_bias",
        "blocks.0.attn.quant_z.scale",
        "blocks.0.attn.input_quantizer.bias_after",
        "blocks.0.mlp.fc2.input_quantizer.scale",
        "head_dist.bias",
    ],
}


@pytest.fixture
def model(micro, make_trainer, tmp_path):
    def build(method):
        return make_trainer(micro(method), tmp_path / "c.pt").model

    return build


@pytest.mark.parametrize("method", DECAYED)
def test_membership(method, model):
    module = model(method)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decayed, kept = parameter_groups(module, 0.07)
    assert decayed["weight_decay"] == 0.07
    assert kept["weight_decay"] == 0.0
    assert sorted(names[id(p)] for p in decayed["params"]) == sorted(DECAYED[method])
    rest = {names[id(p)] for p in kept["params"]}
    assert rest >= set(KEPT[method])
    assert rest | set(DECAYED[method]) == set(names.values()), "every parameter, once"
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_plain_vision_transformer(micro):
    settings = micro("fp", model={"name": "vit_tiny_patch16_224"}).model
    module = build_model(settings, 0)
    _, kept = parameter_groups(module, 0.1)
    exempt = {id(module.cls_token), id(module.pos_embed)}
    assert exempt <= {id(p) for p in kept["params"]}


def test_adamw_as_in_the_recipe(micro, model):
    recipe = micro("ofq").recipe
    optimizer = make_optimizer(model("ofq"), recipe)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group, decay in zip(optimizer.param_groups, (recipe.weight_decay, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["eps"]) == (recipe.lr, (0.9, 0.999), 1e-8)
        assert group["weight_decay"] == decay


def test_the_epochs_rate_reaches_both_groups(micro, make_trainer, tmp_path):
    """Warm-up, cosine and floor, as `learning_rate` says, in history and optimizer alike."""
    seen = []
    recipe = {"epochs": 4, "cga_epochs": 2, "warmup_epochs": 1, "warmup_lr": 1e-6}
    settings = micro("ofq", recipe=recipe, fidelity={"lr_step": "epoch"})
    trainer = make_trainer(settings, tmp_path / "c.pt")
    trainer.observe = lambda event: seen.append(
        (event.epoch, *(group["lr"] for group in trainer.optimizer.param_groups))
    )
    history = trainer.run().history
    rates = [row["lr"] for row in history]
    # 2e-3 + (5e-3 - 2e-3) / 2 * (1 + cos(pi * epoch / 4))
    assert rates == pytest.approx([1e-6, 4.56066017e-3, 3.5e-3, 2.43933983e-3, 2e-3, 2e-3])
    assert set(seen) == {(epoch, rate, rate) for epoch, rate in enumerate(rates)}
