"""Builders of quantizers by the name of their method; one thread, the tensors here are tiny."""

import pytest
import torch

from ofq_core.methods import activation_rule, weight_quantizer
from ofq_core.nn import LSQActivation
from ofq_core.settings import QuantSettings


@pytest.fixture(scope="session")
def randn():
    def build(*shape, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return build


@pytest.fixture(scope="session")
def settings():
    def build(name, bits=3, **more):
        values = {"weight": name, "qkr": False, "cga": False, "wbits": bits, "abits": bits}
        return QuantSettings(**{**values, **more})

    return build


@pytest.fixture(scope="session")
def make(settings):
    """The weight quantizer of a method, started from `weight`; scale: set all of its scales."""

    def build(name, weight, bits=3, scale=None, **options):
        module = weight_quantizer(settings(name, bits, options=options))(weight)
        if scale is not None:
            module.scale.data.fill_(scale)
        return module

    return build


@pytest.fixture(scope="session")
def make_activation(settings):
    """The activation quantizer of a method, with groups along axis -2, or one group."""

    def build(name, length, bits=3, signed=True, axis=-2, **options):
        rule = activation_rule(settings(name, bits, options=options))
        return LSQActivation(length, axis, bits, signed, rule=rule)

    return build


@pytest.fixture(scope="session")
def start():
    """Set the parameters of an activation quantizer from x, as the calibration does."""

    def run(module, x):
        module.calibrating = True
        try:
            return module(x).detach()
        finally:
            module.calibrating = False

    return run


@pytest.fixture(scope="session")
def same():
    def check(actual, expected, **tolerances):
        expected = torch.as_tensor(expected, dtype=actual.dtype)
        torch.testing.assert_close(actual, expected, **tolerances)

    return check
