"""Converted models as a whole: calibration, saving, batch size, dead biases, closeness."""

import pytest
import torch

from ofq_core.errors import ModelError
from ofq_core.models import QuantPlan, convert
from ofq_core.nn import calibrate, require_calibrated
from ofq_core.settings import FidelitySettings, QuantSettings

METHODS = {
    "lsq": {"weight": "lsq"},
    "statsq": {"weight": "statsq"},
    "statsq_qkr": {"weight": "statsq", "qkr": True},
    "lsq_qkr": {"weight": "lsq", "qkr": True},
}
EACH = pytest.mark.parametrize("method", METHODS)


def low(method, bits):
    return {**METHODS[method], "wbits": bits, "abits": bits, "edge_bits": 8}


@pytest.fixture
def calibrated(trained, quantize, images):
    def build(method, bits, seed=0):
        model = trained(seed=seed)
        quantize(model, **low(method, bits))
        calibrate(model, images(16, seed=9))
        return model.eval()

    return build


@EACH
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_save_and_load_after_calibration(calibrated, trained, quantize, images, method, bits):
    """A fresh model loads strictly, without any forward before, and gives the same outputs."""
    model = calibrated(method, bits)
    fresh = trained(seed=1)
    quantize(fresh, **low(method, bits))
    with pytest.raises(ModelError, match=r"\.scale is not set"):
        require_calibrated(fresh)
    fresh.load_state_dict(model.state_dict(), strict=True)
    require_calibrated(fresh)
    assert torch.equal(fresh.eval()(images()), model(images()))


@EACH
def test_save_and_load_before_calibration(trained, quantize, images, method):
    model, fresh = trained(), trained(seed=1)
    for m in (model, fresh):
        quantize(m, **low(method, 3))
    fresh.load_state_dict(model.state_dict(), strict=True)
    with pytest.raises(ModelError, match=r"\.scale is not set"):
        require_calibrated(fresh)
    logs = [calibrate(m, images()) for m in (model, fresh)]
    assert logs[0] == logs[1]
    assert torch.equal(fresh.eval()(images()), model.eval()(images()))


@EACH
def test_a_model_that_was_never_calibrated_gives_nan(trained, quantize, images, method):
    model = trained()
    quantize(model, **low(method, 4))
    assert torch.isnan(model.eval()(images())).all()


@EACH
@pytest.mark.parametrize("bits", [2, 4])
def test_outputs_do_not_depend_on_the_batch_size(calibrated, images, method, bits):
    """Scales have no batch axis (spec, section 8).

    In FP64: in FP32 a product of another number of rows may be added up in another order, and then
    an activation within rounding of a threshold gets another code.
    """
    model = calibrated(method, bits).double()
    x = images(8).double()
    with torch.no_grad():
        together = model(x)
        alone = torch.cat([model(x[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-10)


@EACH
def test_log_names_every_quantizer(trained, quantize, images, method):
    model = trained()
    quantize(model, **low(method, 4))
    log = calibrate(model, images())
    names = {name.removesuffix(".scale") for name in model.state_dict() if name.endswith(".scale")}
    of_weights = ("weight_quantizer", "qk_quantizer")
    assert {e.name for e in log} == {name for name in names if not name.endswith(of_weights)}
    assert all(0 < entry.smallest <= entry.mean * (1 + 1e-6) for entry in log)


@pytest.mark.parametrize(
    ("size", "channels", "message"),
    [
        (10, 1, r"\(8, 1, 10, 10\)"),
        (8, 3, "1 activation scales, but the input of shape .8, 3, 8, 8. needs 3"),
    ],
)
def test_images_that_do_not_fit(trained, quantize, images, size, channels, message):
    model = trained()
    quantize(model, **low("statsq", 4))
    with pytest.raises(ModelError, match=message):
        calibrate(model, images(size=size, channels=channels))


@pytest.mark.parametrize("qkr", [True, False])
def test_dead_biases(trained, images, qkr):
    """Kept in the released layout, they change nothing and get only rounding noise as gradient."""
    settings = QuantSettings(weight="statsq", wbits=4, abits=4, edge_bits=8, qkr=qkr, cga=False)
    plan = QuantPlan.from_settings(settings, FidelitySettings(qk_bias="drop"))
    lean, full = trained(), trained()
    convert(lean, plan)
    convert(full, QuantPlan(**{**vars(plan), "dead_biases": True}))
    # In FP64: a constant is added to the logits, and their rounding must move no code.
    x = images().double()
    for model in (lean, full):
        calibrate(model, images())
        model.double().eval()
    extra = set(full.state_dict()) - set(lean.state_dict())
    part = "quant_z" if qkr else "quant_k"
    assert extra == {f"blocks.{i}.attn.{part}.bias_after" for i in (0, 1)}
    parameters = dict(full.named_parameters())
    with torch.no_grad():
        for name in extra:
            parameters[name].fill_(0.5)
    output = full(x)
    torch.testing.assert_close(output, lean(x), rtol=0, atol=1e-10)
    output.square().sum().backward()
    largest = max(p.grad.abs().max() for p in full.parameters())
    for name in extra:
        assert parameters[name].grad.abs().max() < 1e-12 * largest


@EACH
def test_eight_bits_change_little(trained, quantize, images, method):
    """Losing any single weight tensor changes the logits more than 8 bits everywhere.

    StatsQ comes closer to that than LSQ: at any bit width it clips 11 % of Gaussian weights.
    """
    share = 1 / 3 if method.startswith("lsq") else 2 / 3
    x = images(16)
    reference, model = trained().eval(), trained()
    quantize(model, **low(method, 8))
    calibrate(model, x)
    with torch.no_grad():
        expected = reference(x)
        change = (model.eval()(x) - expected).square().mean().sqrt()
        generator = torch.Generator().manual_seed(3)
        for name, parameter in reference.named_parameters():
            if not name.endswith("weight") or parameter.ndim < 2:
                continue
            kept = parameter.clone()
            width = parameter[0].numel() ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / width)
            lost = (reference(x) - expected).square().mean().sqrt()
            parameter.copy_(kept)
            assert change < share * lost, name


@EACH
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_one_training_step(calibrated, images, method, bits):
    """Every parameter has a finite gradient, and an optimizer step changes the outputs."""
    model = calibrated(method, bits).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = model(images())
    sum(o.square().mean() for o in before).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    optimizer.step()
    after = model(images())
    assert all(torch.isfinite(o).all() for o in after)
    assert not torch.equal(after[0], before[0])
