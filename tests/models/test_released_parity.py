"""Whole models against the released code: what it computed, we compute.

Golden files hold state, input, outputs, loss and gradients of small models that the released code
built and ran (DeiT plain and QKR, 2 and 4 bits; Swin QKR). They are loaded as a user would load a
checkpoint. Every figure agrees to rtol 2e-5, atol 2e-6; no tensor needs more. Ours are computed in
FP64 (see `in_fp64`), so that what differs is the rounding of the released code alone.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ofq_core.checkpoints import load_released
from ofq_core.checkpoints.released_keys import our_names, released_layout

MODELS = [
    "released_deit_micro_w2a2_plain",
    "released_deit_micro_w2a2_qkr",
    "released_deit_micro_w4a4_qkr",
    "released_swin_micro_w2a2_qkr",
]
# Names of gradients in each file: every parameter but the per-pixel biases of the patch embedding
# (which the files leave out) and the clipping constants (which are never trained).
GRADIENTS = dict(zip(MODELS, (85, 87, 87, 205), strict=True))


@pytest.fixture(scope="module", params=MODELS)
def parity(request, in_fp64):
    """The golden numbers of a model, and the same quantities computed by ours."""
    path = request.path.parents[1] / "golden" / f"{request.param}.npz"
    numbers = np.load(path, allow_pickle=False)
    meta = json.loads(str(numbers["meta"]))
    loaded = load_released(path).model
    with torch.no_grad():
        single = loaded.eval()(torch.from_numpy(numbers["input"]))
    model = in_fp64(loaded)
    images = torch.from_numpy(numbers["input"]).double()
    with torch.no_grad():
        eval_logits = model.eval()(images)
    outputs = model.train()(images)
    outputs = outputs if isinstance(outputs, tuple) else (outputs, outputs)
    hard = F.cross_entropy(outputs[0], torch.from_numpy(numbers["labels"]))
    soft = F.cross_entropy(outputs[1], torch.from_numpy(numbers["soft_targets"]))
    (hard + soft).backward()
    return SimpleNamespace(
        name=request.param,
        numbers=numbers,
        meta=meta,
        model=model,
        single=single,
        eval_logits=eval_logits,
        outputs=outputs,
        loss=hard + soft,
    )


def test_bits_and_structure(parity):
    """The file's own description decides what is built."""
    meta = parity.meta
    attention = [m for n, m in parity.model.named_modules() if n.endswith(".attn")]
    assert {hasattr(m, "qk_quantizer") for m in attention} == {meta["qkr"]}
    assert {m.quant_map.bits for m in attention} == {meta["abits"]}
    depth = meta.get("depth") or sum(meta["depths"])
    assert len(attention) == depth


def test_evaluation_logits(parity, close):
    close(parity.eval_logits, parity.numbers["eval_logits"])


def test_evaluation_logits_in_fp32(parity):
    """As the model is used: a code that this machine rounds the other way moves them by 1 %."""
    difference = (parity.single.double() - parity.eval_logits).norm()
    assert float(difference) < 0.05 * float(parity.eval_logits.norm())


def test_training_outputs(parity, close):
    close(parity.outputs[0], parity.numbers["train_cls"], "class head")
    close(parity.outputs[1], parity.numbers["train_dist"], "distillation head")


def test_loss(parity, close):
    close(parity.loss, parity.numbers["loss"])


def test_every_gradient(parity, close):
    parameters = dict(parity.model.named_parameters())
    released = [key for key in parity.numbers.files if key.startswith("grad/")]
    places = {entry.key: entry for entry in released_layout(parity.model).entries}
    unchecked = set(parameters)
    for key in released:
        names = list(our_names(places[key.removeprefix("grad/")]))
        ours = torch.cat([parameters[name].grad for name in names])
        close(ours, parity.numbers[key], key)
        unchecked -= set(names)
    assert len(released) == GRADIENTS[parity.name]
    pixels = "patch_embed.proj.input_quantizer"
    assert unchecked == {f"{pixels}.bias_before", f"{pixels}.bias_after"}
