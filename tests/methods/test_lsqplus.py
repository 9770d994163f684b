"""LSQ+: the offset of activations and where scales start."""

import math

import pytest
import torch

from ofq_core.methods.lsqplus import SHRINK

X = [[[1.0, 1.3, -0.4, 2.0, 0.8]]]


@pytest.fixture
def module(make_activation):
    """s = 0.5, beta = 1, codes -2 .. 1: the values 0, 0.5, 1, 1.5."""
    built = make_activation("lsqplus", 1, 2)
    built.scale.data.fill_(0.5)
    built.offset.data.fill_(1.0)
    return built


def test_forward(module, same):
    # (x - 1) / 0.5 = 0, 0.6, -2.8, 2, -0.4; codes 0, 1, -2, 1, 0
    same(module(torch.tensor(X)), [[[1.0, 1.5, 0.0, 1.5, 1.0]]])


@pytest.mark.parametrize(("whole", "gain"), [(1.0, 1 / math.sqrt(5)), (4.0, 0.5 / math.sqrt(5))])
def test_gradients(module, same, whole, gain):
    """g = 1 / sqrt(5 entries * qmax 1); a batch four times as large halves it."""
    module.whole_batch = whole
    x = torch.tensor(X, requires_grad=True)
    module(x).backward(torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]]))
    # Inside: 0, 0.6, -0.4.
    same(x.grad, [[[1.0, 2.0, 0.0, 0.0, 5.0]]])
    # Outside: the upstream 3 and 4.
    same(module.offset.grad, [7.0 * gain])
    # 1 * 0 + 2 (1 - 0.6) + 3 (-2) + 4 (1) + 5 (0 + 0.4) = 0.8
    same(module.scale.grad, [0.8 * gain])


def test_an_offset_of_zero_is_lsq(module, make_activation, randn):
    module.offset.data.zero_()
    plain = make_activation("lsq", 1, 2)
    plain.scale.data.fill_(0.5)
    upstream, results = randn(2, 1, 7, seed=1), []
    for built in (module, plain):
        x = randn(2, 1, 7).requires_grad_()
        output = built(x)
        output.backward(upstream)
        results.append((output, x.grad, built.scale.grad))
    (output, gradient, scale), (plain_output, plain_gradient, plain_scale) = results
    assert torch.equal(output, plain_output)
    assert torch.equal(gradient, plain_gradient)
    # Fourteen terms below 4 |upstream|, which the two may add in another order.
    bound = 14 * torch.finfo(torch.float32).eps * 4 * float(upstream.abs().sum())
    torch.testing.assert_close(scale, plain_scale, rtol=0.0, atol=bound)


@pytest.mark.parametrize(
    ("signed", "offsets"), [(False, [1.0, 5.0, -6.0]), (True, [3.0, 5.0, -2.0])]
)
def test_a_range_that_fits_is_found(signed, offsets, make_activation, start, same):
    """Groups on a grid of four values, and a constant one, come out as they are.

    s = 1 and 2; beta is the smallest value unsigned, and two steps above it signed (code -2).
    """
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [5.0] * 4, [-6.0, -4.0, -2.0, 0.0]]])
    module = make_activation("lsqplus", 3, 2, signed)
    same(start(module, x), x.tolist())
    # The constant group has no range; it takes the largest scale of the others.
    same(module.scale, [1.0, 2.0, 2.0])
    same(module.offset, offsets)


def test_start_has_the_least_error_of_the_grid(make_activation, start, randn):
    """Against loops over groups and ranges in FP64."""
    x = randn(4, 3, 50) ** 3
    module = make_activation("lsqplus", 3, 3)
    found = (start(module, x) - x).double().square().sum((0, 2))
    for group in range(3):
        values = x[:, group].double()
        mean, low, high = values.mean(), values.min(), values.max()
        errors = []
        for below in SHRINK:
            for above in SHRINK:
                bottom, top = mean + below * (low - mean), mean + above * (high - mean)
                s = (top - bottom) / 7
                quantized = ((values - bottom) / s).round().clamp(0, 7) * s + bottom
                errors.append(float((quantized - values).square().sum()))
        assert float(found[group]) == pytest.approx(min(errors), rel=1e-4)
        assert min(errors) < 0.9 * errors[0]


def test_weights_start_from_mean_and_deviation(make, same):
    # mu = 2, -2, 0, each with sigma 1: 2 + 3 = 5, 5 and 3, over 2^(b-1).
    weight = torch.tensor([[1.0, 3.0], [-1.0, -3.0], [-1.0, 1.0]])
    same(make("lsqplus", weight, 2).scale, [2.5, 2.5, 1.5])
    same(make("lsqplus", weight, 3).scale, [1.25, 1.25, 0.75])


def test_the_offset_is_not_decayed(make_activation):
    """The optimizer exempts vectors."""
    module = make_activation("lsqplus", 3)
    assert {name: p.shape for name, p in module.named_parameters()} == {
        "scale": (3,),
        "offset": (3,),
    }
