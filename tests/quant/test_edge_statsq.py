"""StatsQ where it is easy to get wrong: ties, zeros, clipping, half precision, bad bit widths."""

import pytest
import torch

from ofq_core.quant import (
    statsq,
    statsq_codes,
    statsq_dequantize,
    statsq_position,
    statsq_scale,
    straight_through,
)
from ofq_core.quant.reference import statsq_reference

BITS = range(2, 9)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("bits", [0, 1, 9, 16, 32, -2, 2.0, True, "two", "2", None])
def test_refused_bits(bits):
    for function in (statsq, statsq_codes, statsq_position):
        with pytest.raises(ValueError, match="StatsQ takes an integer from 2 to 8") as error:
            function(torch.ones(2, 2), bits)
        assert repr(bits) in str(error.value)


def test_ties_go_to_the_even_code():
    # s = 2, n = 2: u = W - 0.5, so W = 1, -1 and 0 lie on u = 0.5, -1.5 and -0.5.
    weight = torch.tensor([[1.0, -1.0, 0.0, 2.0]])
    assert statsq_scale(weight).item() == 2.0
    assert statsq_codes(weight, 2).tolist() == [[0, -2, 0, 1]]


def test_zero_weight_is_not_zero_on_the_grid():
    weight = torch.tensor([[0.0, 1.0, -1.0, 0.0]])
    scale = statsq_scale(weight)
    for bits in BITS:
        assert statsq_codes(weight, bits)[0, 0] == 0
        assert statsq(weight, bits)[0, 0] == scale.item() / 2**bits


def test_zero_rows_give_zero_without_nan():
    """The released code divides 0 by 0 here."""
    weight = torch.stack([torch.zeros(4), torch.tensor([1.0, -2.0, 0.5, 0.1])]).requires_grad_()
    upstream = randn(2, 4)
    for bits in BITS:
        weight.grad = None
        output = statsq(weight, bits)
        output.backward(upstream)
        assert torch.equal(output[0], torch.zeros(4))
        assert torch.isfinite(output).all()
        assert statsq_codes(weight, bits)[0].tolist() == [0, 0, 0, 0]
        assert statsq_position(weight, bits)[0].tolist() == [-0.5] * 4
        assert torch.equal(weight.grad, upstream)


@pytest.mark.parametrize("bits", BITS)
def test_clipped_weights(bits):
    """Beyond +-s: outermost codes, gradient still equal to upstream, position within the grid."""
    n = 2 ** (bits - 1)
    weight = torch.full((1, 64), 0.01)
    weight[0, :4] = torch.tensor([50.0, -50.0, 1e30, -1e30])[:4] / torch.tensor([1, 1, 1e29, 1e29])
    weight.requires_grad_()
    assert (weight.abs() > statsq_scale(weight))[0, :4].all()
    assert statsq_codes(weight, bits)[0, :4].tolist() == [n - 1, -n, n - 1, -n]
    upstream = randn(1, 64)
    statsq(weight, bits).backward(upstream)
    assert torch.equal(weight.grad, upstream)


@pytest.mark.parametrize("bits", BITS)
def test_gradient_is_upstream_and_not_through_the_scale(bits):
    weight = randn(8, 16).requires_grad_()
    upstream = randn(8, 16, seed=1)
    statsq(weight, bits).backward(upstream)
    assert torch.equal(weight.grad, upstream)
    assert not statsq_scale(weight).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", BITS)
def test_half_precision_is_computed_in_float32(bits, dtype):
    """In half precision 1 - 1e-6 is 1 and the top code would be n, outside the grid."""
    assert torch.tensor(1 - 1e-6, dtype=dtype) == 1
    weight = randn(16, 32, seed=bits).to(dtype)
    weight[0, 0] = 8 * weight.abs().max()  # certainly clipped
    codes = statsq_codes(weight, bits)
    assert torch.equal(codes, statsq_codes(weight.float(), bits))
    assert codes.max() == 2 ** (bits - 1) - 1
    assert codes.min() == -(2 ** (bits - 1))
    leaf = weight.clone().requires_grad_()
    output = statsq(leaf, bits)
    assert output.dtype == dtype
    assert torch.equal(output, statsq(weight.float(), bits).to(dtype))
    upstream = randn(16, 32, seed=1).to(dtype)
    output.backward(upstream)
    assert leaf.grad.dtype == dtype
    assert torch.equal(leaf.grad, upstream)


@pytest.mark.parametrize("bits", BITS)
def test_float64_stays_float64(bits):
    weight = randn(8, 16, dtype=torch.float64)
    output = statsq(weight, bits)
    assert output.dtype == torch.float64
    torch.testing.assert_close(output, statsq_reference(weight, bits), rtol=1e-14, atol=1e-15)
    # Not by way of FP32: the scale is exact to more digits than FP32 has.
    assert torch.equal(statsq_scale(weight)[:, 0], 2 * weight.abs().mean(1))


def test_batches_of_matrices_are_independent():
    weight = randn(3, 4, 8)
    for bits in (2, 4):
        together = statsq(weight, bits)
        assert torch.equal(together, torch.stack([statsq(w, bits) for w in weight]))


def test_dequantized_codes_are_the_output():
    weight = randn(4, 8)
    for bits in BITS:
        values = statsq_dequantize(statsq_codes(weight, bits), statsq_scale(weight), bits)
        assert torch.equal(values, statsq(weight, bits))


def test_inputs_are_left_alone():
    weight = randn(4, 8)
    before = weight.clone()
    for bits in BITS:
        statsq(weight, bits)
        statsq_codes(weight, bits)
    assert torch.equal(weight, before)


def test_straight_through_mask():
    weight = randn(3, 3).requires_grad_()
    free = torch.eye(3, dtype=torch.bool)
    upstream = randn(3, 3, seed=1)
    straight_through(weight, torch.zeros(3, 3), free).backward(upstream)
    assert torch.equal(weight.grad, upstream * free)
