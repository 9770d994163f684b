"""The number of entries in LSQ's gradient scale: of the whole batch, however it is cut up."""

import math

import pytest
import torch

from ofq_core.nn import LSQActivation, TokenLSQ, calibrate, set_whole_batch
from ofq_core.quant import lsq


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (2, 5, 1), (1,) * 8])
def test_parts_add_up_to_the_whole(sizes):
    """Gradients of unequal parts, each told the size of the whole, sum to that of the batch."""
    x, upstream = randn(8, 3, 4), randn(8, 3, 4, seed=1)
    scale = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    lsq(x, scale, -2, 1, -2).backward(upstream)
    whole = scale.grad.clone()
    scale.grad = None
    for part, up in zip(x.split(sizes), upstream.split(sizes), strict=True):
        lsq(part, scale, -2, 1, -2, whole=8 / len(part)).backward(up)
    torch.testing.assert_close(scale.grad, whole, rtol=1e-12, atol=0)


def test_factor_by_hand():
    """Four times the entries: half the gradient of the scale, the same gradient of the input."""
    gradients = []
    for whole in (1.0, 4.0):
        x = torch.tensor([[0.7, -0.2]], requires_grad=True)
        scale = torch.tensor([0.5], requires_grad=True)
        lsq(x, scale, -2, 1, None, whole=whole).sum().backward()
        gradients.append((x.grad.clone(), scale.grad.clone()))
    # v = 1.4 is clipped (gives 1), v = -0.4 gives 0 - -0.4; M = 2, qmax = 1.
    assert gradients[0][1].item() == pytest.approx(1.4 / math.sqrt(2))
    assert gradients[1][1].item() == pytest.approx(1.4 / math.sqrt(8))
    assert torch.equal(gradients[0][0], gradients[1][0])


def test_every_activation_quantizer_is_told():
    model = torch.nn.Sequential(TokenLSQ(3, 4), torch.nn.Sequential(LSQActivation(4, -1, 4)))
    calibrate(model, randn(8, 3, 4).float())

    def gradients():
        model.zero_grad()
        model(randn(8, 3, 4, seed=2).float()).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    before = gradients()
    set_whole_batch(model, 16.0)
    for one, other in zip(before, gradients(), strict=True):
        torch.testing.assert_close(other, one / 4)
