"""Swin through timm: windows, shift, padding, reductions, scales per token and per column."""

import pytest
import torch

from ofq_core.errors import ModelError
from ofq_core.models import build_model, image_shape
from ofq_core.nn import (
    QKRWindowAttention,
    QuantConv2d,
    QuantLinear,
    QuantWindowAttention,
    calibrate,
)
from ofq_core.quant import lsq, lsq_init_scale
from ofq_core.settings import ModelSettings

SWIN = "swin_tiny_patch4_window7_224"
# 16 x 16 tokens in windows of 4, then 8 x 8, then 4 x 4 (one window: no shift).
SIZES = {
    "img_size": 32,
    "patch_size": 2,
    "in_chans": 3,
    "embed_dim": 8,
    "depth": None,
    "num_heads": None,
    "depths": (2, 2, 2),
    "heads_per_stage": (1, 2, 4),
    "window_size": 4,
    "mlp_ratio": 2.0,
}
# 14 x 14 tokens are padded to 16 x 16, then 7 x 7 to 8 x 8; the reduction pads 7 to 8.
PADDED = {"img_size": 28}
LOW = {"wbits": 4, "abits": 4, "edge_bits": 8}


@pytest.fixture
def swin(trained):
    def build(seed=0, **sizes):
        return trained(SWIN, seed, **{**SIZES, **sizes})

    return build


@pytest.fixture
def rgb(images):
    return lambda size=32, batch=3: images(batch, size=size, channels=3)


@pytest.mark.parametrize("sizes", [{}, PADDED], ids=["fits", "padded"])
@pytest.mark.parametrize("training", [True, False])
def test_unquantized_it_is_timms_model_bit_for_bit(swin, quantize, rgb, sizes, training):
    """Forward and every gradient, with shifted windows, masks and padding."""
    reference, model = swin(**sizes).train(training), swin(**sizes).train(training)
    assert any(any(b.shift_size) for b in model.layers[0].blocks)
    quantize(model)
    x = rgb(sizes.get("img_size", 32))
    expected, actual = reference(x), model(x)
    assert torch.equal(actual, expected)
    expected.square().sum().backward()
    actual.square().sum().backward()
    gradients = {n: p.grad for n, p in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, gradients.pop(name)), name
    assert not gradients


@pytest.mark.parametrize("sizes", [{}, PADDED], ids=["fits", "padded"])
def test_qkr_is_exact_with_the_query_bias_folded(swin, quantize, rgb, sizes):
    """In FP64; without the query bias the function is another one."""
    x = rgb(sizes.get("img_size", 32)).double()
    expected = swin(**sizes).double().eval()(x)
    results = {}
    for bias in ("fold", "drop"):
        model = swin(**sizes)
        quantize(model, qkr=True, qk_bias=bias)
        results[bias] = (model.double().eval()(x) - expected).abs().max().item()
    assert results["fold"] < 1e-12
    assert results["drop"] > 1e-4


@pytest.mark.parametrize("qkr", [True, False])
def test_what_is_replaced(swin, quantize, qkr):
    """Spec 3.4: attention, MLP, reductions with low bits, patch embedding and head with 8."""
    model = swin()
    report = quantize(model, **{**LOW, "wbits": 2}, qkr=qkr)
    kinds = {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear | QuantConv2d)}
    bits = {name: module.weight_quantizer.bits for name, module in kinds.items()}
    linears = ["attn.v" if qkr else "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    low = {f"layers.{s}.blocks.{b}.{n}" for s in range(3) for b in range(2) for n in linears}
    low |= {f"layers.{s}.downsample.reduction" for s in (1, 2)}
    assert bits == dict.fromkeys(low, 2) | {"patch_embed.proj": 8, "head.fc": 8}
    attention = QKRWindowAttention if qkr else QuantWindowAttention
    assert sum(isinstance(m, attention) for m in model.modules()) == 6
    dropped = {f"layers.{s}.blocks.{b}.attn.qkv.bias[k]" for s in range(3) for b in range(2)}
    assert set(report.dropped) == (dropped if qkr else set())
    assert all("relative_position_bias_table" not in name for name in report.new)
    assert any("relative_position_bias_table" in name for name in report.kept)


@pytest.mark.parametrize(("axis", "lengths"), [("token", (256, 64, 16)), ("column", (16, 8, 4))])
def test_number_of_scales(swin, quantize, rgb, axis, lengths):
    model = swin()
    quantize(model, **LOW, qkr=True, swin_scale_axis=axis)
    calibrate(model, rgb())
    for stage, (layer, length) in enumerate(zip(model.layers, lengths, strict=True)):
        block = layer.blocks[0]
        assert block.mlp.fc1.input_quantizer.scale.shape == (length,)
        assert block.mlp.fc2.input_quantizer.scale.shape == (length,)
        assert block.attn.quant_map.scale.shape == (16,)
        assert block.attn.quant_z.scale.shape == (16 * SIZES["heads_per_stage"][stage],)
        assert block.attn.quant_v.scale.shape == (8 * 2**stage,)
        if stage:
            assert layer.downsample.reduction.input_quantizer.scale.shape == (length,)


@pytest.mark.parametrize("axis", ["token", "column"])
def test_reduction_quantizes_along_its_axis(swin, quantize, rgb, axis):
    """By hand: the input (B, H, W, C) with a scale per (h, w), or per w as in the released code."""
    model = swin()
    quantize(model, **LOW, swin_scale_axis=axis)
    calibrate(model, rgb())
    quantizer = model.layers[1].downsample.reduction.input_quantizer
    x = torch.randn(2, 8, 8, 32, generator=torch.Generator().manual_seed(3))
    if axis == "token":
        expected = lsq(x.view(2, 64, 32), quantizer.scale, -8, 7, -2).view_as(x)
        init = lsq_init_scale(x.view(2, 64, 32), -2, 7, 2.0)
    else:
        expected = lsq(x, quantizer.scale, -8, 7, -2)
        init = lsq_init_scale(x, -2, 7, 2.0)
    assert torch.equal(quantizer(x), expected)
    calibrate(torch.nn.Sequential(quantizer), x)
    torch.testing.assert_close(quantizer.scale, init)


def test_shift_mask_separates_regions(swin, quantize, rgb):
    """A change in one corner does not reach the opposite corner's region through the wrap-around.

    With shifted windows, first and last rows share a window; only the mask keeps them apart.
    """
    model = swin(depths=(2, 2, 2))
    quantize(model, qkr=True)
    block = model.layers[0].blocks[1].eval()
    x = torch.randn(1, 16, 16, 8, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 0, 0] += 5.0
    difference = (block(changed) - block(x)).abs().amax(dim=-1)[0]
    assert difference[0, 0] > 0.1
    assert difference[15, 15] < 1e-6
    assert difference[0, 15] < 1e-6


@pytest.mark.parametrize("qkr", [True, False])
@pytest.mark.parametrize("weight", ["statsq", "lsq"])
def test_a_quantized_swin_learns(swin, quantize, rgb, qkr, weight):
    """Loss falls on one batch, and every parameter gets a gradient.

    In FP64, so that a dozen steps are the same ones on every machine.
    """
    model = swin()
    quantize(model, weight=weight, wbits=3, abits=3, edge_bits=8, qkr=qkr)
    x, labels = rgb(batch=8), torch.arange(8)
    calibrate(model, x)
    model, x = model.double(), x.double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        missing = [n for n, p in model.named_parameters() if p.grad is None]
        assert missing == []
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_wrong_image_size(swin, quantize, rgb):
    model = swin()
    quantize(model, **LOW)
    with pytest.raises(ModelError, match="cannot take images of shape"):
        calibrate(model, rgb(28))


def test_shape_and_stochastic_depth():
    """Spec 7.1: drop path off; timm's own default for Swin is 0.1."""
    model = build_model(ModelSettings(name=SWIN, num_classes=5), 0)
    assert image_shape(model) == (3, 224, 224)
    assert not any(type(m).__name__ == "DropPath" for m in model.modules())
    assert model.layers[2].blocks[0].attn.num_heads == 12


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        (SWIN, {"depth": 2}, "model.depth is for vision transformers and model.depths for Swin"),
        (SWIN, {"depths": None, "heads_per_stage": None, "window_size": None, "depth": 3}, "built"),
        (SWIN, {"patch_size": None, "img_size": 30}, "multiple of the patch size"),
        ("deit_tiny_patch16_224", {}, "cannot be built"),
    ],
)
def test_refused_sizes(micro, name, sizes, message):
    with pytest.raises(ModelError, match=message):
        micro(name, **{**SIZES, **sizes})
