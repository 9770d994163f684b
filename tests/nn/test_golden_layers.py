"""Quantized linear, MLP, head and patch embedding against the released modules.

Released names: input_quant_fn.s is the activation scale, lsqw_fn.s the weight scale, move_b4 and
move_aft are the learnable biases before and after the activation quantizer.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ofq_core.methods.lsq import LSQWeight
from ofq_core.nn import LSQActivation, QuantConv2d, QuantLinear

LEAVES = {
    "input_quant_fn.s": "input_quantizer.scale",
    "lsqw_fn.s": "weight_quantizer.scale",
    "move_b4.bias": "input_quantizer.bias_before",
    "move_aft.bias": "input_quantizer.bias_after",
}


def our_name(released):
    for theirs, ours in LEAVES.items():
        if released.endswith(theirs):
            return released.removesuffix(theirs) + ours
    return released


def linear(shape, quantizer, make_weight_quantizer):
    return QuantLinear(nn.Linear(shape[1], shape[0]), quantizer, make_weight_quantizer)


@pytest.mark.golden("qlinear")
def test_quantized_linear(group, case, check_module, make_statsq):
    quantizer = LSQActivation(3, -2, case["bits"], signed=case["symmetric"], bias_shape=(8,))
    module = linear((4, 8), quantizer, make_statsq(case["bits"]))
    check_module(module, group, case, our_name)


@pytest.mark.golden("mlp")
def test_mlp(group, case, check_module, make_statsq):
    """The second input is unsigned: it comes from GELU."""
    bits = case["bits"]
    module = nn.ModuleDict(
        {
            "fc1": linear((8, 4), LSQActivation(3, -2, bits, bias_shape=(4,)), make_statsq(bits)),
            "fc2": linear(
                (4, 8),
                LSQActivation(3, -2, bits, signed=False, bias_shape=(8,)),
                make_statsq(bits),
            ),
        }
    )
    check_module(
        module, group, case, our_name, run=lambda x: module["fc2"](F.gelu(module["fc1"](x)))
    )


@pytest.mark.golden("head_8bit")
def test_head(group, case, check_module):
    quantizer = LSQActivation(1, None, 8, bias_shape=(8,))
    module = linear((5, 8), quantizer, partial(LSQWeight, bits=8))
    check_module(module, group, case, our_name)


@pytest.mark.golden("patch_embed_8bit")
def test_patch_embedding(group, case, check_module):
    """One bias value per pixel, shared by the channels; one activation scale per channel."""
    module = QuantConv2d(
        nn.Conv2d(3, 4, kernel_size=2, stride=2),
        LSQActivation(3, 1, 8, bias_shape=(4, 4)),
        partial(LSQWeight, bits=8),
    )
    check_module(module, group, case, our_name)


@pytest.mark.golden("lsq_image")
def test_image_scales_come_from_calibration(group, case, close):
    """The released image quantizer takes the factor 2, which is ours for signed input."""
    quantizer = LSQActivation(3, 1, 8)
    quantizer.calibrating = True
    output = quantizer(torch.tensor(group["input"]))
    close(quantizer.scale, case["scale"], "scale")
    close(output, case["output"], "output")
