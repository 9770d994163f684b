"""LSQ between its biases, alone and fused with a linear layer, against plain autograd.

Tolerances: see `tests.quant.written_out`.
"""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ofq_core.quant import code_range, lsq, lsq_codes, statsq
from ofq_core.quant.biased_lsq import Grid, Parameters
from ofq_core.quant.fused_linear import LinearPlan, biased_lsq, quantized_linear
from tests.quant.written_out import assert_same, frozen_surrogate, gain, plain_lsq, randn, saved_by

LAYERS = ("tokens", "channels", "tensor", "groups", "columns", "rows")
ALL = (*LAYERS, "pixels")
SEEDS = st.integers(0, 2**31 - 10)
GELU = st.sampled_from(["", "none", "tanh"])


def layout(kind, batch, tokens, width, groups):
    """Shape of x; view, scale and bias of its Grid; and the axis of the scales in the view."""
    b, n, c, g = batch, tokens, width, groups
    return {
        "tokens": ((b, n, c), (b, n, c), (1, n, 1), (c,), -2),
        "channels": ((b, n, c), (b, n, c), (1, 1, c), (c,), -1),
        "tensor": ((b, n, c), (b, n, c), (1, 1, 1), (c,), None),
        "groups": ((b, n, g * c), (b, n * g, c), (1, n * g, 1), (g * c,), -2),
        "columns": ((b, g, n, c), (b * g, n, c), (1, n, 1), (c,), -2),
        "rows": ((b, c), (b, c), (1, 1), (c,), None),
        "pixels": ((b, g, n, c), (b, g, n, c), (1, g, 1, 1), (n, c), 1),
    }[kind]


class Case(NamedTuple):
    """What is quantized, how, and by which leaves; `strides` says how x lies in memory."""

    x: torch.Tensor
    p: Parameters
    grid: Grid
    axis: int | None
    strides: str
    seed: int

    @property
    def input(self):
        """x, as a view that is not contiguous unless `strides` says so."""
        if self.strides == "chunk":
            return torch.cat([self.x, self.x, self.x], -1).chunk(3, dim=-1)[1]
        if self.strides == "transposed":
            return self.x.transpose(-1, -2).contiguous().transpose(-1, -2)
        return self.x

    @property
    def leaves(self):
        named = {"x": self.x, **self.p._asdict()}
        return {name: leaf for name, leaf in named.items() if leaf is not None}


@st.composite
def cases(draw, kinds=ALL, dtypes=(torch.float64, torch.float32)):
    kind, dtype, seed = draw(st.sampled_from(kinds)), draw(st.sampled_from(dtypes)), draw(SEEDS)
    sizes = (draw(st.integers(1, 4)) for _ in range(4))
    shape, view, scale_shape, bias_shape, axis = layout(kind, *sizes)
    qmin, qmax = code_range(draw(st.integers(2, 8)), draw(st.booleans()))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale = (0.05 + randn(math.prod(scale_shape), seed=seed).abs() * 2 / math.sqrt(qmax)).to(wide)
    scale[randn(scale.numel(), seed=seed + 1) > 1.8] *= -1  # now and then below the floor
    before, after = (
        0.3 * randn(math.prod(bias_shape), seed=seed + i, dtype=wide)
        if draw(st.booleans())
        else None
        for i in (2, 3)
    )
    x = randn(*shape, seed=seed + 4, dtype=dtype)
    if draw(st.booleans()):  # codes, halves between them and the ends of the range, hit exactly
        scale.fill_(0.5)
        x, before = ((t if t is None else (4 * t).round() / 4) for t in (x, before))
    p = Parameters(scale, before, after)
    for leaf in (x, *p):
        if leaf is not None:
            leaf.requires_grad_()
    grid = Grid(qmin, qmax, view, scale_shape, bias_shape, draw(st.sampled_from([1.0, 1.5, 4.0])))
    strides = draw(st.sampled_from(["contiguous", "chunk", "transposed"]))
    return Case(x, p, grid, axis, strides, seed)


def plain_linear(case, weight, bias, gelu):
    x = F.gelu(case.input, approximate=gelu) if gelu else case.input
    return F.linear(plain_lsq(x, case.p, case.grid), weight, bias)


def weights(case, outputs, with_bias, seed):
    dtype, width = case.p.scale.dtype, case.x.shape[-1]
    weight = (randn(outputs, width, seed=seed, dtype=dtype) / math.sqrt(width)).requires_grad_()
    bias = randn(outputs, seed=seed + 1, dtype=dtype).requires_grad_() if with_bias else None
    leaves = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return weight, bias, leaves


@settings(max_examples=200)
@given(case=cases(), constant=st.booleans())
def test_biased_lsq_equals_reference(case, constant):
    """A constant upstream gradient is what a sum sends back: one entry, expanded."""
    output = biased_lsq(case.input, case.p, case.grid)
    expected = plain_lsq(case.input, case.p, case.grid)
    assert torch.equal(output, expected)
    upstream = torch.ones((), dtype=output.dtype).expand(output.shape)
    if not constant:
        upstream = randn(*output.shape, seed=case.seed + 5, dtype=output.dtype)
    assert_same(output, expected, case.leaves, upstream)


@settings(max_examples=200)
@given(
    case=cases(LAYERS),
    outputs=st.integers(1, 5),
    with_bias=st.booleans(),
    gelu=GELU,
    constant=st.booleans(),
)
def test_quantized_linear_equals_reference(case, outputs, with_bias, gelu, constant):
    weight, bias, more = weights(case, outputs, with_bias, case.seed + 6)
    output = quantized_linear(case.input, case.p, weight, bias, LinearPlan(case.grid, gelu))
    expected = plain_linear(case, weight, bias, gelu)
    upstream = torch.ones((), dtype=output.dtype).expand(output.shape)
    if not constant:
        upstream = randn(*output.shape, seed=case.seed + 5, dtype=output.dtype)
    assert_same(output, expected, case.leaves | more, upstream)


HALVES = (torch.bfloat16, torch.float16)


@given(case=cases(LAYERS, HALVES), with_bias=st.booleans(), gelu=GELU)
def test_half_precision_inputs_are_quantized_in_fp32(case, with_bias, gelu):
    """The output is FP32, the gradient of x in x's dtype; all else is as exact as in FP32."""
    weight, bias, more = weights(case, 3, with_bias, case.seed + 6)
    output = quantized_linear(case.input, case.p, weight, bias, LinearPlan(case.grid, gelu))
    assert output.dtype == torch.float32
    expected = plain_linear(case, weight, bias, gelu)
    upstream = randn(*output.shape, seed=case.seed + 5, dtype=output.dtype)
    assert_same(output, expected, case.leaves | more, upstream)
    # Quantized alone, its values are exactly those of the same numbers in FP32.
    alone = biased_lsq(case.input, case.p, case.grid)
    assert torch.equal(alone, plain_lsq(case.input.float(), case.p, case.grid))


# ------------------------------------------------------------------------------- the surrogate
def with_positive_scales(case):
    with torch.no_grad():
        case.p.scale.abs_()  # below the floor the surrogate does not move with the scale
    return case


@settings(max_examples=15)
@given(case=cases(ALL, (torch.float64,)))
def test_gradient_is_that_of_the_surrogate(case):
    """Finite differences of the surrogate; the gain is a factor of the gradient of the scale."""
    x, p, grid, *_ = with_positive_scales(case)
    surrogate = frozen_surrogate(x, p, grid)
    assert torch.autograd.gradcheck(surrogate, (x, *p))
    output, expected = biased_lsq(x, p, grid), surrogate(x, *p)
    upstream = randn(*output.shape, seed=case.seed + 5)
    factors = {"scale": gain(x.shape, p.scale, grid)}
    assert_same(output, expected, case.leaves, upstream, factors)


@settings(max_examples=15)
@given(case=cases(LAYERS, (torch.float64,)), gelu=GELU, with_bias=st.booleans())
def test_gradient_of_the_layer_is_that_of_its_surrogate(case, gelu, with_bias):
    x, p, grid, *_ = with_positive_scales(case)
    weight, bias, more = weights(case, 3, with_bias, case.seed + 6)

    def activated(x):
        return F.gelu(x, approximate=gelu) if gelu else x

    surrogate = frozen_surrogate(activated(x.detach()), p, grid)

    def layer(x, scale, before, after, weight, bias):
        return F.linear(surrogate(activated(x), scale, before, after), weight, bias)

    assert torch.autograd.gradcheck(layer, (x, *p, weight, bias))
    output = quantized_linear(x, p, weight, bias, LinearPlan(grid, gelu))
    upstream = randn(*output.shape, seed=case.seed + 5)
    factors = {"scale": gain(x.shape, p.scale, grid)}
    assert_same(output, layer(x, *p, weight, bias), case.leaves | more, upstream, factors)


# ------------------------------------------------------------------------- what is kept, and codes


@pytest.mark.parametrize("gelu", ["", "none", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_keeps_its_input_once(gelu, dtype):
    x = randn(8, 16, 6, seed=0, dtype=dtype).requires_grad_()
    p = Parameters(*(torch.full((n,), 0.5, requires_grad=True) for n in (16, 6, 6)))
    weight, bias = torch.ones(4, 6, requires_grad=True), torch.ones(4, requires_grad=True)
    grid = Grid(-2, 1, (8, 16, 6), (1, 16, 1), (6,))
    kept = saved_by(lambda: quantized_linear(x, p, weight, bias, LinearPlan(grid, gelu)))
    assert [t.data_ptr() for t in kept].count(x.data_ptr()) == 1
    others = sum(t.numel() for t in kept if t.data_ptr() != x.data_ptr())
    assert others == weight.numel() + sum(t.numel() for t in p)
    kept = saved_by(lambda: biased_lsq(x, p, grid))
    assert sum(t.numel() for t in kept) == x.numel() + sum(t.numel() for t in p)
    kept = saved_by(lambda: lsq(x, p.scale, -2, 1, -2))
    assert sum(t.numel() for t in kept) == x.numel() + p.scale.numel()


@pytest.mark.parametrize("bits", [2, 8])
def test_statsq_keeps_nothing(bits):
    weight = randn(4, 6, seed=0).requires_grad_()
    assert saved_by(lambda: statsq(weight, bits)) == []


@given(case=cases(("tokens", "channels", "tensor", "groups"), (torch.float64, torch.float32)))
def test_lsq_with_known_codes(case):
    """Codes that are handed in change neither value nor gradient."""
    x, p, grid, axis, *_ = case
    x = x.detach().reshape(grid.view).requires_grad_()
    codes = lsq_codes(x.detach(), p.scale.detach(), grid.qmin, grid.qmax, axis)
    kept_codes = codes.clone()
    arguments = (x, p.scale, grid.qmin, grid.qmax, axis, grid.whole)
    output, expected = lsq(*arguments, codes), lsq(*arguments)
    assert torch.equal(output, expected)
    assert torch.equal(codes, kept_codes)
    upstream = randn(*output.shape, seed=case.seed + 5, dtype=output.dtype)
    for found, value in zip(
        torch.autograd.grad(output, (x, p.scale), upstream),
        torch.autograd.grad(expected, (x, p.scale), upstream),
        strict=True,
    ):
        assert torch.equal(found, value)


def test_frozen_parameters_and_inputs_without_a_gradient():
    """The first layer's input needs none, nor do parameters that are held."""
    x = randn(2, 3, 4, seed=0)
    p = Parameters(torch.full((3,), 0.5, dtype=torch.float64), None, randn(4, seed=1))
    weight = randn(5, 4, seed=2).requires_grad_()
    grid = Grid(-2, 1, (2, 3, 4), (1, 3, 1), (4,))
    output = quantized_linear(x, p, weight, None, LinearPlan(grid))
    expected = F.linear(plain_lsq(x, p, grid), weight)
    upstream = randn(2, 3, 5, seed=3)
    assert_same(output, expected, {"weight": weight}, upstream)
