"""Weight quantizers as modules: one interface, what CGA and the tracker read from it."""

import pytest
import torch

from ofq_core.methods.lsq import LSQWeight
from ofq_core.methods.statsq import StatsQWeight
from ofq_core.nn import FullPrecisionWeight
from ofq_core.quant import lsq, lsq_codes, qkr_product, statsq, statsq_codes, statsq_scale

QUANTIZERS = [StatsQWeight, LSQWeight]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_modules_are_the_functions(bits):
    weight = randn(6, 16)
    stats = StatsQWeight(weight, bits)
    assert torch.equal(stats(weight), statsq(weight, bits))
    assert torch.equal(stats.codes(weight), statsq_codes(weight, bits))
    assert torch.equal(stats.scales(weight), statsq_scale(weight).flatten())
    assert not list(stats.parameters())

    learned = LSQWeight(weight, bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    assert (learned.low, learned.high) == (low, high)
    assert torch.equal(learned(weight), lsq(weight, learned.scale, low, high, 0))
    expected = lsq_codes(weight, learned.scale.detach(), low, high, 0)
    assert torch.equal(learned.codes(weight), expected.to(torch.int8))
    torch.testing.assert_close(learned.scales(weight), 2 * weight.abs().mean(1) / high**0.5)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", [1, 9, 2.0, True, "two"])
def test_refused_bits(quantizer, bits):
    with pytest.raises(ValueError, match="integer from 2 to 8"):
        quantizer(randn(2, 4), bits)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_position_rounds_to_the_code(quantizer, bits):
    weight = randn(16, 32)
    weight[0, 0], weight[0, 1] = 100, -100
    module = quantizer(randn(16, 32, seed=1), bits)
    position = module.position(weight)
    codes = module.codes(weight)
    assert codes.dtype == torch.int8
    assert torch.equal(position.round().clamp(module.low, module.high).to(torch.int8), codes)
    assert codes[0, 0] == module.high
    assert codes[0, 1] == module.low
    assert module.low - 0.5 <= position.min()
    assert position.max() <= module.high + 0.5
    for band in (0.005, 0.3):
        free = module.free(weight, band)
        assert not free[0, 0]
        assert not free[0, 1]
        distance = (position - 0.5 - (position - 0.5).round()).abs()
        assert bool((distance[free] <= band + 1e-5).all())


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", [2, 8])
def test_zero_rows(quantizer, bits):
    weight = randn(3, 8)
    weight[1] = 0
    weight.requires_grad_()
    module = quantizer(weight.detach(), bits)
    output = module(weight)
    output.sum().backward()
    assert output[1].tolist() == [0] * 8
    assert torch.isfinite(output).all()
    assert weight.grad[1].tolist() == [1] * 8
    assert module.codes(weight)[1].tolist() == [0] * 8
    assert torch.isfinite(module.position(weight)).all()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_codes_are_recorded_in_training_only(quantizer):
    weight = randn(4, 8)
    module = quantizer(weight, 3)
    module(weight)
    assert module.last_codes is None
    module.record = True
    module.eval()(weight)
    assert module.last_codes is None
    module.train()(weight)
    assert torch.equal(module.last_codes.to(torch.int8), module.codes(weight))
    assert not module.state_dict().keys() & {"last_codes"}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gradient_band_on_the_product(quantizer, bits):
    """CGA on W_qk: U times the free mask goes on to both factors (spec 13), values unchanged."""
    heads, width, band = 2, 4, 0.1
    w_q, w_k = (randn(8, 8, seed=i).requires_grad_() for i in (0, 1))
    upstream = randn(16, 8, seed=2)
    product = qkr_product(w_q, w_k, heads)
    module = quantizer(product.detach(), bits)
    plain = module(product).detach()
    module.gradient_band = band
    free = module.free(product, band)
    assert 0 < int(free.sum()) < free.numel()

    output = module(product)
    assert torch.equal(output, plain)
    grad_q, grad_k = torch.autograd.grad(output, (w_q, w_k), upstream, retain_graph=True)
    masked = upstream * free
    for h in range(heads):
        rows, u = slice(h * width, (h + 1) * width), masked[h * 8 : (h + 1) * 8]
        torch.testing.assert_close(grad_q[rows], w_k[rows].detach() @ u.T)
        torch.testing.assert_close(grad_k[rows], w_q[rows].detach() @ u)

    (everything,) = torch.autograd.grad(module.eval()(product), w_q, upstream)
    assert not torch.allclose(everything, grad_q)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_observed_range(quantizer):
    """Released CGA: the threshold below a code that no weight has does not count."""
    weight = torch.tensor([[0.96, 0.96, -1.04, -1.04]])
    module = quantizer(weight, 2)
    if quantizer is LSQWeight:  # positions 0.48 and -0.52
        module.scale.data.fill_(2.0)
    assert module.codes(weight).max() == 0
    assert module.free(weight, 0.1)[0, 0]
    module.observed_range = True
    assert not module.free(weight, 0.1)[0, 0]
    assert module.free(weight, 0.1)[0, 2]


def test_gradient_band_leaves_the_scale_of_lsq_alone():
    weight, upstream = randn(4, 16).requires_grad_(), randn(4, 16, seed=1)
    module = LSQWeight(weight.detach(), 3)
    (expected,) = torch.autograd.grad(module(weight), module.scale, upstream)
    module.gradient_band = 0.05
    (actual,) = torch.autograd.grad(module(weight), module.scale, upstream)
    assert torch.equal(actual, expected)


def test_full_precision_is_the_weight_itself():
    weight = randn(3, 3)
    module = FullPrecisionWeight(weight)
    assert module(weight) is weight
    assert module.bits == 32
    assert not list(module.parameters())
