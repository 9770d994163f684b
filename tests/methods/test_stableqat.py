"""StableQAT's factor on the gradient of the weights, and that nothing else differs from LSQ."""

import math

import pytest
import torch

# So that z = cos(.) / 2.
AMPLITUDE = 0.5 / (math.sqrt(2) * math.pi)


def test_factor_by_hand(make, same):
    """v = 0: z = 1/2, a third. v = 1/2: z = 0. v = 1/3, 2/3: cos 60 degrees, 0.75 / 1.25 = 0.6."""
    weight = torch.tensor([[0.0, 0.5, 1 / 3, 2 / 3, -1.0, -1.5, 5.0]], requires_grad=True)
    module = make("stableqat", weight.detach(), 2, scale=1.0, amplitude=AMPLITUDE)
    module(weight).sum().backward()
    same(weight.grad, [[1 / 3, 1.0, 0.6, 0.6, 1 / 3, 1.0, 0.0]])


@pytest.mark.parametrize("amplitude", [0.1, 0.21])
def test_factor_is_the_formula(amplitude, make, randn):
    weight = randn(4, 50, dtype=torch.float64)
    module = make("stableqat", weight, 3, amplitude=amplitude)
    v = weight / module.scale.detach().unsqueeze(1)
    z = math.sqrt(2) * math.pi * amplitude * torch.cos(math.pi * (v + v.round()))
    torch.testing.assert_close(module.surrogate(weight), (1 - z) / (1 + z))
    assert float(module.surrogate(weight).min()) > 0
    assert float(module.surrogate(weight).max()) <= 1


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("amplitude", [0.0, 0.21])
def test_the_rest_is_lsq(bits, amplitude, make, randn):
    weight, upstream, results = randn(6, 40), randn(6, 40, seed=1), []
    for name, options in (("stableqat", {"amplitude": amplitude}), ("lsq", {})):
        module = make(name, weight, bits, scale=0.6, **options)
        latent = weight.clone().requires_grad_()
        output = module(latent)
        output.backward(upstream)
        results.append((output, module.scale.grad, latent.grad))
    (output, of_scale, of_weight), (plain, plain_scale, plain_weight) = results
    assert torch.equal(output, plain)
    assert torch.equal(of_scale, plain_scale)
    assert torch.equal(of_weight, plain_weight) == (amplitude == 0.0)


@pytest.mark.parametrize(("bits", "qmax"), [(2, 1), (3, 3), (4, 7)])
def test_a_row_starts_at_its_largest_magnitude(bits, qmax, make, same):
    """max|w| at 2 bits, max|w| / qmax at 3 and 4."""
    weight = torch.tensor([[0.1, -2.1, 0.7], [4.2, 0.0, -0.3]])
    same(make("stableqat", weight, bits).scale.data, [2.1 / qmax, 4.2 / qmax])
