"""What the tests of fused quantization share: LSQ written out, its surrogate, and comparing.

Tolerances. In FP64 1e-11 of the size of a tensor, which no wrong formula meets. In FP32 5e-6: the
second bias is folded into the bias of the layer, sums run in another order, and z - v cancels up to
255 steps. The size is that of the largest entry, at least 1: what goes in is of order one, and sums
of it may cancel.
"""

import math

import torch

from ofq_core.quant.reference import lsq_reference

TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6}


def randn(*shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def plain_lsq(x, p, grid):
    """Spec 3.1 by `lsq_reference`, on the view that `grid` describes, with M of the whole batch."""
    x = x if x.dtype == torch.float64 else x.float()
    if p.before is not None:
        x = x + p.before.view(grid.bias)
    axis = next((i for i, length in enumerate(grid.scale) if length > 1), None)
    scale = p.scale.detach() + (p.scale - p.scale.detach()) / math.sqrt(grid.whole)
    y = lsq_reference(x.reshape(grid.view), scale, grid.qmin, grid.qmax, axis).reshape(x.shape)
    return y if p.after is None else y + p.after.view(grid.bias)


def gain(shape, scale, grid):
    """g of the gradient of a scale, for x of this shape."""
    return 1 / math.sqrt(grid.qmax * math.prod(shape) / scale.numel() * grid.whole)


def frozen_surrogate(x, p, grid):
    """The function whose derivative LSQ's backward is, around (x, p): of x, s, b1 and b2.

    The derivative of rounding is zero nearly everywhere, so finite differences of LSQ itself say
    nothing. With r = z - v and the clipped entries held constant at some point, y is smooth and
    equal to LSQ there. The gain of the gradient of the scale is left out: it is a factor.
    """

    def position(x, scale, before):
        shifted = x if before is None else x + before.view(grid.bias)
        return shifted.reshape(grid.view) / scale.clamp(min=1e-5).view(grid.scale)

    with torch.no_grad():
        v = position(x, p.scale, p.before)
        inside = (v >= grid.qmin) & (v <= grid.qmax)
        clipped = v.clamp(grid.qmin, grid.qmax)
        residue = clipped.round() - clipped

    def surrogate(x, scale, before, after):
        codes = torch.where(inside, position(x, scale, before), clipped) + residue
        y = (codes * scale.view(grid.scale)).reshape(x.shape)
        return y if after is None else y + after.view(grid.bias)

    return surrogate


def assert_same(actual, expected, leaves, upstream, factors=None):
    """Outputs, and the gradients of all leaves, by name; `factors` of those expected.

    A gradient in half precision is as exact as that can be.
    """
    found = torch.autograd.grad(actual, leaves.values(), upstream)
    wanted = torch.autograd.grad(expected, leaves.values(), upstream)
    pairs = {"output": (actual, expected)} | dict(
        zip(leaves, zip(found, wanted, strict=True), strict=True)
    )
    for name, (value, reference) in pairs.items():
        assert value.dtype == reference.dtype, name
        reference = reference * (factors or {}).get(name, 1.0)
        size = max(1.0, reference.abs().max().item())
        tolerance = max(TOLERANCE[expected.dtype], 2 * torch.finfo(value.dtype).eps)
        torch.testing.assert_close(
            value,
            reference,
            rtol=0,
            atol=size * tolerance,
            msg=lambda message, name=name: f"{name}: {message}",
        )


def saved_by(compute):
    """Tensors that autograd keeps for the backward of `compute`, in order."""
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = compute()
    assert output.requires_grad
    return kept
