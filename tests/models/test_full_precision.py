"""With 32-bit settings a converted model is timm's model: bit for bit, in evaluation and training.

With QKR the order of operations differs: equal to 1e-5, and only if the query bias is kept.
"""

import pytest
import torch

from ofq_core.nn import calibrate

DISTILLED, PLAIN = "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"
MODELS = pytest.mark.parametrize("name", [DISTILLED, PLAIN])


def outputs(model, x, training):
    result = model.train(training)(x)
    return result if isinstance(result, tuple) else (result,)


def set_fused(model, fused):
    for block in model.blocks:
        block.attn.fused_attn = fused


@MODELS
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_plain_is_bit_identical(trained, quantize, images, name, fused, training):
    reference, model = trained(name), trained(name)
    set_fused(reference, fused)
    set_fused(model, fused)
    quantize(model)
    x = images()
    expected, actual = outputs(reference, x, training), outputs(model, x, training)
    assert len(expected) == (2 if training and name == DISTILLED else 1)
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)
    sum(o.square().sum() for o in expected).backward()
    sum(o.square().sum() for o in actual).backward()
    gradients = {n: p.grad for n, p in reference.named_parameters()}
    for parameter_name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, gradients.pop(parameter_name)), parameter_name
    assert not gradients


@pytest.mark.parametrize("fused", [True, False])
def test_dropout_draws_the_same_numbers(trained, quantize, images, fused):
    """Attention, projection and path dropout survive the conversion."""

    def with_dropout():
        model = trained(PLAIN)
        set_fused(model, fused)
        for block in model.blocks:
            block.attn.attn_drop.p = block.attn.proj_drop.p = block.mlp.drop1.p = 0.3
        return model.train()

    reference, model = with_dropout(), with_dropout()
    quantize(model)
    results = []
    for m in (reference, model):
        torch.manual_seed(0)
        results.append(m(images()))
    assert torch.equal(*results)
    assert not torch.equal(reference(images()), results[0])
    assert torch.equal(model.eval()(images()), reference.eval()(images()))


@MODELS
@pytest.mark.parametrize("training", [True, False])
def test_qkr_with_folded_bias(trained, quantize, images, name, training):
    reference, model = trained(name), trained(name)
    quantize(model, qkr=True, qk_bias="fold")
    x = images()
    for ours, theirs in zip(
        outputs(model, x, training), outputs(reference, x, training), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@MODELS
def test_qkr_with_dropped_bias_differs(trained, quantize, images, name):
    reference, model = trained(name), trained(name)
    quantize(model, qkr=True, qk_bias="drop")
    x = images()
    difference = (outputs(model, x, False)[0] - outputs(reference, x, False)[0]).abs().max()
    assert difference > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "deit3_small_patch16_224",  # position embedding without the class token, layer scale
        "vit_wee_patch16_reg1_gap_256",  # register token, mean of the patch tokens
        "vit_base_patch16_gap_224",  # no class token
    ],
)
@pytest.mark.parametrize("qkr", [True, False])
def test_other_vision_transformers_of_timm(trained, quantize, images, name, qkr):
    reference, model = trained(name), trained(name)
    quantize(model, qkr=qkr)
    expected, actual = (outputs(m, images(), False)[0] for m in (reference, model))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 if qkr else 0)

    low = trained(name)  # and the number of tokens is found when it is quantized
    quantize(low, wbits=4, abits=4, edge_bits=8, qkr=qkr)
    calibrate(low, images())
    assert torch.isfinite(low.eval()(images())).all()
