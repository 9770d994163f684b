"""Every backbone of the benchmark converts, calibrates and runs, not only at 224 pixels."""

import pytest
import torch

from ofq_core.models import build_model, image_shape, is_distilled
from ofq_core.nn import calibrate
from ofq_core.settings import ModelSettings

VIT = {"img_size": 48, "depth": 1}
SWIN = {"img_size": 64, "depths": (1, 2), "heads_per_stage": (3, 6), "window_size": 4}
# timm's name, sizes, tokens that attend to each other, number of parameters that timm's full model
# has with 1000 classes (None: not checked).
BACKBONES = [
    ("deit_tiny_distilled_patch16_224", VIT, 11, 5_910_800),
    ("deit_small_distilled_patch16_224", VIT, 11, 22_436_432),
    ("deit_base_distilled_patch16_224", VIT, 11, 87_338_192),
    ("deit_tiny_patch16_224", VIT, 10, 5_717_416),
    ("deit_small_patch16_224", VIT, 10, 22_050_664),
    ("deit_base_patch16_224", VIT, 10, 86_567_656),
    ("vit_tiny_patch16_224", VIT, 10, None),
    ("vit_small_patch32_224", {**VIT, "img_size": 96}, 10, None),
    ("vit_small_patch14_reg4_dinov2", {**VIT, "img_size": 42}, 14, None),  # 4 registers
    ("vit_base_patch16_clip_224", VIT, 10, None),  # a norm before the blocks, no biases there
    ("swin_tiny_patch4_window7_224", SWIN, 16, 28_288_354),
    ("swin_small_patch4_window7_224", SWIN, 16, 49_606_258),
]


@pytest.mark.parametrize(
    ("name", "sizes", "tokens", "parameters"), BACKBONES, ids=[b[0] for b in BACKBONES]
)
@pytest.mark.parametrize("qkr", [True, False])
def test_converts_and_runs(quantize, images, name, sizes, tokens, parameters, qkr):
    model = build_model(ModelSettings(name=name, num_classes=7, **sizes), 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = quantize(model, wbits=3, abits=3, edge_bits=8, qkr=qkr)
    assert report.kept.keys() == before.keys(), "every tensor of the source arrives"
    x = images(2, size=sizes["img_size"], channels=3)
    calibrate(model, x)
    maps = [m for n, m in model.named_modules() if n.endswith("quant_map")]
    assert {m.scale.numel() for m in maps} == {tokens}
    assert model.eval()(x).shape == (2, 7)
    outputs = model.train()(x)
    assert isinstance(outputs, tuple) == is_distilled(model)
    assert image_shape(model) == (3, sizes["img_size"], sizes["img_size"])


@pytest.mark.parametrize(
    ("name", "parameters"), [(b[0], b[3]) for b in BACKBONES if b[3] is not None]
)
def test_full_size(name, parameters):
    """Left to themselves the sizes are those of the published models."""
    with torch.device("meta"):
        model = build_model(ModelSettings(name=name, num_classes=1000), 0)
    assert sum(p.numel() for p in model.parameters()) == parameters
