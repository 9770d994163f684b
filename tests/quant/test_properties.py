"""Properties that hold for all inputs: hypothesis draws shapes, bits, dtypes and seeds."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from ofq_core.quant import (
    code_range,
    free_mask,
    lsq,
    lsq_codes,
    lsq_init_scale,
    qkr_product,
    statsq,
    statsq_codes,
    statsq_position,
    statsq_scale,
)
from ofq_core.quant.reference import (
    freeze_mask_reference,
    lsq_reference,
    qkr_product_reference,
    statsq_reference,
)

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**31 - 1)
SIDES = st.integers(1, 9)
FLOATS = st.sampled_from([torch.float32, torch.float64])
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
MAGNITUDES = st.sampled_from([1e-3, 0.05, 1.0, 30.0])


def randn(*shape, seed, dtype=torch.float32, outliers=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    if outliers:  # exact zeros and far outliers, where edge cases live
        kind = torch.rand(*shape, generator=generator)
        x = torch.where(kind < 0.1, 0.0, torch.where(kind > 0.95, 100 * x, x))
    return x.to(dtype)


@given(bits=BITS, rows=SIDES, cols=SIDES, seed=SEEDS, dtype=DTYPES, size=MAGNITUDES)
def test_statsq_codes_are_in_range(bits, rows, cols, seed, dtype, size):
    weight = randn(rows, cols, seed=seed, dtype=dtype, outliers=True) * size
    codes = statsq_codes(weight, bits)
    assert codes.min() >= -(2 ** (bits - 1))
    assert codes.max() <= 2 ** (bits - 1) - 1
    assert torch.isfinite(statsq(weight, bits)).all()


@given(bits=BITS, seed=SEEDS, signed=st.booleans(), dtype=DTYPES, size=MAGNITUDES)
def test_lsq_codes_are_in_range(bits, seed, signed, dtype, size):
    qmin, qmax = code_range(bits, signed)
    x = randn(3, 4, 5, seed=seed, dtype=dtype, outliers=True) * size
    codes = lsq_codes(x, lsq_init_scale(x, -2, qmax, 2.0), qmin, qmax, -2)
    assert codes.min() >= qmin
    assert codes.max() <= qmax
    assert torch.equal(codes, codes.round())


@given(bits=BITS, rows=SIDES, cols=SIDES, seed=SEEDS, dtype=FLOATS)
def test_statsq_is_idempotent_at_the_same_scale(bits, rows, cols, seed, dtype):
    """The scale is a statistic of the weights, so it has to be handed in the second time.

    Codes, not values, are compared: quantized weights lie on the middle of their interval.
    """
    weight = randn(rows, cols, seed=seed, dtype=dtype, outliers=True)
    scale = statsq_scale(weight)
    quantized = statsq(weight, bits)
    nonzero = scale[:, 0] > 0
    again = statsq_codes(quantized, bits, scale)
    assert torch.equal(again[nonzero], statsq_codes(weight, bits)[nonzero])


@given(bits=BITS, seed=SEEDS, signed=st.booleans(), dtype=DTYPES)
def test_lsq_is_idempotent(bits, seed, signed, dtype):
    qmin, qmax = code_range(bits, signed)
    x = randn(3, 4, 5, seed=seed, dtype=dtype, outliers=True)
    scale = lsq_init_scale(x, -2, qmax, 2.0).clamp(min=1e-3)
    once = lsq(x, scale, qmin, qmax, -2)
    assert torch.equal(lsq(once, scale, qmin, qmax, -2), once)


@given(bits=BITS, rows=SIDES, cols=SIDES, seed=SEEDS, power=st.integers(-20, 20))
def test_statsq_follows_powers_of_two_exactly(bits, rows, cols, seed, power):
    weight = randn(rows, cols, seed=seed)
    factor = 2.0**power
    assert torch.equal(statsq_codes(factor * weight, bits), statsq_codes(weight, bits))
    assert torch.equal(statsq(factor * weight, bits), factor * statsq(weight, bits))


@given(bits=BITS, seed=SEEDS, factor=st.floats(0.01, 100))
def test_statsq_follows_any_factor(bits, seed, factor):
    """FP64, as a product rounded to FP32 may cross a threshold."""
    weight = randn(6, 9, seed=seed, dtype=torch.float64)
    torch.testing.assert_close(
        statsq(factor * weight, bits), factor * statsq(weight, bits), rtol=1e-12, atol=0
    )


@given(bits=BITS, seed=SEEDS)
def test_statsq_treats_rows_alone(bits, seed):
    weight = randn(7, 9, seed=seed)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(statsq(weight[order], bits), statsq(weight, bits)[order])


@given(bits=BITS, seed=SEEDS)
def test_statsq_does_not_depend_on_the_order_of_columns(bits, seed):
    """FP64: the mean is summed in another order."""
    weight = randn(7, 9, seed=seed, dtype=torch.float64)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        statsq(weight[:, order], bits), statsq(weight, bits)[:, order], rtol=1e-12, atol=0
    )


@given(bits=BITS, rows=SIDES, cols=SIDES, seed=SEEDS, dtype=FLOATS)
def test_statsq_equals_reference(bits, rows, cols, seed, dtype):
    """The reference returns (Q - W) + W: one unit in the last place of the larger of both."""
    weight = randn(rows, cols, seed=seed, dtype=dtype).requires_grad_()
    upstream = randn(rows, cols, seed=seed + 1, dtype=dtype)
    output, expected = statsq(weight, bits), statsq_reference(weight, bits)
    eps = torch.finfo(dtype).eps
    largest = torch.maximum(output.abs(), weight.abs()).max().item()
    torch.testing.assert_close(output, expected, rtol=4 * eps, atol=2 * eps * largest)
    (ours,) = torch.autograd.grad(output, weight, upstream)
    (theirs,) = torch.autograd.grad(expected, weight, upstream)
    assert torch.equal(ours, upstream)
    assert torch.equal(theirs, upstream)


@st.composite
def lsq_inputs(draw):
    """Any shape from 1 to 4 axes, any axis or none, any sign."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    axis = draw(st.one_of(st.none(), st.integers(-len(shape), len(shape) - 1)))
    qmin, qmax = code_range(draw(BITS), draw(st.booleans()))
    dtype, seed = draw(FLOATS), draw(SEEDS)
    x = randn(*shape, seed=seed, dtype=dtype)
    length = 1 if axis is None else shape[axis]
    scale = 0.02 + randn(length, seed=seed + 1, dtype=dtype).abs() * 2 / math.sqrt(qmax)
    scale[randn(length, seed=seed + 2) > 1.5] *= -1  # now and then below the floor
    return x, scale, qmin, qmax, axis, randn(*shape, seed=seed + 3, dtype=dtype)


@given(lsq_inputs())
def test_lsq_equals_reference(inputs):
    x, scale, qmin, qmax, axis, upstream = inputs
    x.requires_grad_()
    scale.requires_grad_()
    output = lsq(x, scale, qmin, qmax, axis)
    expected = lsq_reference(x, scale, qmin, qmax, axis)
    assert torch.equal(output, expected)
    grad_x, grad_scale = torch.autograd.grad(output, (x, scale), upstream)
    expected_x, expected_scale = torch.autograd.grad(expected, (x, scale), upstream)
    # The reference multiplies with s and divides by it again.
    torch.testing.assert_close(grad_x, expected_x, rtol=1e-6, atol=0)
    # z - v cancels in every entry: relative to the largest z and v, times the M entries summed.
    shared = x.numel() // scale.numel()
    largest = upstream.abs().max().item() * max(-qmin, qmax) / math.sqrt(qmax * shared)
    bound = 4 * torch.finfo(x.dtype).eps * largest * shared
    torch.testing.assert_close(grad_scale, expected_scale, rtol=1e-6, atol=bound)


@given(lsq_inputs())
def test_lsq_gradient_mask(inputs):
    """Gradient passes exactly where qmin <= x / s <= qmax, unchanged, ends included."""
    x, scale, qmin, qmax, axis, upstream = inputs
    shape = [1] * x.ndim
    if axis is not None:
        shape[axis] = -1
    v = x / scale.clamp(min=1e-5).view(shape)
    # Nothing is masked by rounding: an entry 0.4 steps outside has the code of the end.
    inside = (v >= qmin) & (v <= qmax)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(lsq(x, scale, qmin, qmax, axis), x, upstream)
    assert torch.equal(gradient, upstream * inside)


@given(
    bits=BITS,
    seed=SEEDS,
    band=st.one_of(st.sampled_from([0.005, 0.1, 0.25, 0.5]), st.floats(1e-4, 0.5)),
    quarters=st.booleans(),
)
def test_free_mask_equals_reference(bits, seed, band, quarters):
    kmin, kmax = code_range(bits, signed=True)
    position = statsq_position(randn(12, 16, seed=seed, outliers=True), bits)
    if quarters:  # thresholds, ends of bands and integers, hit exactly
        position = (position * 4).round() / 4
    for low, high in ((kmin, kmax), (kmin + 1, kmax - 1), (0, 0)):
        free = free_mask(position, band, low, high)
        assert torch.equal(~free, freeze_mask_reference(position, band, low, high))


@given(heads=st.integers(1, 4), width=st.integers(1, 4), seed=SEEDS, dtype=FLOATS)
def test_qkr_product_equals_reference(heads, width, seed, dtype):
    dim = heads * width
    w_q = randn(dim, dim, seed=seed, dtype=dtype).requires_grad_()
    w_k = randn(dim, dim, seed=seed + 1, dtype=dtype).requires_grad_()
    product = qkr_product(w_q, w_k, heads)
    # Two orders of a sum differ by at most its terms' sizes, an eps for each of them.
    terms = qkr_product_reference(w_q.abs(), w_k.abs(), heads)
    bound = width * torch.finfo(dtype).eps * terms
    assert bool(((product - qkr_product_reference(w_q, w_k, heads)).abs() <= bound).all())


@given(heads=st.integers(1, 4), width=st.integers(1, 4), seed=SEEDS, bits=BITS)
def test_qkr_gradient_goes_through_the_latent_partners(heads, width, seed, bits):
    """Section 4.2: with U = dL/dQ(W_qk), dL/dWq = Wk U^T and dL/dWk = Wq U, head by head.

    W_k and W_q there are the latent weights: nothing of the quantized product appears.
    """
    dim = heads * width
    w_q, w_k = (randn(dim, dim, seed=seed + i, dtype=torch.float64) for i in (0, 1))
    upstream = randn(heads * dim, dim, seed=seed + 2, dtype=torch.float64)
    w_q.requires_grad_()
    w_k.requires_grad_()
    output = statsq(qkr_product(w_q, w_k, heads), bits)
    grad_q, grad_k = torch.autograd.grad(output, (w_q, w_k), upstream)
    for h in range(heads):
        rows, u = slice(h * width, (h + 1) * width), upstream[h * dim : (h + 1) * dim]
        torch.testing.assert_close(grad_q[rows], w_k[rows].detach() @ u.T)
        torch.testing.assert_close(grad_k[rows], w_q[rows].detach() @ u)
