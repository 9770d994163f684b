"""Pretrained weights arrive; what the released code loses is stated, and would be noticed."""

import math

import pytest
import torch

from ofq_core.evaluation import evaluate
from ofq_core.nn import calibrate

CASES = [(model, qkr) for model in ("deit", "swin") for qkr in (True, False)]
CASE_IDS = [f"{model}-{'qkr' if qkr else 'plain'}" for model, qkr in CASES]


def blocks(model):
    if model == "deit":
        return ["blocks.0", "blocks.1"]
    return [f"layers.{stage}.blocks.{block}" for stage in (0, 1) for block in (0, 1)]


def parts(before, model, qkr):
    """Every tensor of the source model -> where the student has it: {name: value}."""
    found = {}
    for name, value in before.items():
        if qkr and ".qkv." in name:
            stem, kind = name.rsplit(".qkv.", 1)
            q, k, v = value.chunk(3)
            found |= {f"{stem}.q_{kind}": q, f"{stem}.k_{kind}": k, f"{stem}.v.{kind}": v}
        else:
            found[name] = value
    return found


@pytest.mark.claim(
    "Each pretrained tensor arrives in the student and the report says where; with QKR all but the "
    "key bias, on which nothing depends.",
    released="Attention projections, without QKR also q, k, v, Swin's relative position bias, and "
    "the q and k biases are lost.",
)
@pytest.mark.parametrize(("model", "qkr"), CASES, ids=CASE_IDS)
def test_each_pretrained_tensor_arrives(model, qkr, source, converted, run_settings):
    """Every value is found in the student's state under the name that the report gives."""
    student = source(model)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    report = converted(student, run_settings(model, qkr=qkr))
    after = student.state_dict()
    expected = parts(before, model, qkr)
    lost = {f"{block}.attn.k_bias" for block in blocks(model)} if qkr else set()
    for name, value in expected.items():
        assert (name not in after) if name in lost else torch.equal(after[name], value), name
    told = {new for names in report.kept.values() for new in names}
    assert told == set(expected) - lost
    dropped = {f"{block}.attn.qkv.bias[k]" for block in blocks(model)} if qkr else set()
    assert set(report.dropped) == dropped
    assert all(value.unique().numel() > 1 for value in expected.values()), "no tensor is constant"


@pytest.mark.claim(
    "`fidelity.initialization=released` loses exactly what the released code loses, and says so.",
    released="What its table of surviving weights shows (measured): see the switch.",
)
@pytest.mark.parametrize(("model", "qkr"), CASES, ids=CASE_IDS)
def test_the_released_initialisation_loses_its_table(model, qkr, source, converted, run_settings):
    """With qk_bias=drop; the lost tensors are fresh, of the released distribution."""
    student = source(model)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    fidelity = {"initialization": "released", "qk_bias": "drop"}
    report = converted(student, run_settings(model, qkr=qkr, fidelity=fidelity))
    after = student.state_dict()
    fresh = {f"{block}.attn.proj.{kind}" for block in blocks(model) for kind in ("weight", "bias")}
    gone = set()
    if qkr:
        gone = {f"{block}.attn.{part}_bias" for block in blocks(model) for part in "qk"}
    else:
        fresh |= {f"{b}.attn.qkv.{kind}" for b in blocks(model) for kind in ("weight", "bias")}
    if model == "swin":
        fresh |= {f"{block}.attn.relative_position_bias_table" for block in blocks(model)}
    for name, value in parts(before, model, qkr).items():
        if name in gone:
            assert name not in after, name
        elif name in fresh:
            assert not bool((after[name] == value).any()), name
        else:
            assert torch.equal(after[name], value), name
    for name in fresh:
        value = after[name]
        if name.endswith("table"):
            assert float(value.std()) < 0.04, name
        else:
            bound = 1 / math.sqrt(after[name.replace("bias", "weight")].shape[1])
            assert 0.5 * bound < float(value.abs().max()) <= bound, name
    biases = {name for name in after if name.endswith("reduction.bias")}
    assert biases == ({"layers.1.downsample.reduction.bias"} if model == "swin" else set())
    assert biases <= set(report.new)
    assert {name for name in report.dropped if "[" not in name} == fresh
    assert len([name for name in report.dropped if "[" in name]) == len(gone)


@pytest.mark.claim(
    "8-bit conversion changes a trained model's logits little, so lost weights are noticed.",
    released="With its initialisation the logits are far off, also at 8 bits (measured here).",
)
@pytest.mark.parametrize(("model", "qkr"), CASES, ids=CASE_IDS)
def test_eight_bits_change_little(model, qkr, learned, converted, run_settings):
    """Logits change by less than 50 %, and less than half as much as the released start does it.

    How much 8 bits change depends on the model, and that on the machine that trained it: every
    activation quantizer begins with a step of 0.18 times its mean. Over three seeds and 15 or 40
    epochs logits moved by 9 to 38 % and top-1 by 0 to 9 points, with the released initialisation
    by 80 to 119 % and 41 to 85 points; on one model never by more than 0.37 and 0.15 of that.
    """
    full, data = learned(model)
    calibration = data.calibration_images(0, 128)
    reference = evaluate(full, data, "test", 64)
    with torch.no_grad():
        expected = full(calibration)
    far, lost = {}, {}
    for start in ("full", "released"):
        student, _ = learned(model)
        fidelity = {"initialization": start}
        settings = run_settings(model, qkr=qkr, bits=8, weight="lsq", fidelity=fidelity)
        converted(student, settings)
        calibrate(student, calibration)
        with torch.no_grad():
            far[start] = float((student.eval()(calibration) - expected).norm() / expected.norm())
        lost[start] = reference.top1 - evaluate(student, data, "test", 64).top1
    assert reference.top1 > 60, "the model has learned something"
    assert far["full"] < 0.5
    assert far["full"] < far["released"] / 2
    assert lost["full"] < 20
    assert lost["full"] < lost["released"] / 3
    assert lost["released"] > 20
