"""LSQ where it is easy to get wrong: mask, clipping, ties, scales out of bounds, half precision."""

import math

import pytest
import torch

from ofq_core.quant import code_range, lsq, lsq_codes, lsq_init_scale, lsq_position
from ofq_core.quant.lsq import SCALE_FLOOR
from ofq_core.quant.reference import lsq_reference


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("bits", [0, 1, 9, 32, -2, 2.0, True, "two", "2", None])
def test_refused_bits(bits):
    for signed in (True, False):
        with pytest.raises(ValueError, match="LSQ takes an integer from 2 to 8") as error:
            code_range(bits, signed)
        assert repr(bits) in str(error.value)


def test_code_ranges():
    assert code_range(2, signed=True) == (-2, 1)
    assert code_range(2, signed=False) == (0, 3)
    assert code_range(8, signed=True) == (-128, 127)
    assert code_range(8, signed=False) == (0, 255)


def test_ties_go_to_the_even_code():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    assert lsq_codes(x, torch.ones(1), -8, 7, None).tolist() == [0, 2, 2, 0, -2, -2]


def test_unsigned_one_bit():
    """No setting leads here, but the function takes any range with qmax > 0."""
    x = torch.tensor([-1.0, 0.2, 0.8, 3.0], requires_grad=True)
    output = lsq(x, torch.ones(1), 0, 1, None)
    output.sum().backward()
    assert output.tolist() == [0, 0, 1, 1]
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_mask_is_on_the_unrounded_position():
    """torch's fake quantization masks on round(v); LSQ, as released, on v itself."""
    qmin, qmax = code_range(3, signed=True)
    x = torch.tensor([qmin - 0.4, qmin, 0.3, qmax, qmax + 0.4])
    masks = []
    for quantize in (
        lambda x: lsq(x, torch.ones(1), qmin, qmax, None),
        lambda x: torch.fake_quantize_per_tensor_affine(x, 1.0, 0, qmin, qmax),
        lambda x: torch._fake_quantize_learnable_per_tensor_affine(
            x, torch.ones(1), torch.zeros(1), qmin, qmax
        ),
    ):
        leaf = x.clone().requires_grad_()
        output = quantize(leaf)
        output.sum().backward()
        # All three agree on the values: just the gradient differs.
        assert output.tolist() == [qmin, qmin, 0, qmax, qmax]
        masks.append(leaf.grad.tolist())
    assert masks[0] == [0, 1, 1, 1, 0]
    assert masks[1] == masks[2] == [1, 1, 1, 1, 1]


def test_scale_gradient_of_clipped_and_unclipped_entries():
    """Inside: z - v. Beyond the ends: qmin or qmax. Times 1 / sqrt(qmax M)."""
    qmin, qmax = code_range(2, signed=True)
    for value, expected in ((0.3, 0 - 0.3), (0.7, 1 - 0.7), (5.0, qmax), (-5.0, qmin)):
        scale = torch.ones(1, requires_grad=True)
        lsq(torch.tensor([[value, 0.0]]), scale, qmin, qmax, None).sum().backward()
        assert scale.grad.item() == pytest.approx(expected / math.sqrt(qmax * 2), rel=1e-6)


def test_entries_sharing_a_scale_are_counted():
    """M is the batch times the channels for scales per token."""
    x = torch.full((5, 3, 4), 10.0)
    scale = torch.ones(3, requires_grad=True)
    lsq(x, scale, -8, 7, -2).sum().backward()
    torch.testing.assert_close(scale.grad, torch.full((3,), 7 * 20 / math.sqrt(7 * 20)))


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e-5, -0.3])
def test_scale_floor(value):
    scale = torch.tensor([value], requires_grad=True)
    x = torch.tensor([[3e-5, -1e-5, 0.0, 1.0]], requires_grad=True)
    output = lsq(x, scale, -8, 7, None)
    torch.testing.assert_close(output, torch.tensor([[3e-5, -1e-5, 0.0, 7e-5]]))
    output.sum().backward()
    # Three unclipped entries give z - v = 0 up to rounding; the clipped one gives qmax.
    torch.testing.assert_close(scale.grad, torch.tensor([7 / math.sqrt(7 * 4)]))
    assert x.grad.tolist() == [[1, 1, 1, 0]]
    assert lsq_position(x.detach(), scale.detach(), None).max() == pytest.approx(1 / SCALE_FLOOR)


def test_negative_scale_recovers():
    """A scale that an optimizer step pushed below zero finds back, as its gradient goes on."""
    x = randn(4, 16, seed=3)
    scale = torch.tensor([-0.2], requires_grad=True)
    optimizer = torch.optim.Adam([scale], lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (lsq(x, scale, -8, 7, None) - x).square().mean()
        loss.backward()
        optimizer.step()
    assert scale.item() > 0.1
    assert loss.item() < 0.02 * x.square().mean().item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
def test_half_precision_is_computed_in_float32(bits, dtype, signed):
    qmin, qmax = code_range(bits, signed)
    x = randn(2, 6, 8, seed=bits).to(dtype)
    scale = lsq_init_scale(x, -2, qmax, 2.0)
    assert scale.dtype == torch.float32
    assert torch.equal(scale, lsq_init_scale(x.float(), -2, qmax, 2.0))
    x[0, 0, 0], x[0, 1, 0] = 1000, -1000  # certainly clipped
    codes = lsq_codes(x, scale, qmin, qmax, -2)
    assert torch.equal(codes, lsq_codes(x.float(), scale, qmin, qmax, -2))
    assert codes.max() == qmax
    assert codes.min() == qmin

    upstream = randn(2, 6, 8, seed=1).to(dtype)
    gradients = []
    for values in (x, x.float()):
        leaf, s = values.clone().requires_grad_(), scale.clone().requires_grad_()
        output = lsq(leaf, s, qmin, qmax, -2)
        assert output.dtype == leaf.dtype
        output.backward(upstream.to(values.dtype))
        assert leaf.grad.dtype == leaf.dtype
        gradients.append((output.detach().to(dtype), leaf.grad.to(dtype), s.grad))
    for half, full in zip(*gradients, strict=True):
        assert torch.equal(half, full)


def test_float64_stays_float64():
    x = randn(2, 3, 4, dtype=torch.float64).requires_grad_()
    scale = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64, requires_grad=True)
    output = lsq(x, scale, -8, 7, -2)
    output.sum().backward()
    expected = torch.autograd.grad(lsq_reference(x, scale, -8, 7, -2).sum(), (x, scale))
    assert output.dtype == x.grad.dtype == scale.grad.dtype == torch.float64
    torch.testing.assert_close(x.grad, expected[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(scale.grad, expected[1], rtol=1e-12, atol=1e-14)


def test_position_that_overflows():
    """x / s can be infinite; infinity times a mask of zero would be NaN."""
    x = torch.tensor([3e38, -3e38, 0.0], requires_grad=True)
    scale = torch.tensor([1e-5], requires_grad=True)
    lsq(x, scale, -8, 7, None).sum().backward()
    assert x.grad.tolist() == [0, 0, 1]
    assert scale.grad.item() == pytest.approx((7 - 8) / math.sqrt(7 * 3))


def test_zero_input():
    x = torch.zeros(2, 3, 4, requires_grad=True)
    scale = torch.full((3,), 0.5, requires_grad=True)
    output = lsq(x, scale, -2, 1, -2)
    output.sum().backward()
    assert torch.equal(output, torch.zeros_like(output))
    assert scale.grad.tolist() == [0, 0, 0]
    assert lsq_init_scale(x, -2, 1, 2.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("axis", "scales"), [(-2, 4), (-1, 3), (None, 3), (0, 1)])
def test_wrong_number_of_scales(axis, scales):
    with pytest.raises(ValueError, match=f"{scales} scales for axis {axis} .*fixed number"):
        lsq(torch.zeros(2, 3, 4), torch.ones(scales), -2, 1, axis)


def test_inputs_are_left_alone():
    x, scale = randn(2, 3, 4), torch.tensor([-1.0, 1e-9, 0.5])
    x_before, scale_before = x.clone(), scale.clone()
    lsq(x, scale, -2, 1, -2)
    assert torch.equal(x, x_before)
    assert torch.equal(scale, scale_before)
