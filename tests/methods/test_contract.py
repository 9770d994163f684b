"""What every method must keep to, whatever its formula: `WeightQuantizer`, `ActivationRule`."""

import pytest
import torch

from ofq_core.quant import qkr_product
from ofq_core.settings.methods import WEIGHT_METHODS

NAMES = list(WEIGHT_METHODS)
# Grids without a zero: codes count from half a step below it.
MID_RISE = {"statsq", "pact", "seq"}
# A code of Q-EMA is one of the two neighbours, not always the nearer.
NOT_ROUNDED = {"qema"}
# No mask beyond the range, by definition.
UNMASKED = {"statsq", "pact"}

pytestmark = pytest.mark.parametrize("name", NAMES)


def moved(module, randn):
    """A matrix that the module did not start from, with outliers, after state has built up."""
    weight = randn(6, 32, seed=1)
    for step in range(5):
        weight = weight + 0.3 * randn(6, 32, seed=step + 2)
        module.after_step(weight, 0.5)
    weight[0, 0], weight[0, 1] = 50.0, -50.0
    return weight


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_and_positions(name, bits, make, randn):
    module = make(name, randn(6, 32), bits)
    weight = moved(module, randn)
    codes, position, scales = module.codes(weight), module.position(weight), module.scales(weight)
    assert (module.low, module.high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert codes.shape == position.shape == weight.shape
    assert codes.dtype == torch.int8
    assert module.low <= int(codes.min())
    assert int(codes.max()) <= module.high
    assert scales.ndim == 1
    assert scales.numel() in (1, 6)
    assert not scales.requires_grad
    assert not position.requires_grad
    assert torch.equal(module.codes(weight, scales), codes)
    assert torch.equal(module.position(weight, scales), position)
    rounded = position.round().clamp(module.low, module.high).to(torch.int8)
    if name in NOT_ROUNDED:
        assert not torch.equal(rounded, codes)
        assert int((rounded.int() - codes.int()).abs().max()) <= 1
    else:
        assert torch.equal(rounded, codes)
    assert module.clipped(weight).shape == weight.shape
    assert module.clipped(weight).dtype == torch.bool


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_code_is_one_value_of_the_row(name, bits, make, randn):
    """Few values, in the order of their codes and evenly spaced: codes are what is multiplied."""
    module = make(name, randn(6, 300), bits)
    weight = randn(6, 300, seed=1)
    values, codes = module.quantized(weight), module.codes(weight)
    spread = float(values.abs().max())
    for row, row_codes in zip(values, codes, strict=True):
        assert len(row.unique()) <= 2**bits
        used = row_codes.unique().tolist()
        levels = [row[row_codes == code].unique() for code in used]
        assert all(len(level) == 1 for level in levels)
        gaps = torch.cat(levels).diff() / torch.tensor(used).diff()
        torch.testing.assert_close(gaps, gaps[:1].expand_as(gaps), rtol=1e-3, atol=1e-6 * spread)
        assert float(gaps[0]) > 0


def test_position_honours_the_scales_given(name, make, randn):
    weight = 0.3 * randn(6, 32)
    module = make(name, weight, 4)
    rows = torch.arange(2.0, 8.0) if module.scales(weight).numel() == 6 else torch.tensor([3.0])
    zero = 0.5 if name in MID_RISE else 0.0
    wide = module.position(weight, module.scales(weight) * 2)
    further = module.position(weight, module.scales(weight) * 2 * rows)
    inside = (wide > module.low) & (wide < module.high)
    assert int(inside.sum()) > 100
    expected = (wide + zero) / rows.unsqueeze(1) - zero
    torch.testing.assert_close(further[inside], expected[inside])
    assert not torch.equal(module.codes(weight, module.scales(weight) * 9), module.codes(weight))


@pytest.mark.parametrize("bits", [2, 8])
def test_zero_rows(name, bits, make, randn):
    weight = randn(3, 8)
    weight[1] = 0
    for start in (weight, torch.zeros(3, 8)):
        module = make(name, start, bits)
        weight.requires_grad_()
        output = module(weight)
        gradients = torch.autograd.grad(output.sum(), [weight, *module.parameters()])
        weight.requires_grad_(False)
        module.after_step(weight, 0.5)
        things = [output.detach(), *gradients, module.position(weight), module.scales(weight)]
        assert all(bool(thing.isfinite().all()) for thing in things)
        # Nearest to zero of what the grid has.
        nearest = output.detach().abs().min()
        assert bool((output[1].abs() <= nearest + 1e-4).all())


def test_gradients(name, make, randn):
    """Finite and there; a weight far outside passes none, where the method masks."""
    weight = randn(6, 32)
    module = make(name, weight)
    weight[0, 0] = 1000.0
    weight.requires_grad_()
    inputs = [weight, *module.parameters()]
    gradients = torch.autograd.grad(module(weight), inputs, randn(6, 32, seed=1))
    assert all(bool(g.isfinite().all()) and float(g.abs().max()) > 0 for g in gradients)
    if name not in UNMASKED:
        assert bool(module.clipped(weight)[0, 0])
        assert gradients[0][0, 0] == 0
    if not WEIGHT_METHODS[name].trains:
        assert not list(module.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_training_and_evaluation_give_the_same(name, training, make, randn):
    module = make(name, randn(4, 16)).train(training)
    weight = randn(4, 16, seed=1).requires_grad_()
    module.record = True
    output = module(weight)
    assert torch.equal(output, make(name, randn(4, 16))(weight))
    assert torch.equal(module.quantized(weight), output)
    if training:
        assert torch.equal(module.last_codes.to(torch.int8), module.codes(weight))
    else:
        assert module.last_codes is None
    assert "last_codes" not in module.state_dict()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("from_float32", [True, False])
def test_dtypes(name, dtype, from_float32, make, randn):
    """Out comes what went in; half precision is computed in FP32."""
    weight = randn(4, 16, dtype=dtype)
    module = make(name, weight.float() if from_float32 else weight)
    wide = weight.float() if dtype != torch.float64 else weight
    reference = make(name, weight.float() if from_float32 else wide)(wide)
    latent = weight.clone().requires_grad_()
    output = module(latent)
    output.sum().backward()
    assert output.dtype == latent.grad.dtype == dtype
    assert torch.equal(output, reference.to(dtype))
    assert module.position(weight).dtype == wide.dtype
    penalty = module.penalty(latent, 1.0)
    if penalty is not None:
        assert penalty.dtype == wide.dtype
        penalty.backward()
    module.after_step(weight, 1.0)
    assert bool(module(weight).isfinite().all())


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 12)])
def test_rows_may_have_any_shape(name, shape, make, randn):
    if name == "statsq":  # is defined for matrices
        shape = (4, 12)
    weight = randn(*shape)
    module, matrix = make(name, weight), make(name, weight.reshape(4, 12))
    module.after_step(weight, 0.5)
    matrix.after_step(weight.reshape(4, 12), 0.5)
    assert torch.equal(module(weight).reshape(4, 12), matrix(weight.reshape(4, 12)))
    assert torch.equal(module.codes(weight).reshape(4, 12), matrix.codes(weight.reshape(4, 12)))
    penalty = module.penalty(weight.requires_grad_(), 1.0)
    if penalty is not None:
        torch.testing.assert_close(penalty, matrix.penalty(weight.detach().reshape(4, 12), 1.0))


def test_state_survives(name, make, randn):
    """A quantizer that is resumed goes on exactly like one that was not interrupted."""
    module, other = make(name, randn(6, 32)), make(name, randn(6, 32, seed=9))
    weight = moved(module, randn)
    for parameter in module.parameters():
        parameter.data.mul_(1.1)
    other.load_state_dict(module.state_dict(), strict=True)
    for step in range(6, 10):
        weight = weight + 0.3 * randn(6, 32, seed=step)
        copy = weight.clone()
        module.after_step(weight, 0.9)
        other.after_step(copy, 0.9)
        assert torch.equal(weight, copy)
        assert torch.equal(module(weight), other(weight))
        assert torch.equal(module.codes(weight), other.codes(weight))


def test_band_of_cga_on_a_product(name, make, randn):
    """With CGA only weights near a threshold pass a gradient; the values stay.

    Methods that CGA is refused for keep to it as well: the refusal is a matter of meaning.
    """
    w_q, w_k = (randn(8, 8, seed=seed).requires_grad_() for seed in (0, 1))
    product = qkr_product(w_q, w_k, 2)
    module = make(name, product.detach())
    plain = module(product)
    (everything,) = torch.autograd.grad(plain.sum(), product, retain_graph=True)
    module.gradient_band = 0.1
    held = module(product)
    (some,) = torch.autograd.grad(held.sum(), product, retain_graph=True)
    free = module.free(product, 0.1)
    assert 0 < int(free.sum()) < free.numel()
    assert torch.equal(held, plain)
    assert torch.equal(some, everything * free)
    (factor,) = torch.autograd.grad(held.sum(), w_q)
    assert bool(factor.isfinite().all())
    assert float(factor.abs().max()) > 0


def test_penalty_is_a_scalar_of_the_weights(name, make, randn):
    weight = randn(4, 16, seed=1).requires_grad_()
    module = make(name, randn(4, 16))
    assert module.penalty(weight, 0.0) is None
    penalty = module.penalty(weight, 1.0)
    assert (penalty is not None) == (name in {"dampening", "obr"})
    if penalty is not None:
        assert penalty.ndim == 0
        (gradient,) = torch.autograd.grad(penalty, weight)
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("axis", [-2, None])
def test_activations(name, bits, signed, axis, make_activation, start, randn):
    x = randn(5, 3, 40) if signed else randn(5, 3, 40).relu()
    x[:, 1] *= 30
    groups = 1 if axis is None else 3
    module = make_activation(name, groups, bits, signed, axis=axis)
    assert bool(module.scale.isnan().all())
    first = start(module, x)
    latent = x.clone().requires_grad_()
    output = module(latent)
    assert torch.equal(output, first)
    assert output.shape == x.shape
    assert output.dtype == x.dtype
    for group in output.transpose(0, 1).reshape(groups, -1):
        assert 2 < len(group.unique()) <= 2**bits
    inputs = [latent, *module.parameters()]
    # Three times as large: some of it is clipped, which is where an offset gets its gradient.
    wider = module(3 * latent)
    gradients = torch.autograd.grad((wider * randn(5, 3, 40, seed=1)).sum(), inputs)
    assert all(bool(g.isfinite().all()) and float(g.abs().max()) > 0 for g in gradients)

    other = make_activation(name, groups, bits, signed, axis=axis)
    other.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(other(x), output)
    assert module(x.double()).dtype == torch.float64
    assert module(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("signed", [True, False])
def test_activations_that_are_zero(name, signed, make_activation, start, randn):
    """A group without any value gets a scale that does not clip all that comes later."""
    x = randn(5, 3, 40).abs()
    x[:, 1] = 0
    module = make_activation(name, 3, 3, signed)
    start(module, x)
    assert float(module.scale.detach().min()) > 0
    later = module(x + 1.0).detach()
    assert bool(later.isfinite().all())
    assert float(later[:, 1].abs().min()) > 0.1
    start(module, torch.zeros(5, 3, 40))
    assert float(module.scale.detach().min()) > 0
    assert bool(module(x).detach().isfinite().all())


def test_settings_refuse_what_has_no_meaning(name, settings):
    method = WEIGHT_METHODS[name]
    with pytest.raises(ValueError, match=r"options\.nonsense: weight = .* has no such option"):
        settings(name, options={"nonsense": 1.0})
    for option, known in method.options.items():
        assert known.low <= known.default <= known.high
        assert settings(name, 2).options[option] == known.default
        for value in (known.low - 1e-3, known.high + 1e-3):
            with pytest.raises(ValueError, match=rf"options\.{option} = .*: expected a number in"):
                settings(name, options={option: value})
    assert set(method.of_activation) <= set(method.options)
    for part, reason in (("qkr", method.no_qkr), ("cga", method.no_cga)):
        if reason:
            with pytest.raises(ValueError, match=rf"{part} = true has no meaning with weight"):
                settings(name, **{part: True})
        else:
            assert getattr(settings(name, **{part: True}), part)
    for bits in {2, 3, 4, 5, 6, 7, 8} - set(method.bits):
        with pytest.raises(ValueError, match="expected one of"):
            settings(name, bits)


def test_options_reach_the_quantizer(name, make, make_activation, randn):
    """Every option changes something: none is accepted and ignored."""
    method = WEIGHT_METHODS[name]
    for option, known in method.options.items():
        value = (known.low + known.high) / 2
        if option in method.of_activation:
            assert getattr(make_activation(name, 3, **{option: value}).rule, option) == value
        else:
            built = make(name, randn(2, 4), **{option: value})
            assert value in (getattr(built, option, None), *getattr(built, "thresholds", ()))
