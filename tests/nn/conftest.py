"""Builders of quantized layers with the weights of a golden case."""

from functools import partial

import pytest
import torch
from torch import nn

from ofq_core.methods.statsq import StatsQWeight
from ofq_core.models.torchvision_compat import import_torchvision
from ofq_core.nn import AttentionPlan


@pytest.fixture(scope="session")
def timm_attention():
    """timm's Attention, freshly initialised with nonzero biases: (dim, heads) -> module."""
    import_torchvision()
    from timm.layers.attention import Attention

    def build(dim=8, heads=2, qkv_bias=True, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            attention = Attention(dim, heads, qkv_bias=qkv_bias)
            for parameter in attention.parameters():
                nn.init.normal_(parameter, std=0.3)
        return attention

    return build


@pytest.fixture(scope="session")
def make_statsq():
    return lambda bits: partial(StatsQWeight, bits=bits)


@pytest.fixture
def check_module(close):
    """Load a golden case into a module, run it forward and backward, compare everything.

    In FP64, so that all that differs is the rounding of the released code: its gradients of biases
    without an effect are nothing else, and ours, added to them, would exceed the tolerance on one
    processor and not on another. Then in FP32, as it is used, against that.

    `names` maps a released parameter name to the names here; where there are several, the released
    tensor is their concatenation. Loading is strict: a tensor that gets no value is an error.
    """

    def check(module, group, case, names, run=None, skip=()):
        values = {k: torch.tensor(v) for k, v in case["params"].items() if k not in skip}
        state = {}
        for released, value in values.items():
            ours = names(released)
            ours = (ours,) if isinstance(ours, str) else ours
            parts = value.chunk(len(ours)) if len(ours) > 1 else (value,)
            state.update(zip(ours, parts, strict=True))
        module.load_state_dict(state, strict=True)
        run = run or (lambda x: module(x))

        def computed(dtype):
            """Output, gradient of the input, and those of the parameters by name."""
            module.to(dtype).zero_grad()
            x = torch.tensor(group["input"], dtype=dtype, requires_grad=True)
            output = run(x)
            output.backward(torch.tensor(group["upstream"], dtype=dtype))
            found = {name: p.grad.clone() for name, p in module.named_parameters()}
            return x, output, {"output": output, "grad_input": x.grad, **found}

        single = computed(torch.float32)[2]
        x, output, double = computed(torch.float64)
        for name, value in double.items():
            close(single[name], value.detach(), f"{name} in FP32")
        close(output, case["output"], "output")
        close(x.grad, case["grad_input"], "grad_input")
        assert case["eval_output_equal"]
        module.eval()
        assert torch.equal(run(x), output)

        parameters = dict(module.named_parameters())
        for released, expected in case["grads"].items():
            if released in skip:
                continue
            ours = names(released)
            ours = (ours,) if isinstance(ours, str) else ours
            gradient = torch.cat([parameters.pop(name).grad for name in ours])
            close(gradient, expected, f"gradient of {released}")
        assert not parameters, "every gradient is compared"

    return check


@pytest.fixture
def low_plan(make_statsq):
    """A plan for 3-bit attention over so many tokens."""
    return lambda tokens: AttentionPlan(tokens, 3, make_statsq(3))
