"""Quantized attention in one function against the same written out, head by head, in autograd.

Tolerances: see `tests.quant.written_out`. In FP32 no probability may lie so near to a threshold of
its quantizer that rounding decides its code: such examples are left out.
"""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ofq_core.quant import code_range
from ofq_core.quant.biased_lsq import Grid, Parameters
from ofq_core.quant.fused_attention import (
    AttentionGrids,
    AttentionParameters,
    quantized_attention,
)
from tests.quant.written_out import assert_same, frozen_surrogate, gain, plain_lsq, randn, saved_by

SEEDS = st.integers(0, 2**31 - 100)
OPERANDS = ("left", "right", "value")


class Case(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor
    value: torch.Tensor
    added: tuple[torch.Tensor, ...]
    p: AttentionParameters
    grids: AttentionGrids
    seed: int

    @property
    def leaves(self):
        named = {name: getattr(self, name) for name in OPERANDS}
        for name, parameters in self.p._asdict().items():
            for kind, leaf in (parameters._asdict() if parameters else {}).items():
                if leaf is not None:
                    named[f"{name}.{kind}"] = leaf
        for number, term in enumerate(self.added):
            if term.requires_grad:
                named[f"added {number}"] = term
        return named


def quantizer(draw, shape, view, axis, seed, dtype, signed=True, biases=True, size=1.0):
    """Parameters and grid of one quantizer; `size`: of what it quantizes."""
    qmin, qmax = code_range(draw(st.integers(2, 8)), signed)
    scale_shape = [1] * len(view)
    if axis is not None:
        scale_shape[axis] = view[axis]
    wide = 2 * size / math.sqrt(qmax) * (0.2 + randn(math.prod(scale_shape), seed=seed).abs())
    before, after = (
        (0.3 * randn(shape[-1], seed=seed + i, dtype=dtype)).requires_grad_()
        if biases and draw(st.booleans())
        else None
        for i in (1, 2)
    )
    grid = Grid(qmin, qmax, view, tuple(scale_shape), (shape[-1],) if biases else (), 1.0)
    grid = grid._replace(whole=draw(st.sampled_from([1.0, 3.0])))
    return Parameters(wide.to(dtype).requires_grad_(), before, after), grid


def terms(draw, batch, heads, tokens, seed, dtype):
    """Terms of every kind that is added to the logits, or none."""
    shapes = {
        "relative bias": (heads, tokens, tokens),
        "keys": (batch, heads, 1, tokens),
        "mask of each image": (batch, 1, tokens, tokens),
        "one mask": (1, 1, tokens, tokens),
        "plain mask": (tokens, tokens),
    }
    if batch % 2 == 0:
        shapes["mask of each window"] = (batch // 2, 1, tokens, tokens)
    kinds = draw(st.lists(st.sampled_from(sorted(shapes)), max_size=3, unique=True))
    result = [
        randn(*shapes[kind], seed=seed + i, dtype=dtype).requires_grad_()
        for i, kind in enumerate(kinds)
    ]
    if draw(st.booleans()):  # causal: no query sees a later key
        forbidden = torch.full((tokens, tokens), -math.inf, dtype=dtype).triu(1)
        result.append(forbidden)
    return tuple(result)


@st.composite
def cases(draw, dtypes=(torch.float64, torch.float32), biggest=4):
    dtype, seed, shared = draw(st.sampled_from(dtypes)), draw(SEEDS), draw(st.booleans())
    sizes = [draw(st.integers(1, biggest)) for _ in range(4)]
    batch, heads, tokens, width = sizes
    full = (batch, tokens, heads * width)
    wide = (batch, tokens, heads * heads * width) if shared else full
    left_p, left_grid = None, None
    if not shared:
        left_p, left_grid = quantizer(draw, full, full, -2, seed, dtype)
    groups = heads if shared else 1
    view = (batch, tokens * groups, wide[-1] // groups)
    right_p, right_grid = quantizer(draw, wide, view, -2, seed + 10, dtype)
    value_axis = draw(st.sampled_from([-1, -2, None]))
    value_p, value_grid = quantizer(draw, full, full, value_axis, seed + 20, dtype)
    map_shape = (batch, heads, tokens, tokens)
    map_axis = draw(st.sampled_from([-2, None]))
    map_p, map_grid = quantizer(
        draw, map_shape, map_shape, map_axis, seed + 30, dtype, False, False, 1.0 / tokens
    )
    left, right, value = (
        randn(*shape, seed=seed + 40 + i, dtype=dtype).requires_grad_()
        for i, shape in enumerate((full, wide, full))
    )
    added = terms(draw, batch, heads, tokens, seed + 50, dtype)
    scale = draw(st.sampled_from([0.25, width**-0.5, 1.5]))
    grids = AttentionGrids(heads, scale, left_grid, right_grid, value_grid, map_grid)
    p = AttentionParameters(left_p, right_p, value_p, map_p)
    return Case(left, right, value, added, p, grids, seed)


def by_head(x, heads):
    """(B, N, H K) to (B, H, N, K)."""
    return torch.stack(x.chunk(heads, dim=-1), dim=1)


def written_out(case, quantize):
    """The formula in the head of `fused_attention`; `quantize(name, x)` is the quantizer of x."""
    heads, c = case.grids.heads, case.grids.scale
    right = by_head(quantize("right", case.right), heads)
    if case.grids.left is None:
        left = case.left.unsqueeze(1).expand(-1, heads, -1, -1)
    else:
        left = by_head(quantize("left", case.left), heads)
    logits = c * left @ right.transpose(-2, -1)
    for term in case.added:
        repeats = case.left.shape[0] // term.shape[0] if term.ndim == 4 else 1
        logits = logits + (term.repeat(repeats, 1, 1, 1) if repeats > 1 else term)
    map_ = quantize("map", torch.softmax(logits, dim=-1))
    joined = map_ @ by_head(quantize("value", case.value), heads)
    return torch.cat(joined.unbind(1), dim=-1)


def quantize_plainly(case):
    def quantize(name, x):
        p, grid = getattr(case.p, name), getattr(case.grids, name)
        if name == "map" and x.dtype == torch.float32:
            v = x.detach() / p.scale.detach().view(grid.scale)
            near = torch.minimum((v - v.floor() - 0.5).abs(), (v - grid.qmax).abs())
            assume(near.min() > 1e-3)
        return plain_lsq(x, p, grid)

    return quantize


def fused(case, **operands):
    operands = {name: getattr(case, name) for name in OPERANDS} | operands
    return quantized_attention(**operands, added=case.added, p=case.p, grids=case.grids)


def chunk_views(case):
    """Operands of one width as the three parts of a wider tensor, as a qkv layer gives them."""
    parts = torch.cat([case.left, case.right, case.value], dim=-1)
    widths = [getattr(case, name).shape[-1] for name in OPERANDS]
    return dict(zip(OPERANDS, parts.split(widths, dim=-1), strict=True))


@settings(max_examples=200)
@given(case=cases(), views=st.booleans(), constant=st.booleans())
def test_outputs_and_gradients_equal_the_formula(case, views, constant):
    output = fused(case, **(chunk_views(case) if views else {}))
    expected = written_out(case, quantize_plainly(case))
    upstream = torch.ones((), dtype=output.dtype).expand(output.shape)
    if not constant:
        upstream = randn(*output.shape, seed=case.seed + 90, dtype=output.dtype)
    assert_same(output, expected, case.leaves, upstream)


@settings(max_examples=10)
@given(case=cases((torch.float64,), biggest=3))
def test_gradient_is_that_of_the_surrogate(case):
    """Finite differences of the whole attention, all four quantizers held as at this point."""
    inputs = {}

    def remember(name, x):
        inputs[name] = x.detach()
        return plain_lsq(x, getattr(case.p, name), getattr(case.grids, name))

    written_out(case, remember)
    surrogates = {
        name: frozen_surrogate(x, getattr(case.p, name), getattr(case.grids, name))
        for name, x in inputs.items()
    }
    leaves = case.leaves

    def attention(*values):
        given_ = dict(zip(leaves, values, strict=True))

        def quantize(name, x):
            p = (given_.get(f"{name}.{kind}") for kind in Parameters._fields)
            return surrogates[name](x, *p)

        added = tuple(given_.get(f"added {i}", term) for i, term in enumerate(case.added))
        operands = {name: given_[name] for name in OPERANDS}
        return written_out(case._replace(**operands, added=added), quantize)

    assert torch.autograd.gradcheck(attention, tuple(leaves.values()))
    factors = {
        f"{name}.scale": gain(x.shape, getattr(case.p, name).scale, getattr(case.grids, name))
        for name, x in inputs.items()
    }
    output = fused(case)
    upstream = randn(*output.shape, seed=case.seed + 90)
    assert_same(output, attention(*leaves.values()), leaves, upstream, factors)


@pytest.mark.parametrize("shared", [False, True])
def test_nothing_of_the_size_of_the_map_is_kept(shared):
    """Only what it is given, once, before it is quantized: the map is computed anew."""
    batch, heads, tokens, width = 2, 2, 40, 3
    full = (batch, tokens, heads * width)
    wide = (batch, tokens, heads * full[-1]) if shared else full
    left, right, value = (randn(*s, seed=0).requires_grad_() for s in (full, wide, full))
    groups = heads if shared else 1

    def parameters(length, biases):
        step = torch.full((length,), 0.4, dtype=torch.float64, requires_grad=True)
        entries = torch.zeros(biases, dtype=torch.float64, requires_grad=True)
        return Parameters(step, entries, None) if biases else Parameters(step, None, None)

    rows = (1, tokens, 1)
    map_shape = (batch, heads, tokens, tokens)
    view = (batch, tokens * groups, wide[-1] // groups)
    grids = AttentionGrids(
        heads=heads,
        scale=0.5,
        left=None if shared else Grid(-2, 1, full, rows, (full[-1],)),
        right=Grid(-2, 1, view, (1, tokens * groups, 1), (wide[-1],)),
        value=Grid(-2, 1, full, (1, 1, full[-1]), (full[-1],)),
        map=Grid(0, 3, map_shape, (1, 1, tokens, 1), ()),
    )
    p = AttentionParameters(
        None if shared else parameters(tokens, full[-1]),
        parameters(tokens * groups, wide[-1]),
        parameters(full[-1], full[-1]),
        parameters(tokens, 0),
    )
    keys = torch.zeros(batch, heads, 1, tokens, dtype=torch.float64, requires_grad=True)
    kept = saved_by(lambda: quantized_attention(left, right, value, (keys,), p, grids))
    known = [left, right, value, keys, *(leaf for q in p if q for leaf in q if leaf is not None)]
    assert sorted(t.data_ptr() for t in kept) == sorted(t.data_ptr() for t in known)
    assert max(t.numel() for t in kept) < tokens * tokens
