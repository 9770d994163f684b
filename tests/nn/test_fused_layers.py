"""Whole layers: the fused path against the unfused and the plain one, and when it is taken.

A forward hook on a quantizer wants its output, so a watched layer computes step by step. Everything
is compared in FP64, to 1e-10 of the size of each gradient: only the order of sums differs.
"""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ofq_core.nn.attention
import ofq_core.nn.layers
from ofq_core.methods.lsqplus import LSQPlusActivation
from ofq_core.methods.pact import PACTActivation
from ofq_core.nn import (
    HeldWeights,
    LSQActivation,
    LSQRule,
    QKRAttention,
    QKRWindowAttention,
    QuantAttention,
    QuantLinear,
    QuantWindowAttention,
    TokenLSQ,
    calibrate,
    quantized_once,
    set_whole_batch,
)
from ofq_core.quant import lsq_init_scale
from tests.plain import plain

BATCH, TOKENS, DIM, HEADS = 4, 4, 8, 2
PLAIN = pytest.mark.parametrize("cls", [QuantAttention, QKRAttention])
WINDOWS = pytest.mark.parametrize("cls", [QuantWindowAttention, QKRWindowAttention])


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def taken(monkeypatch):
    """Names of the fused functions that the layers have called."""
    calls = []
    for module, name in (
        (ofq_core.nn.layers, "quantized_linear"),
        (ofq_core.nn.attention, "quantized_attention"),
    ):
        function = getattr(module, name)

        def counted(*args, _name=name, _function=function):
            calls.append(_name)
            return _function(*args)

        monkeypatch.setattr(module, name, counted)
    return calls


@pytest.fixture
def window_attention(timm_attention):
    """timm's attention of Swin's windows of 2 x 2 tokens, with nonzero biases everywhere."""
    from timm.models.swin_transformer import WindowAttention

    def build():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            attention = WindowAttention(DIM, HEADS, window_size=(2, 2))
            for parameter in attention.parameters():
                nn.init.normal_(parameter, std=0.3)
        return attention

    return build


def ready(layer, x):
    """In FP64, calibrated, with scales that clip some entries and biases that are not zero."""
    layer.double()
    calibrate(layer, x)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(layer.named_parameters())):
            if name.endswith(".scale"):
                parameter.mul_(0.6)
            if name.endswith(("bias_before", "bias_after")):
                parameter.copy_(0.2 * randn(*parameter.shape, seed=number))
    set_whole_batch(layer, 3.0)
    return layer.train()


def watched(layer):
    """A copy whose quantizers are looked at, so that none can be fused with anything."""
    layer = copy.deepcopy(layer)
    for module in layer.modules():
        if isinstance(module, LSQActivation):
            module.register_forward_hook(lambda *_: None)
    return layer


def run(layer, x, *args, **kwargs):
    """Output, gradient of x, and those of the parameters by name."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    output = layer(x, *args, **kwargs)
    output.backward(randn(*output.shape, seed=99))
    return {"output": output.detach(), "x": x.grad} | {
        name: parameter.grad for name, parameter in layer.named_parameters()
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value is not None, name
        size = max(1.0, value.abs().max().item())
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=1e-10 * size, msg=lambda m, name=name: f"{name}: {m}"
        )


# ------------------------------------------------------------------------------------- linears

QUANTIZERS = {
    "tokens": lambda: TokenLSQ(TOKENS, 3, bias_shape=(DIM,)),
    "unsigned": lambda: TokenLSQ(TOKENS, 2, signed=False, bias_shape=(DIM,)),
    "columns": lambda: TokenLSQ(TOKENS, 3, bias_shape=(DIM,), columns=2),
    "tensor": lambda: LSQActivation(1, None, 8, bias_shape=(DIM,)),
    "channels": lambda: LSQActivation(DIM, -1, 3, bias_shape=(DIM,)),
    "one bias": lambda: TokenLSQ(TOKENS, 3, bias_shape=(DIM,), bias_after=False),
    "no bias": lambda: TokenLSQ(TOKENS, 3),
}
SHAPES = {"columns": (BATCH, 2, 2, DIM)}


@pytest.fixture
def linear(make_statsq):
    """A quantized layer ready to run, and its input: (kind, approximation of GELU or None)."""

    def build(kind, approximate=None, bias=True):
        torch.manual_seed(0)
        source = nn.Linear(DIM, 5, bias=bias).double()
        layer = QuantLinear(source, QUANTIZERS[kind](), make_statsq(3))
        if approximate is not None:
            layer.activation = nn.GELU(approximate)
        x = 2 * randn(*SHAPES.get(kind, (BATCH, TOKENS, DIM)))
        return ready(layer, x), x

    return build


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("approximate", [None, "none", "tanh"])
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_linear_layer(linear, taken, kind, approximate, bias):
    layer, x = linear(kind, approximate, bias)
    fused = run(layer, x)
    assert taken == ["quantized_linear"]
    assert_same(fused, run(watched(layer), x))
    assert taken == ["quantized_linear"]
    assert_same(fused, run(plain(layer), x))


def test_calibration_sees_what_gelu_gives(linear):
    layer, x = linear("unsigned", "none")
    watching = watched(layer)
    for module in (layer, watching):
        calibrate(module, x)
    quantizer = layer.input_quantizer
    expected = lsq_init_scale(F.gelu(x) + quantizer.bias_before, -2, quantizer.high, 4.0)
    torch.testing.assert_close(quantizer.scale.detach(), expected.detach(), rtol=1e-12, atol=0)
    assert torch.equal(watching.input_quantizer.scale, quantizer.scale)


def test_a_hook_sees_the_quantized_values_until_it_is_removed(linear, taken):
    """So whoever looks at activations gets them, after GELU and quantized."""
    layer, x = linear("tokens", "none")
    seen = []
    hook = layer.input_quantizer.register_forward_hook(
        lambda _, inputs, y: seen.append((*inputs, y))
    )
    layer(x)
    ((before, after),) = seen
    assert torch.equal(before, F.gelu(x))
    assert torch.equal(after, layer.input_quantizer(F.gelu(x)))
    assert not taken
    hook.remove()
    layer(x)
    assert taken == ["quantized_linear"]
    layer.input_quantizer.register_forward_pre_hook(lambda *_: None)
    layer(x)
    assert taken == ["quantized_linear"]


class OtherLSQ(LSQRule):
    """A rule that a method derives from LSQ: what it does is not known."""


@pytest.mark.parametrize("rule", [LSQPlusActivation(), PACTActivation(0.01), OtherLSQ()])
def test_other_rules_are_not_fused(timm_attention, low_plan, make_statsq, taken, rule):
    """They are asked for each quantization, in layers and in attention."""
    asked = []
    original = rule.quantize
    rule.quantize = lambda module, x: asked.append(module) or original(module, x)
    x = randn(BATCH, TOKENS, DIM)
    plan = replace(low_plan(TOKENS), rule=rule)
    attention = ready(QuantAttention(timm_attention(DIM, HEADS), plan), x)
    asked.clear()
    attention(x)
    assert len(asked) == 6
    assert not taken
    quantizer = TokenLSQ(TOKENS, 3, bias_shape=(DIM,), rule=rule)
    layer = ready(QuantLinear(nn.Linear(DIM, 3), quantizer, make_statsq(3)), x)
    layer(x)
    assert asked[-1] is layer.input_quantizer
    assert not taken


# ----------------------------------------------------------------------------------- attention


def additive_mask():
    return randn(BATCH, 1, TOKENS, TOKENS, seed=5)


MASKS = {
    "none": dict,
    "additive": lambda: {"attn_mask": additive_mask()},
    "one for all": lambda: {"attn_mask": additive_mask()[0, 0]},
    "boolean": lambda: {"attn_mask": torch.eye(TOKENS).bool() | (additive_mask() > 0)},
    "causal": lambda: {"is_causal": True},
}
FUSED_CALLS = {
    QuantAttention: ["quantized_linear", "quantized_attention", "quantized_linear"],
    QuantWindowAttention: ["quantized_linear", "quantized_attention", "quantized_linear"],
    QKRAttention: ["quantized_attention", "quantized_linear"],
    QKRWindowAttention: ["quantized_attention", "quantized_linear"],
}


@PLAIN
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_attention(timm_attention, low_plan, taken, cls, mask, qkv_bias):
    plan = replace(low_plan(TOKENS), dead_biases=mask == "additive")
    x = randn(BATCH, TOKENS, DIM)
    attention = ready(cls(timm_attention(DIM, HEADS, qkv_bias), plan), x)
    fused = run(attention, x, **MASKS[mask]())
    assert taken == FUSED_CALLS[cls]
    assert_same(fused, run(watched(attention), x, **MASKS[mask]()))
    assert taken == FUSED_CALLS[cls]
    assert_same(fused, run(plain(attention), x, **MASKS[mask]()))


@PLAIN
def test_the_gradient_of_a_mask(timm_attention, low_plan, cls):
    """A bias on the logits that is learned, as a mask."""
    x = randn(BATCH, TOKENS, DIM)
    attention = ready(cls(timm_attention(DIM, HEADS), low_plan(TOKENS)), x)
    gradients = []
    for layer in (attention, watched(attention)):
        mask = additive_mask().requires_grad_()
        run(layer, x, attn_mask=mask)
        gradients.append(mask.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@WINDOWS
@pytest.mark.parametrize("windows", [None, 1, 2, 4])
def test_windows(window_attention, low_plan, taken, cls, windows):
    """Four windows: of one image without a mask, or of 4, 2 or 1 images with a mask per window."""
    x = randn(BATCH, TOKENS, DIM)
    mask = None if windows is None else randn(windows, TOKENS, TOKENS, seed=5)
    attention = ready(cls(window_attention(), low_plan(TOKENS)), x)
    fused = run(attention, x, mask)
    assert "relative_position_bias_table" in fused
    assert taken == FUSED_CALLS[cls]
    assert_same(fused, run(watched(attention), x, mask))
    assert_same(fused, run(plain(attention), x, mask))


@PLAIN
def test_dropout_of_the_map_is_not_fused(timm_attention, low_plan, taken, cls):
    """It acts between the quantized map and the values; outside training there is none."""
    source = timm_attention(DIM, HEADS)
    source.attn_drop = nn.Dropout(0.5)
    x = randn(BATCH, TOKENS, DIM)
    attention = ready(cls(source, low_plan(TOKENS)), x)
    outputs = []
    for layer in (attention, plain(attention)):
        torch.manual_seed(1)
        outputs.append(run(layer, x))
    assert_same(*outputs)
    assert "quantized_attention" not in taken
    attention.eval()
    assert_same(run(attention, x), run(watched(attention), x))
    assert taken.count("quantized_attention") == 1


@PLAIN
@pytest.mark.parametrize("name", ["quant_map", "quant_v"])
def test_one_watched_quantizer_is_enough(timm_attention, low_plan, taken, cls, name):
    x = randn(BATCH, TOKENS, DIM)
    attention = ready(cls(timm_attention(DIM, HEADS), low_plan(TOKENS)), x)
    expected = run(attention, x)
    taken.clear()
    seen = []
    getattr(attention, name).register_forward_hook(lambda *_: seen.append(1))
    assert_same(run(attention, x), expected)
    assert seen == [1]
    assert "quantized_attention" not in taken


@PLAIN
def test_calibration_is_the_same_for_watched_layers(timm_attention, low_plan, taken, cls):
    """Every quantizer is calibrated by what the one before it gives, in whichever path later."""
    x = randn(BATCH, TOKENS, DIM)
    attention = ready(cls(timm_attention(DIM, HEADS), low_plan(TOKENS)), x)
    watching = watched(attention)
    assert calibrate(attention, x) == calibrate(watching, x)
    assert not taken
    assert_same(run(attention, x), run(watching, x))


# -------------------------------------------------------------------------------- held weights


@PLAIN
def test_held_weights_have_the_gradients_of_single_forwards(timm_attention, low_plan, cls):
    """Several pieces of a batch, each weight quantized once for all of them."""
    x = randn(3 * BATCH, TOKENS, DIM)
    attention = ready(cls(timm_attention(DIM, HEADS), low_plan(TOKENS)), x)
    runs = []
    for weights in (None, HeldWeights(attention)):
        attention.zero_grad()
        for number, piece in enumerate(x.chunk(3)):
            if weights is not None and number == 0:
                weights.hold()
            if weights is not None and number == 2:
                weights.release()
            output = attention(piece)
            output.backward(randn(*output.shape, seed=number))
        runs.append({name: p.grad.clone() for name, p in attention.named_parameters()})
    weights.clear()
    assert_same(runs[1], runs[0])
    with torch.no_grad(), quantized_once(attention):
        held = attention(x)
    assert torch.equal(held, attention(x).detach())
