"""The activation quantizer as a module: calibration, wrong inputs, groups, biases."""

import pytest
import torch
from torch import nn

from ofq_core.errors import ModelError
from ofq_core.nn import LSQActivation, TokenLSQ, calibrate, require_calibrated
from ofq_core.quant import lsq, lsq_init_scale


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_scales_exist_and_are_nan_before_calibration():
    """So save, load and the optimizer work at any time, and nothing runs by accident."""
    quantizer = LSQActivation(3, -2, 4, bias_shape=(8,))
    assert [name for name, _ in quantizer.named_parameters()] == [
        "scale",
        "bias_before",
        "bias_after",
    ]
    assert torch.isnan(quantizer.scale).all()
    assert torch.isnan(quantizer(randn(2, 3, 8))).all()
    model = nn.Sequential(nn.Identity(), quantizer)
    with pytest.raises(ModelError, match=r"1\.scale is not set: call calibrate"):
        require_calibrated(model)
    calibrate(model, randn(2, 3, 8))
    require_calibrated(model)


@pytest.mark.parametrize(
    ("signed", "axis", "factor"), [(True, -2, 2), (False, -2, 4), (False, None, 2)]
)
def test_calibration_sets_the_released_initial_scale(signed, axis, factor):
    x = randn(2, 3, 8)
    quantizer = LSQActivation(1 if axis is None else 3, axis, 4, signed=signed, bias_shape=(8,))
    with torch.no_grad():
        quantizer.bias_before.fill_(0.25)
    (entry,) = calibrate(nn.Sequential(quantizer), x)
    expected = lsq_init_scale(x + 0.25, axis, quantizer.high, factor)
    assert torch.equal(quantizer.scale, expected)
    assert (entry.name, entry.scales) == ("0", expected.numel())
    assert entry.smallest <= entry.mean <= entry.largest
    assert entry.largest == expected.max().item()


def test_calibration_is_in_the_order_of_the_network():
    """The second quantizer sees what the first one has already quantized."""
    x = randn(2, 3, 8)
    model = nn.Sequential(LSQActivation(3, -2, 4), LSQActivation(8, -1, 4))
    calibrate(model, x)
    first = lsq(x, model[0].scale, -8, 7, -2)
    assert torch.equal(model[1].scale, lsq_init_scale(first, -1, 7, 2.0))


@pytest.mark.parametrize("training", [True, False])
def test_calibration_leaves_the_model_as_it_was(training):
    """Same mode, no gradients, and a later forward does not calibrate again."""
    model = nn.Sequential(LSQActivation(3, -2, 4), nn.Dropout(0.5)).train(training)
    calibrate(model, randn(2, 3, 8))
    assert model.training == training
    assert model[0].scale.grad is None
    before = model[0].scale.detach().clone()
    model(randn(2, 3, 8, seed=1) * 10)
    assert torch.equal(model[0].scale, before)


def test_failed_calibration_switches_calibrating_off():
    model = nn.Sequential(LSQActivation(3, -2, 4), LSQActivation(5, -2, 4)).train()
    with pytest.raises(ModelError, match="5 activation scales, but the input of shape"):
        calibrate(model, randn(2, 3, 8))
    assert not model[0].calibrating
    assert not model[1].calibrating
    assert model.training


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_calibration_on_bad_images(value):
    x = randn(2, 3, 8)
    x[0, 1, 2] = value
    with pytest.raises(ModelError, match="0: calibration gave unusable scales"):
        calibrate(nn.Sequential(LSQActivation(3, -2, 4)), x)


def test_calibration_on_a_token_that_is_zero():
    """A scale of zero would clip all that comes later: the largest scale stands in."""
    x = randn(2, 3, 8)
    x[:, 1] = 0
    model = nn.Sequential(LSQActivation(3, -2, 4))
    calibrate(model, x)
    assert model[0].scale[1] == model[0].scale.max()
    calibrate(model, torch.zeros(2, 3, 8))
    assert model[0].scale.tolist() == [1, 1, 1]


def test_wrong_number_of_tokens():
    model = nn.Sequential(TokenLSQ(3, 4))
    calibrate(model, randn(2, 3, 8))
    with pytest.raises(ModelError, match=r"made for 3 tokens got 4, in an input of .*\(2, 4, 8\)"):
        model(randn(2, 4, 8))
    model(randn(5, 3, 8))  # any batch size fits


def test_groups_have_a_scale_per_token_and_head():
    """(B, N, H C) with index n * H + h, as the released code lays it out (spec 4.1)."""
    batch, tokens, heads, channels = 2, 3, 2, 4
    x = randn(batch, tokens, heads * channels)
    quantizer = TokenLSQ(tokens, 3, groups=heads)
    calibrate(nn.Sequential(quantizer), x)
    output = quantizer(x)
    for n in range(tokens):
        for h in range(heads):
            part = x[:, n, h * channels : (h + 1) * channels]
            scale = 2 * part.abs().mean() / 3**0.5
            torch.testing.assert_close(quantizer.scale[n * heads + h], scale)
            expected = (part / scale).clamp(-4, 3).round() * scale
            torch.testing.assert_close(output[:, n, h * channels : (h + 1) * channels], expected)


def test_biases_before_and_after():
    quantizer = LSQActivation(1, None, 4, bias_shape=(2,))
    with torch.no_grad():
        quantizer.scale.fill_(1.0)
        quantizer.bias_before.copy_(torch.tensor([0.4, -0.4]))
        quantizer.bias_after.copy_(torch.tensor([10.0, 20.0]))
    assert quantizer(torch.tensor([[0.2, 0.2]])).tolist() == [[11.0, 20.0]]
    assert LSQActivation(1, None, 4).bias_before is None
    assert LSQActivation(1, None, 4, bias_shape=(2,), bias_after=False).bias_after is None


@pytest.mark.parametrize("bits", [1, 9, 2.0, True, "two"])
def test_refused_bits(bits):
    with pytest.raises(ValueError, match="integer from 2 to 8"):
        LSQActivation(3, -2, bits)
