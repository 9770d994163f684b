"""Scales of least squared error, against loops over all candidates."""

import pytest
import torch

from ofq_core.methods.ptq import SHRINK


def least_errors(groups, low, high):
    """The least error of each group over all shrink factors, and that of the whole range."""
    found = []
    for values in groups.double():
        largest = values.max() / high if low == 0 else 2 * values.abs().max() / (high - low)
        errors = []
        for factor in SHRINK:
            s = largest * factor
            quantized = (values / s).clamp(low, high).round() * s
            errors.append(float((quantized - values).square().sum()))
        found.append((min(errors), errors[0]))
    return found


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_weights(bits, make, randn):
    weight = randn(5, 60)
    module = make("ptq", weight, bits)
    errors = (module(weight) - weight).double().square().sum(1).tolist()
    expected = least_errors(weight, module.low, module.high)
    assert errors == pytest.approx([least for least, _ in expected], rel=1e-4)
    assert any(least < 0.95 * whole for least, whole in expected)


def test_a_hand_computed_choice(make, same):
    """2 bit, one 3 among many 0.5: at the whole range (s = 2) the many vanish, 0.5 is a tie to 0.

    With N of them the error of s is (3 - s)^2 + N (0.5 - s)^2 for s from 1/3 to 1, least at
    s = (3 + 0.5 N) / (N + 1); N = 99: 0.525. The nearest factor 0.92^16 gives 0.527.
    """
    weight = torch.tensor([[3.0] + [0.5] * 99])
    module = make("ptq", weight, 2)
    same(module.scale, [2 * 0.92**16])
    same(module(weight)[0, :2], [2 * 0.92**16] * 2)


@pytest.mark.parametrize("signed", [True, False])
def test_activations(signed, make_activation, start, randn):
    x = randn(4, 3, 50) if signed else randn(4, 3, 50).relu()
    module = make_activation("ptq", 3, 3, signed)
    errors = (start(module, x) - x).double().square().sum((0, 2)).tolist()
    groups = x.transpose(0, 1).reshape(3, -1)
    expected = least_errors(groups, module.low, module.high)
    assert errors == pytest.approx([least for least, _ in expected], rel=1e-4)
    assert any(least < 0.95 * whole for least, whole in expected)


def test_the_whole_tensor_as_one_group(make_activation, start, randn):
    x = randn(4, 3, 50)
    module = make_activation("ptq", 1, 3, axis=None)
    error = float((start(module, x) - x).double().square().sum())
    assert error == pytest.approx(least_errors(x.reshape(1, -1), -4, 3)[0][0], rel=1e-4)


def test_nothing_is_learned(make, randn):
    module = make("ptq", randn(4, 8))
    assert not list(module.parameters())
    assert list(module.state_dict()) == ["scale"]
