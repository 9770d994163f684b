"""DoReFa's tanh weights and PACT's clipping."""

import pytest
import torch

from ofq_core.nn import LSQActivation

TANH = torch.tensor([[0.8, 0.4], [-0.2, -0.8]])


def test_weights(make, same):
    """2 bit, L = 3, M = 0.8: the values are -0.8, -0.8/3, 0.8/3, 0.8."""
    weight = TANH.atanh()
    module = make("pact", weight, 2)
    # 1.5 t / M - 0.5 with t / M = 1, 0.5, -0.25, -1
    same(module.position(weight), [[1.0, 0.25], [-0.875, -2.0]])
    assert module.codes(weight).tolist() == [[1, 0], [-1, -2]]
    same(module(weight), [[0.8, 0.8 / 3], [-0.8 / 3, -0.8]])
    same(module.scales(weight), [0.8])
    assert not module.clipped(weight).any()
    assert not list(module.parameters())


def test_gradient_of_weights_is_that_of_tanh(make, same):
    weight = TANH.atanh().requires_grad_()
    make("pact", weight.detach(), 2)(weight).backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    # 1 - t^2 = 0.36, 0.84, 0.96, 0.36; none through M
    same(weight.grad, [[0.36, 1.68], [2.88, 1.44]])


def test_unsigned(make_activation, same):
    """2 bit, alpha = 3: s = 1."""
    module = make_activation("pact", 1, 2, signed=False)
    module.scale.data.fill_(3.0)
    x = torch.tensor([[[-1.0, 0.4, 1.6, 2.6, 3.0, 5.0]]], requires_grad=True)
    output = module(x)
    same(output, [[[0.0, 0.0, 2.0, 3.0, 3.0, 3.0]]])
    output.backward(torch.tensor([[[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]]]))
    same(x.grad, [[[0.0, 2.0, 4.0, 8.0, 0.0, 0.0]]])
    same(module.scale.grad, [48.0])


def test_signed(make_activation, same):
    """2 bit, alpha = 3: s = 2, the values -3, -1, 1, 3."""
    module = make_activation("pact", 1, 2)
    module.scale.data.fill_(3.0)
    x = torch.tensor([[[-4.0, -3.0, -2.2, -0.5, 0.5, 2.5, 3.0, 9.0]]], requires_grad=True)
    output = module(x)
    # (x + 3) / 2 = 0.4, 1.25, 1.75, 2.75 for those inside
    same(output, [[[-3.0, -3.0, -3.0, -1.0, 1.0, 3.0, 3.0, 3.0]]])
    output.backward(torch.tensor([[[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]]]))
    same(x.grad, [[[0.0, 0.0, 4.0, 8.0, 16.0, 32.0, 0.0, 0.0]]])
    # 64 + 128 - 1 - 2
    same(module.scale.grad, [189.0])


def test_alpha_of_each_group(make_activation, same):
    module = make_activation("pact", 2, 2, signed=False)
    module.scale.data.copy_(torch.tensor([3.0, 6.0]))
    output = module(torch.tensor([[[2.4, 9.0], [2.4, 9.0]]]))
    same(output, [[[2.0, 3.0], [2.0, 6.0]]])
    output.sum().backward()
    same(module.scale.grad, [1.0, 1.0])


def test_start(make_activation, start, same):
    x = torch.tensor([[[-3.0, 1.0], [0.0, 0.0], [0.5, 0.25]]])
    signed, unsigned = make_activation("pact", 3), make_activation("pact", 3, signed=False)
    start(signed, x)
    start(unsigned, x)
    same(signed.scale, [3.0, 3.0, 0.5])
    same(unsigned.scale, [1.0, 1.0, 0.5])


def test_penalty(make_activation, same):
    module = make_activation("pact", 2, alpha_decay=0.01)
    module.scale.data.copy_(torch.tensor([1.0, 2.0]))
    penalty = module.rule.penalty(module)
    # 0.01 (1 + 4); 2 * 0.01 alpha
    same(penalty, 0.05)
    penalty.backward()
    same(module.scale.grad, [0.02, 0.04])
    without = make_activation("pact", 2, alpha_decay=0.0)
    assert without.rule.penalty(without) is None


@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_an_alpha_that_fell_below_zero_can_recover(value, make_activation):
    module: LSQActivation = make_activation("pact", 1, signed=False)
    module.scale.data.fill_(value)
    output = module(torch.ones(1, 1, 4))
    assert bool(output.isfinite().all())
    output.sum().backward()
    assert module.scale.grad.tolist() == [4.0]
