"""Micro vision transformers with weights of a realistic size, and settings to convert them."""

import pytest
import torch
from torch import nn

from ofq_core.models import QuantPlan, build_model, convert
from ofq_core.settings import FidelitySettings, ModelSettings, QuantSettings

MICRO = {
    "num_classes": 10,
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
}
FULL = {"weight": "statsq", "wbits": 32, "abits": 32, "edge_bits": 32, "qkr": False, "cga": False}


@pytest.fixture(scope="session")
def micro():
    """Build a micro model; its sizes can be overridden, None takes timm's own."""

    def build(name="deit_tiny_distilled_patch16_224", seed=0, **sizes):
        return build_model(ModelSettings(name=name, **{**MICRO, **sizes}), seed)

    return build


@pytest.fixture(scope="session")
def trained(micro, draw_weights):
    """A micro model whose tensors are all nonzero and different, as after training.

    A fresh model has zero biases: folding a query bias of zero would prove nothing.
    """

    def build(name="deit_tiny_distilled_patch16_224", seed=0, **sizes):
        return draw_weights(micro(name, seed, **sizes), seed)

    return build


@pytest.fixture(scope="session")
def quantize():
    """Convert a model by settings given as keywords (default: nothing is quantized)."""

    def run(model: nn.Module, **quant):
        switches = {key: quant.pop(key) for key in FidelitySettings.model_fields if key in quant}
        settings = QuantSettings(**{**FULL, **quant})
        return convert(model, QuantPlan.from_settings(settings, FidelitySettings(**switches)))

    return run


@pytest.fixture(scope="session")
def images():
    """Random images for the micro models."""

    def make(batch=8, seed=0, size=8, channels=1):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, channels, size, size, generator=generator)

    return make
