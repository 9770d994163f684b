"""The plain form of a model: the oracle must itself be right, and share nothing with the original.

These tests are also tests of exactness: what the fast paths compute is compared with the formulas,
in FP64, outputs and all gradients.
"""

import pytest
import torch

from ofq_core.models import QuantPlan, build_model, convert
from ofq_core.nn import LSQActivation, calibrate, set_whole_batch
from ofq_core.settings import FidelitySettings, ModelSettings, QuantSettings
from tests.plain import plain

VIT = (
    "deit_tiny_distilled_patch16_224",
    8,
    {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 3},
)
SWIN = (
    "swin_tiny_patch4_window7_224",
    16,
    {"img_size": 16, "patch_size": 2, "embed_dim": 12}
    | {"depths": (2, 2), "heads_per_stage": (2, 3), "window_size": 4},
)


def converted(draw_weights, kind, switches=None, **quant):
    """A calibrated FP64 model none of whose parameters is zero, and images for it."""
    name, side, sizes = kind
    model = build_model(ModelSettings(name=name, num_classes=10, in_chans=1, **sizes), 0)
    draw_weights(model)
    settings = QuantSettings(**{"weight": "statsq", "qkr": False, "cga": False, **quant})
    convert(model, QuantPlan.from_settings(settings, FidelitySettings(**(switches or {}))))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 1, side, side, generator=generator, dtype=torch.float64)
    model.double()
    calibrate(model, images)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LSQActivation):
                for bias in (module.bias_before, module.bias_after):
                    if bias is not None:
                        bias.normal_(0.0, 0.1, generator=generator)
    return model.train(), images


def run(model, images):
    """Outputs, and the gradients of the images and of every parameter by name."""
    images = images.clone().requires_grad_()
    outputs = model(images)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    together = torch.cat(outputs)
    together.backward(torch.linspace(-1, 1, together.numel()).view_as(together).to(together))
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return together, {"images": images.grad, **gradients}


def assert_same(model, images):
    other = plain(model)
    output, gradients = run(model, images)
    expected, expected_gradients = run(other, images)
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-12)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient is not None, name
        largest = float(expected_gradients[name].abs().max())
        torch.testing.assert_close(
            gradient,
            expected_gradients[name],
            rtol=1e-6,
            atol=1e-12 + 1e-9 * largest,
            msg=lambda message, name=name: f"gradient of {name}: {message}",
        )


@pytest.mark.parametrize("kind", [VIT, SWIN], ids=["vit", "swin"])
@pytest.mark.parametrize("qkr", [False, True], ids=["no-qkr", "qkr"])
@pytest.mark.parametrize("weight", ["lsq", "statsq"])
@pytest.mark.parametrize(("wbits", "abits"), [(2, 2), (3, 4), (2, 32)])
def test_a_model_computes_what_the_formulas_say(draw_weights, kind, qkr, weight, wbits, abits):
    model, images = converted(draw_weights, kind, weight=weight, qkr=qkr, wbits=wbits, abits=abits)
    assert_same(model, images)


@pytest.mark.parametrize("kind", [VIT, SWIN], ids=["vit", "swin"])
def test_with_full_precision_weights(draw_weights, kind):
    assert_same(*converted(draw_weights, kind, wbits=32, abits=2))


def test_a_part_of_a_batch_and_a_dropped_query_bias(draw_weights):
    model, images = converted(draw_weights, VIT, {"qk_bias": "drop"}, qkr=True, wbits=2, abits=2)
    set_whole_batch(model, 3.0)
    assert_same(model, images)


@pytest.mark.parametrize("kind", [VIT, SWIN], ids=["vit", "swin"])
def test_image_columns_and_dead_biases(draw_weights, kind):
    model, images = converted(draw_weights, kind, {"swin_scale_axis": "column"}, wbits=2, abits=2)
    assert_same(model, images)


@pytest.mark.parametrize("weight", ["lsq", "statsq"])
def test_the_mask_of_annealing_on_the_product(draw_weights, weight):
    model, images = converted(draw_weights, VIT, weight=weight, qkr=True, wbits=2, abits=2)
    for module in model.modules():
        if hasattr(module, "qk_quantizer"):
            module.qk_quantizer.gradient_band = 0.2
    assert_same(model, images)


def test_another_method_is_refused(draw_weights):
    model, _ = converted(draw_weights, VIT, weight="pact", wbits=2, abits=2)
    with pytest.raises(TypeError, match="no plain form"):
        plain(model)


def test_the_original_is_left_alone(draw_weights):
    model, images = converted(draw_weights, VIT, wbits=2, abits=2)
    before, _ = run(model, images)
    copy = plain(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    for parameter in model.parameters():
        parameter.grad = None
    assert torch.equal(run(model, images)[0], before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_plain_copies_save_what_they_compute(draw_weights):
    """The plain form keeps every intermediate tensor, as the released code does."""

    def saved(model):
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda t: t
        ):
            model(images)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    model, images = converted(draw_weights, VIT, wbits=2, abits=2)
    assert saved(plain(model)) > 1.5 * saved(model)
