"""torch's fused learnable fake quantization is not LSQ, so it cannot take its place.

LSQ passes the gradient of x where qmin <= v <= qmax; torch where the rounded value is in that
range, so also up to half a step beyond both ends. Values agree; gradients do not. The test would
tell if torch changed its rule.
"""

import math

import pytest
import torch

from ofq_core.quant import code_range, lsq, lsq_init_scale
from ofq_core.quant.reference import lsq_reference


def fake_quantize(x, scale, qmin, qmax, axis, factor):
    """torch's own, with the zero point at zero and LSQ's gain as its gradient factor."""
    zero = torch.zeros_like(scale)
    if axis is None:
        return torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, qmin, qmax, factor)
    return torch._fake_quantize_learnable_per_channel_affine(
        x, scale, zero, axis, qmin, qmax, factor
    )


@pytest.fixture(params=[None, 1], ids=["per-tensor", "per-channel"])
def draw(request):
    """Draw 2-bit inputs with their initial scales: (signed) -> x, scale, range, axis, upstream."""

    def build(signed):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(64, 12, 24, generator=generator)
        upstream = torch.randn(64, 12, 24, generator=generator)
        qmin, qmax = code_range(2, signed)
        x = x if signed else torch.nn.functional.gelu(x)
        scale = lsq_init_scale(x, request.param, qmax, 2.0)
        return x.requires_grad_(), scale.requires_grad_(), (qmin, qmax), request.param, upstream

    return build


@pytest.mark.parametrize("signed", [True, False])
def test_the_masks_differ_beyond_the_ends(draw, signed):
    x, scale, (qmin, qmax), axis, upstream = draw(signed)
    gain = 1 / math.sqrt(qmax * x.numel() / scale.numel())
    ours = lsq(x, scale, qmin, qmax, axis)
    theirs = fake_quantize(x, scale, qmin, qmax, axis, gain)
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-6)

    x_ours, scale_ours = torch.autograd.grad(ours, (x, scale), upstream)
    x_theirs, scale_theirs = torch.autograd.grad(theirs, (x, scale), upstream)
    v = x.detach() / scale.detach().view((1, -1, 1))
    beyond = ((v > qmax) & (v < qmax + 0.5)) | ((v < qmin) & (v > qmin - 0.5))
    differ = x_ours != x_theirs
    assert torch.equal(differ, beyond)
    assert (x_ours[beyond] == 0).all()
    assert torch.equal(x_theirs[beyond], upstream[beyond])
    assert differ.float().mean() > 0.02
    # The gradient of the scale sums other terms there: z - v in the place of z.
    assert (scale_ours - scale_theirs).abs().max() > 0.01 * scale_ours.abs().max()


@pytest.mark.parametrize("signed", [True, False])
def test_ours_is_that_of_the_reference(draw, signed):
    x, scale, (qmin, qmax), axis, upstream = draw(signed)
    found = torch.autograd.grad(lsq(x, scale, qmin, qmax, axis), (x, scale), upstream)
    wanted = torch.autograd.grad(lsq_reference(x, scale, qmin, qmax, axis), (x, scale), upstream)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("bits", "signed", "percent"),
    [(2, True, 4.7), (3, True, 0.2), (2, False, 52), (3, False, 33), (4, False, 17), (8, False, 3)],
)
def test_share_of_entries_whose_mask_differs(bits, signed, percent):
    """At the initial scale. After GELU, the tail just below zero is masked by LSQ alone."""
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    x = x if signed else torch.nn.functional.gelu(x)
    qmin, qmax = code_range(bits, signed)
    scale = lsq_init_scale(x, None, qmax, 2.0)
    x.requires_grad_()
    masks = []
    for quantized in (
        lsq(x, scale, qmin, qmax, None),
        fake_quantize(x, scale, qmin, qmax, None, 1),
    ):
        masks.append(torch.autograd.grad(quantized.sum(), x)[0])
    differ = (masks[0] != masks[1]).float().mean().item()
    assert 100 * differ == pytest.approx(percent, rel=0.3)
