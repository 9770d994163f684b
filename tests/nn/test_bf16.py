"""Under bf16 autocast: what stays exact, and how far a whole model is from FP32.

Quantizers and softmax compute in FP32, so equal inputs have equal codes. A product in bf16 is off
by 0.3 %, which moves later inputs over thresholds: the fewer the bits, the wider the step that a
code then jumps. So at low bits the difference to FP32 is that of flipped codes, whether layers are
fused or not.
"""

import copy

import pytest
import torch
from torch.nn import functional as F

from ofq_core.models import QuantPlan, build_model, convert
from ofq_core.nn import LSQActivation, QKRAttention, QuantAttention, TokenLSQ, calibrate
from ofq_core.quant.biased_lsq import Grid, Parameters
from ofq_core.quant.fused_attention import (
    AttentionGrids,
    AttentionParameters,
    quantized_attention,
)
from ofq_core.quant.fused_linear import LinearPlan, biased_lsq, quantized_linear
from ofq_core.settings import FidelitySettings, ModelSettings, QuantSettings

BF16 = torch.bfloat16
SEEDS = range(3)
# By bits, over ten seeds with and without QKR: largest relative norm of the difference of the
# logits, smallest cosine between the gradients of all parameters together.
MEASURED = {2: (0.64, 0.68), 4: (0.35, 0.90), 8: (0.113, 0.991), 32: (0.0066, 0.99995)}
# Largest relative norm of the difference of the output of one linear layer, 2 to 8 bits.
MEASURED_OF_A_LAYER = 0.003


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def autocast(enabled=True):
    return torch.autocast("cpu", dtype=BF16, enabled=enabled)


def relative(found, expected):
    return ((found.float() - expected).norm() / expected.norm()).item()


def together(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients])


# --------------------------------------------------------------------------- what stays exact


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("bits", [2, 8])
def test_codes_are_those_of_fp32(dtype, bits):
    """A layer with the identity for its weights shows its quantized input, rounded to bf16."""
    quantizer = TokenLSQ(5, bits, bias_shape=(8,), bias_after=False)
    x = randn(4, 5, 8).to(dtype)
    calibrate(quantizer, x.float())
    with torch.no_grad():
        quantizer.bias_before.copy_(randn(8, seed=1) / 5)
    expected = quantizer(x.float())
    plan = LinearPlan(quantizer.grid(x.shape))
    with autocast():
        alone = biased_lsq(x, quantizer.learned, plan.grid)
        output = quantized_linear(x, quantizer.learned, torch.eye(8), None, plan)
    assert torch.equal(alone, expected)
    assert output.dtype == BF16
    assert torch.equal(output, expected.to(BF16))


def attention(shared, tokens=6, heads=2, width=4):
    """Operands, parameters and grids, plain or with one left for all heads: 3 bits, the map 8."""
    full = (3, tokens, heads * width)
    wide = (3, tokens, heads * heads * width) if shared else full
    view = (3, tokens * heads, full[-1]) if shared else full
    operands = [randn(*s, seed=i).to(BF16) for i, s in enumerate((full, wide, full))]
    rows = torch.full((tokens,), 0.4)
    left = Parameters(rows, randn(full[-1], seed=3) / 5, randn(full[-1], seed=4) / 5)
    right = Parameters(torch.full((view[1],), 0.4), randn(wide[-1], seed=5) / 5, None)
    value = Parameters(torch.full((full[-1],), 0.4), None, randn(full[-1], seed=6) / 5)
    map_ = Parameters(torch.full((tokens,), 0.004), None, None)  # fine enough to see bf16
    shape = (3, heads, tokens, tokens)
    grids = AttentionGrids(
        heads=heads,
        scale=0.5,
        left=None if shared else Grid(-4, 3, full, (1, tokens, 1), (full[-1],)),
        right=Grid(-4, 3, view, (1, view[1], 1), (wide[-1],)),
        value=Grid(-4, 3, full, (1, 1, full[-1]), (full[-1],)),
        map=Grid(0, 255, shape, (1, 1, tokens, 1), ()),
    )
    return operands, AttentionParameters(None if shared else left, right, value, map_), grids


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_softmax_and_quantizers_of_attention_are_in_fp32(shared, biased):
    """Step by step with the same casts: operands to bf16 when quantized, logits back to FP32.

    A logit that another kernel rounds to the other neighbour in bf16 changes up to four of the 144
    outputs; with a softmax or a map in bf16 a fifth of them differ and more.
    """
    (left, right, value), p, grids = attention(shared)
    added = (randn(grids.heads, 6, 6, seed=7),) if biased else ()
    with autocast():
        output = quantized_attention(left, right, value, added, p, grids)

    def split(x):
        return x.view(3, 6, grids.heads, -1).transpose(1, 2)

    left = left.unsqueeze(1) if shared else split(biased_lsq(left, p.left, grids.left))
    keys = split(biased_lsq(right, p.right, grids.right).to(BF16))
    logits = (left * grids.scale).to(BF16) @ keys.transpose(-2, -1)
    map_ = biased_lsq(sum(added, logits.float()).softmax(-1), p.map, grids.map)
    values = split(biased_lsq(value, p.value, grids.value).to(BF16))
    assert output.dtype == BF16
    expected = (map_.to(BF16) @ values).transpose(1, 2).flatten(2)
    assert float((output != expected).float().mean()) < 0.1


@pytest.mark.parametrize("gelu", ["", "none"])
def test_gradients_come_back_in_the_dtype_of_what_they_are_of(gelu):
    quantizer = TokenLSQ(5, 3, bias_shape=(8,))
    x = randn(4, 5, 8).to(BF16)
    calibrate(quantizer, x.float())
    x.requires_grad_()
    weight, bias = (randn(*s, seed=i).requires_grad_() for i, s in enumerate(((6, 8), (6,))))
    leaves = (x, *quantizer.learned, weight, bias)
    plan = LinearPlan(quantizer.grid(x.shape), gelu)

    def gradients(enabled):
        with autocast(enabled):
            output = quantized_linear(x, quantizer.learned, weight, bias, plan)
        return torch.autograd.grad(output, leaves, randn(4, 5, 6, seed=2).to(output.dtype))

    mixed, full = gradients(True), gradients(False)
    for found, expected, leaf in zip(mixed, full, leaves, strict=True):
        assert found.dtype == leaf.dtype
        assert relative(found, expected.float()) < 0.02


@pytest.mark.parametrize("cls", [QuantAttention, QKRAttention])
def test_a_backward_inside_autocast_is_that_outside(timm_attention, low_plan, cls):
    """The backward follows the forward's dtypes, wherever it is called."""
    layer = cls(timm_attention(16, 2), low_plan(5))
    x, upstream = randn(3, 5, 16), randn(3, 5, 16, seed=1).to(BF16)
    calibrate(layer, x)
    gradients = []
    for inside in (False, True):
        with autocast():
            output = layer(x)
        with autocast(inside):
            gradients.append(torch.autograd.grad(output, list(layer.parameters()), upstream))
    for name, outside, inside in zip(dict(layer.named_parameters()), *gradients, strict=True):
        assert outside.dtype == torch.float32, name
        # F.linear of QKR and the projection of the product are torch's own: bf16 in one, FP32 in
        # the other.
        assert relative(inside, outside) < 0.01, name


# ------------------------------------------------------------------- how far a model is from FP32


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_layer_is_as_near_to_fp32_as_its_product(bits):
    for seed in SEEDS:
        quantizer, x = TokenLSQ(17, bits, bias_shape=(48,)), randn(8, 17, 48, seed=seed)
        calibrate(quantizer, x)
        weight, bias = randn(144, 48, seed=seed + 1) / 48**0.5, 0.3 * randn(144, seed=seed + 2)
        plan = LinearPlan(quantizer.grid(x.shape))
        full = quantized_linear(x, quantizer.learned, weight, bias, plan)
        with autocast():
            mixed = quantized_linear(x, quantizer.learned, weight, bias, plan)
        assert 0 < relative(mixed, full) < 2 * MEASURED_OF_A_LAYER


def micro(draw_weights, bits, qkr, seed):
    """A DeiT of 3 blocks and 48 channels, all parameters drawn, and 8 images."""
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3}
    settings = ModelSettings(
        name="deit_tiny_distilled_patch16_224", num_classes=10, in_chans=1, **sizes
    )
    model = draw_weights(build_model(settings, seed), seed)
    quant = QuantSettings(weight="statsq", qkr=qkr, cga=False, wbits=bits, abits=bits)
    if bits != 32:
        convert(model, QuantPlan.from_settings(quant, FidelitySettings()))
        calibrate(model, randn(8, 1, 16, 16, seed=seed))
    return model.train(), randn(8, 1, 16, 16, seed=seed)


def run(model, images, mixed):
    """Logits of both heads, and the gradients of all parameters together."""
    with autocast(mixed):
        logits = torch.cat([head.float() for head in model(images)])
    upstream = F.normalize(randn(*logits.shape, seed=9))
    return logits.detach(), together(
        torch.autograd.grad(logits, list(model.parameters()), upstream)
    )


@pytest.mark.parametrize(
    ("bits", "qkr"), [(32, False), *((b, q) for b in (2, 4, 8) for q in (0, 1))]
)
def test_a_model_is_as_near_to_fp32_as_measured(draw_weights, bits, qkr):
    """Within twice what was measured, and within what unrelated logits would show (1.4)."""
    largest, smallest = MEASURED[bits]
    for seed in SEEDS:
        model, images = micro(draw_weights, bits, bool(qkr), seed)
        logits, gradients = run(model, images, False)
        mixed_logits, mixed_gradients = run(model, images, True)
        assert 0 < relative(mixed_logits, logits) < min(2 * largest, 1.0)
        similarity = F.cosine_similarity(gradients, mixed_gradients, dim=0).item()
        assert 1 - similarity < 2 * (1 - smallest)


@pytest.mark.parametrize("qkr", [False, True])
@pytest.mark.parametrize("bits", [2, 8])
def test_fusing_adds_nothing_to_the_difference(draw_weights, bits, qkr):
    """Layers that compute step by step, because they are watched, are as far from FP32."""
    fused, unfused = 0.0, 0.0
    for seed in SEEDS:
        model, images = micro(draw_weights, bits, qkr, seed)
        watched = copy.deepcopy(model)
        for module in watched.modules():
            if isinstance(module, LSQActivation):
                module.register_forward_hook(lambda *_: None)
        expected, _ = run(model, images, False)
        fused += relative(run(model, images, True)[0], expected)
        unfused += relative(run(watched, images, True)[0], expected)
    assert 0.75 < fused / unfused < 1.33
