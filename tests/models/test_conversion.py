"""What becomes of every tensor, and which models are refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ofq_core.errors import ModelError
from ofq_core.models import convert
from ofq_core.models.torchvision_compat import import_torchvision
from ofq_core.nn import QKRAttention, QuantAttention, QuantConv2d, QuantLinear

LOW = {"wbits": 4, "abits": 4, "edge_bits": 8}
DISTILLED, PLAIN = "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"
QUANTIZED_INPUTS = ("attn.proj", "mlp.fc1", "mlp.fc2")
TRIPLE = ("scale", "bias_before", "bias_after")


def expected_new(depth, qkr, heads):
    """Every tensor that a converted model has and timm's has not, written out."""
    names = set()
    for block in range(depth):
        inputs = [f"{layer}.input_quantizer" for layer in QUANTIZED_INPUTS]
        inputs += ["attn.input_quantizer"] if qkr else ["attn.qkv.input_quantizer", "attn.quant_q"]
        inputs.append("attn.quant_v")
        names |= {f"blocks.{block}.{q}.{leaf}" for q in inputs for leaf in TRIPLE}
        # No second bias on the key side, no biases round the softmax.
        key = "attn.quant_z" if qkr else "attn.quant_k"
        names |= {f"blocks.{block}.{key}.{leaf}" for leaf in TRIPLE[:2]}
        names.add(f"blocks.{block}.attn.quant_map.scale")
    for edge in ("patch_embed.proj", *heads):
        names |= {f"{edge}.input_quantizer.{leaf}" for leaf in TRIPLE}
        names.add(f"{edge}.weight_quantizer.scale")
    return names


@pytest.mark.parametrize(
    ("name", "heads"), [(DISTILLED, ("head", "head_dist")), (PLAIN, ("head",))]
)
@pytest.mark.parametrize("qkr", ["no", "fold", "drop"])
@pytest.mark.parametrize("quantized", [True, False])
def test_report_accounts_for_every_tensor(trained, quantize, name, heads, qkr, quantized):
    model = trained(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    settings = {} if qkr == "no" else {"qkr": True, "qk_bias": qkr}
    report = quantize(model, **settings, **(LOW if quantized else {}))
    after = model.state_dict()

    assert report.kept.keys() == before.keys()
    for source, targets in report.kept.items():
        if ".qkv." not in source or qkr == "no":
            assert targets == (source,)
            assert torch.equal(after[source], before[source])
            continue
        attention, kind = source.split(".qkv.")
        q, k, v = before[source].chunk(3)
        names = {f"{attention}.q_{kind}": q, f"{attention}.k_{kind}": k, f"{attention}.v.{kind}": v}
        if kind == "bias":
            del names[f"{attention}.k_bias"]
            if qkr == "drop":
                del names[f"{attention}.q_bias"]
        assert targets == tuple(names)
        for target, value in names.items():
            assert torch.equal(after[target], value)

    reasons = {"k": "softmax does not depend on it", "q": "fidelity.qk_bias = drop"}
    lost = {"no": "", "fold": "k", "drop": "qk"}[qkr]
    assert report.dropped == {
        f"blocks.{block}.attn.qkv.bias[{part}]": reasons[part] for block in (0, 1) for part in lost
    }

    wanted = expected_new(2, qkr != "no", heads) if quantized else set()
    assert set(report.new) == wanted
    held = {target for targets in report.kept.values() for target in targets}
    assert held | wanted == after.keys(), "no tensor that nobody asked for"


def test_summary_is_one_line(trained, quantize):
    report = quantize(trained(), **LOW, qkr=True, qk_bias="drop")
    summary = report.summary()
    blocks = sum(name.endswith("qkv.bias[q]") for name in report.dropped)
    assert summary.startswith(f"{len(report.kept)} tensors kept, {len(report.new)} new; ")
    assert f"{blocks} x qkv.bias[q] dropped (fidelity.qk_bias = drop)" in summary
    assert "\n" not in summary


def test_a_lost_tensor_is_reported(trained, quantize, monkeypatch):
    """The report compares values: an attention that starts afresh (spec 3.5) is found out."""
    build = QuantAttention.__init__

    def forgetful(self, source, plan):
        build(self, source, plan)
        self.proj.weight = nn.Parameter(torch.zeros_like(self.proj.weight))

    monkeypatch.setattr(QuantAttention, "__init__", forgetful)
    report = quantize(trained(), **LOW)
    assert report.dropped == {
        f"blocks.{block}.attn.proj.weight": "not found again" for block in (0, 1)
    }
    assert "blocks.0.attn.proj.weight" not in report.kept


def test_layers_and_their_bits(trained, quantize):
    """Section 3.2: what is quantized, with how many bits, signed or not."""
    model = trained()
    quantize(model, wbits=2, abits=3, edge_bits=8, qkr=True)
    assert isinstance(model.patch_embed.proj, QuantConv2d)
    edges = [model.patch_embed.proj, model.head, model.head_dist]
    assert {(e.weight_quantizer.bits, e.input_quantizer.bits) for e in edges} == {(8, 8)}
    for block in model.blocks:
        assert isinstance(block.attn, QKRAttention)
        layers = [block.attn.proj, block.mlp.fc1, block.mlp.fc2]
        assert all(isinstance(layer, QuantLinear) for layer in layers)
        weights = [layer.weight_quantizer for layer in (*layers, block.attn.v)]
        assert {w.bits for w in (*weights, block.attn.qk_quantizer)} == {2}
        inputs = [layer.input_quantizer for layer in layers]
        inputs += [block.attn.input_quantizer, block.attn.quant_v, block.attn.quant_z]
        assert {q.bits for q in (*inputs, block.attn.quant_map)} == {3}
        unsigned = [q for q in (*inputs, block.attn.quant_map) if not q.signed]
        assert unsigned == [block.mlp.fc2.input_quantizer, block.attn.quant_map]
        assert block.attn.quant_z.scale.numel() == 18 * 3
        assert block.attn.quant_map.scale.numel() == 18
    assert isinstance(model.norm, nn.LayerNorm)


@pytest.mark.parametrize("name", ["mixer_s16_224", "resnet18"])
def test_models_without_attention_blocks_are_refused(quantize, name):
    import_torchvision()
    import timm

    with torch.device("meta"):  # big models; only their structure counts
        model = timm.create_model(name)
    with pytest.raises(ModelError, match=r"has no attention blocks: .*timm vision transformer"):
        quantize(model, **LOW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qk_norm": True}, "blocks.0.attn.q_norm is set"),
        ({"scale_attn_norm": True}, "blocks.0.attn.norm is set"),
        ({"attn_layer": "diff"}, "blocks.0.attn is a DiffAttention"),
        ({"global_pool": "map"}, "attn_pool is set"),
    ],
)
def test_extra_parts_of_attention_are_refused(quantize, options, message):
    """A quantized layer would silently leave them out."""
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 1, "num_heads": 3}
    model = VisionTransformer(**sizes, **options)
    with pytest.raises(ModelError, match=message):
        quantize(model, **LOW)


def test_gates_and_other_widths_are_refused(trained, quantize):
    model = trained()
    model.blocks[1].attn.gate = nn.Linear(24, 24)
    with pytest.raises(ModelError, match=r"blocks\.1\.attn\.gate is set"):
        quantize(model, **LOW)
    model = trained()
    model.blocks[0].attn.attn_dim = 48
    with pytest.raises(ModelError, match="attention width 48 differs"):
        quantize(model, **LOW)


def test_other_mlps_are_refused(trained, quantize):
    import_torchvision()
    from timm.layers import SwiGLU

    model = trained()
    model.blocks[0].mlp = SwiGLU(24)
    with pytest.raises(ModelError, match=r"blocks\.0\.mlp is a SwiGLU: expected timm's Mlp"):
        quantize(model, **LOW)


def test_a_convolutional_stem_is_refused(quantize):
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.ModuleDict({"attn": nn.Identity()})])
    model.blocks[0].attn, model.blocks[0].mlp = nn.Identity(), nn.Identity()
    model.patch_embed = SimpleNamespace(backbone=nn.Identity(), proj=nn.Conv2d(3, 4, 1))
    with pytest.raises(ModelError, match="patch_embed is a SimpleNamespace: expected PatchEmbed"):
        quantize(model, **LOW)


def test_converting_twice_is_refused(trained, quantize):
    model = trained()
    quantize(model, **LOW)
    with pytest.raises(ModelError):
        quantize(model, **LOW)


def test_convert_needs_a_model_of_blocks():
    with pytest.raises(ModelError, match="Linear has no attention blocks"):
        convert(nn.Linear(2, 2), plan=None)
