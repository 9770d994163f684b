"""Round to nearest: ranges, and that nothing is learned."""

import pytest
import torch


def test_weights(make, same):
    """2 bit: s = 2 * 3 / 3 = 2 and 0.5. v = 1.5 is on the edge of the range and takes code 1."""
    weight = torch.tensor([[3.0, -1.4, 0.4], [-0.75, 0.3, 0.1]])
    module = make("rtn", weight, 2)
    same(module.scales(weight), [2.0, 0.5])
    assert module.codes(weight).tolist() == [[1, -1, 0], [-2, 1, 0]]
    same(module(weight), [[2.0, -2.0, 0.0], [-1.0, 0.5, 0.0]])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_nothing_is_off_by_more_than_half_a_step(bits, make, randn):
    weight = randn(6, 200)
    module = make("rtn", weight, bits)
    steps = (module(weight) - weight).abs() / module.scale.unsqueeze(1)
    assert float(steps.max()) <= 0.5 + 1e-5
    assert int(module.codes(weight).max()) == module.high


def test_the_scale_is_a_buffer(make, randn):
    module, other = make("rtn", randn(4, 8)), make("rtn", randn(4, 8, seed=1))
    assert not list(module.parameters())
    assert list(module.state_dict()) == ["scale"]
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(randn(4, 8)), module(randn(4, 8)))
    fixed = module.scale.clone()
    module(randn(4, 8, seed=2) * 100)
    assert torch.equal(module.scale, fixed)


def test_activations(make_activation, start, same):
    x = torch.tensor([[[-7.0, 1.0], [0.0, 0.0], [-1.0, 3.5]]])
    signed, unsigned = make_activation("rtn", 3), make_activation("rtn", 3, signed=False)
    start(signed, x)
    start(unsigned, x)
    # 3 bit: 2 max|x| / 7, max(x) / 7; a group of zeros takes the largest scale
    same(signed.scale, [2.0, 2.0, 1.0])
    same(unsigned.scale, [1 / 7, 0.5, 0.5])
    same(signed(x), [[[-8.0, 0.0], [0.0, 0.0], [-1.0, 3.0]]])


def test_unsigned_activations_that_are_negative_throughout(make_activation, start):
    module = make_activation("rtn", 2, signed=False)
    start(module, torch.tensor([[[-2.0, -1.0], [1.0, 7.0]]]))
    assert module.scale.tolist() == [1.0, 1.0]
