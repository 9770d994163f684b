"""Which released key goes where, against the facts of the layout (spec 11), and the report."""

import json
import math

import pytest
import torch

from ofq_core.checkpoints import export_released, load_released, save_released
from ofq_core.models import QuantPlan, build_model, convert
from ofq_core.settings import BUNDLES, ModelSettings, QuantSettings

# Written by hand: released key in block 1 of DeiT -> our name.
BOTH = {
    "norm1.weight": "norm1.weight",
    "norm2.bias": "norm2.bias",
    "attn.quan_a_v_fn.s": "attn.quant_v.scale",
    "attn.move_v_aft.bias": "attn.quant_v.bias_after",
    "attn.quan_a_softmax_fn.s": "attn.quant_map.scale",
    "attn.proj.weight": "attn.proj.weight",
    "attn.proj.bias": "attn.proj.bias",
    "attn.proj.input_quant_fn.s": "attn.proj.input_quantizer.scale",
    "attn.proj.move_b4.bias": "attn.proj.input_quantizer.bias_before",
    "attn.proj.move_aft.bias": "attn.proj.input_quantizer.bias_after",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc1.input_quant_fn.s": "mlp.fc1.input_quantizer.scale",
    "mlp.fc1.move_b4.bias": "mlp.fc1.input_quantizer.bias_before",
    "mlp.fc1.move_aft.bias": "mlp.fc1.input_quantizer.bias_after",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.move_b4.bias": "mlp.fc2.input_quantizer.bias_before",
}
QKR = {
    "attn.quant_x_4_qkv.input_quant_fn.s": "attn.input_quantizer.scale",
    "attn.quant_x_4_qkv.move_b4.bias": "attn.input_quantizer.bias_before",
    "attn.quant_x_4_qkv.move_aft.bias": "attn.input_quantizer.bias_after",
    "attn.q.weight": "attn.q_weight",
    "attn.k.weight": "attn.k_weight",
    "attn.v.weight": "attn.v.weight",
    "attn.v.bias": "attn.v.bias",
    "attn.quan_a_qkx_fn.s": "attn.quant_z.scale",
    "attn.move_qkx_b4.bias": "attn.quant_z.bias_before",
    "attn.move_qkx_aft.bias": "attn.quant_z.bias_after",
    "attn.move_v_b4.bias": "attn.quant_v.bias_before",
}
PLAIN = {
    "attn.qkv.weight": "attn.qkv.weight",
    "attn.qkv.bias": "attn.qkv.bias",
    "attn.qkv.input_quant_fn.s": "attn.qkv.input_quantizer.scale",
    "attn.qkv.move_b4.bias": "attn.qkv.input_quantizer.bias_before",
    "attn.qkv.move_aft.bias": "attn.qkv.input_quantizer.bias_after",
    "attn.quan_a_q_fn.s": "attn.quant_q.scale",
    "attn.quan_a_k_fn.s": "attn.quant_k.scale",
    "attn.move_q_aft.bias": "attn.quant_q.bias_after",
    "attn.move_k_aft.bias": "attn.quant_k.bias_after",
}
EDGES = {
    "head.weight": "head.weight",
    "head.input_quant_fn.s": "head.input_quantizer.scale",
    "head.lsqw_fn.s": "head.weight_quantizer.scale",
    "head.move_b4.bias": "head.input_quantizer.bias_before",
    "head_dist.lsqw_fn.s": "head_dist.weight_quantizer.scale",
    "patch_embed.proj.weight": "patch_embed.proj.weight",
    "patch_embed.proj.input_quant_fn.s": "patch_embed.proj.input_quantizer.scale",
    "patch_embed.proj.lsqw_fn.s": "patch_embed.proj.weight_quantizer.scale",
    "patch_embed.proj.move_aft.bias": "patch_embed.proj.input_quantizer.bias_after",
    "cls_token": "cls_token",
    "dist_token": "dist_token",
    "pos_embed": "pos_embed",
    "norm.weight": "norm.weight",
}
SWIN = {
    "features.0.0.weight": "patch_embed.proj.weight",
    "features.0.0.lsqw_fn.s": "patch_embed.proj.weight_quantizer.scale",
    "features.0.2.bias": "patch_embed.norm.bias",
    "features.1.1.attn.relative_position_bias_table": (
        "layers.0.blocks.1.attn.relative_position_bias_table"
    ),
    "features.1.1.attn.quan_a_qkx_fn.s": "layers.0.blocks.1.attn.quant_z.scale",
    "features.1.0.mlp.fc2.input_quant_fn.s": "layers.0.blocks.0.mlp.fc2.input_quantizer.scale",
    "features.2.reduction.weight": "layers.1.downsample.reduction.weight",
    "features.2.reduction.bias": "layers.1.downsample.reduction.bias",
    "features.2.reduction.input_quant_fn.s": "layers.1.downsample.reduction.input_quantizer.scale",
    "features.2.norm.weight": "layers.1.downsample.norm.weight",
    "features.3.0.norm1.weight": "layers.1.blocks.0.norm1.weight",
    "norm.bias": "norm.bias",
    "head.weight": "head.fc.weight",
    "head.lsqw_fn.s": "head.fc.weight_quantizer.scale",
}


def check_values(loaded, table):
    """The values in the file are found under our names."""
    own = loaded.model.state_dict()
    for released, ours in table.items():
        assert torch.equal(own[ours], loaded.file.state[released]), released
        assert loaded.report.mapped[released] == (ours,)
        assert loaded.report.shapes[released] == tuple(own[ours].shape)


@pytest.mark.parametrize(("qkr", "table"), [(True, QKR), (False, PLAIN)])
def test_deit_block(qkr, table, written):
    loaded = load_released(written(qkr=qkr, num_heads=3))
    check_values(loaded, {f"blocks.1.{k}": f"blocks.1.{v}" for k, v in (BOTH | table).items()})
    check_values(loaded, EDGES)


def test_plain_biases_before_are_one_vector(written):
    """q, k and v in a row, C entries each."""
    loaded = load_released(written(qkr=False, num_heads=3))
    whole = loaded.file.state["blocks.0.attn.move_qkv_b4.bias"]
    own = loaded.model.blocks[0].attn
    quantizers = own.quant_q, own.quant_k, own.quant_v
    for part, quantizer in zip(whole.split(24), quantizers, strict=True):
        assert torch.equal(quantizer.bias_before, part)
    assert loaded.report.mapped["blocks.0.attn.move_qkv_b4.bias"] == (
        "blocks.0.attn.quant_q.bias_before",
        "blocks.0.attn.quant_k.bias_before",
        "blocks.0.attn.quant_v.bias_before",
    )


def test_swin(written):
    check_values(load_released(written(kind="swin")), SWIN)


def test_swin_plain_attention(written):
    loaded = load_released(written(kind="swin", qkr=False))
    check_values(
        loaded,
        {f"features.1.0.{k}": f"layers.0.blocks.0.{v}" for k, v in (BOTH | PLAIN).items()},
    )


def test_keys_and_shapes_of_deit_tiny(real):
    """The shapes that the specification lists for DeiT-T, block 0, and no other key in it."""
    _, state = real("deit_tiny_distilled_patch16_224")
    block = {key: tuple(v.shape) for key, v in state.items() if key.startswith("blocks.0.")}
    vector, tokens, one = (192,), (198,), (1,)

    def linear(name, rows, columns):
        return {
            f"{name}.weight": (rows, columns),
            f"{name}.bias": (rows,),
            f"{name}.input_quant_fn.s": tokens,
            f"{name}.statsq_fn.clip_val": one,
            f"{name}.move_b4.bias": (columns,),
            f"{name}.move_aft.bias": (columns,),
        }

    expected = {
        **{f"norm{i}.{kind}": vector for i in (1, 2) for kind in ("weight", "bias")},
        "attn.quant_x_4_qkv.input_quant_fn.s": tokens,
        "attn.quant_x_4_qkv.move_b4.bias": vector,
        "attn.quant_x_4_qkv.move_aft.bias": vector,
        **{f"attn.{part}.weight": (192, 192) for part in "qkv"},
        "attn.v.bias": vector,
        "attn.qk_quant.clip_val": one,
        "attn.v_quant.clip_val": one,
        "attn.quan_a_v_fn.s": vector,
        "attn.move_v_b4.bias": vector,
        "attn.move_v_aft.bias": vector,
        "attn.quan_a_qkx_fn.s": (594,),
        "attn.move_qkx_b4.bias": (576,),
        "attn.move_qkx_aft.bias": (576,),
        "attn.quan_a_softmax_fn.s": tokens,
        **linear("attn.proj", 192, 192),
        **linear("mlp.fc1", 768, 192),
        **linear("mlp.fc2", 192, 768),
    }
    assert block == {f"blocks.0.{key}": shape for key, shape in expected.items()}
    assert state["patch_embed.proj.move_b4.bias"].shape == (50176,)
    assert state["patch_embed.proj.input_quant_fn.signed"].tolist() == [1.0]
    assert state["head_dist.lsqw_fn.s"].shape == (1000,)
    assert {float(v) for key, v in state.items() if key.endswith("clip_val")} == {2.0}


@pytest.fixture(scope="module")
def real():
    """A model of timm's own size with random weights, and its tensors in the released layout."""

    def build(name):
        model = build_model(ModelSettings(name=name, num_classes=1000), 0)
        quant = QuantSettings(weight="statsq", wbits=2, abits=2, qkr=True, cga=False)
        convert(model, QuantPlan.from_settings(quant, BUNDLES["released"]))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.nan_to_num_(0.1)
        return model, export_released(model)

    return build


# Parameters with quantizers, scale tensors and (where the specification has them) scale values,
# learnable-bias values and clipping constants.
COUNTS = {
    "deit_tiny_distilled_patch16_224": (6_081_569, 90, 23_509, 151_808, 60),
    "deit_small_distilled_patch16_224": (22_691_321, 90, None, None, None),
    "swin_tiny_patch4_window7_224": (28_608_256, 91, None, None, None),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_the_real_models(name, real, tmp_path):
    """Measured from the released code; it counts its clipping constants, which we do not have."""
    total, tensors, scales, biases, clips = COUNTS[name]
    model, state = real(name)
    save_released(tmp_path / "x.pth", state, {"wq_bitw": 2, "aq_bitw": 2, "model": name})
    report = load_released(tmp_path / "x.pth").report
    found = [value for key, value in state.items() if key.endswith(".s")]
    assert report.released_parameters == total
    assert len(found) == tensors
    ours = sum(parameter.numel() for parameter in model.parameters())
    constants = sum(key.endswith("clip_val") for key in state)
    assert report.parameters == ours == total - constants
    if scales is not None:
        assert sum(value.numel() for value in found) == scales
        assert sum(v.numel() for k, v in state.items() if ".move_" in k) == biases
        assert constants == clips
        # Whatever is in the file besides `signed`, which the released code keeps as a buffer.
        assert sum(value.numel() for value in state.values()) - 1 == total


def test_report_accounts_for_every_key(written):
    loaded = load_released(written(kind="swin"))
    report = loaded.report
    accounted = [*report.mapped, *report.constants, *report.clips]
    assert len(set(accounted)) == len(accounted)
    assert set(accounted) == set(loaded.file.state)
    ours = [name for names in report.mapped.values() for name in names]
    assert sorted(ours) == sorted(loaded.model.state_dict())
    values = sum(math.prod(report.shapes[key]) for key in report.mapped)
    assert report.parameters == values == sum(p.numel() for p in loaded.model.parameters())


def test_report_in_words_and_as_json(written):
    report = load_released(written()).report
    tensors = len(report.mapped)
    assert report.summary() == (
        f"{tensors} tensors mapped to {tensors}, 11 constants checked, nothing left over\n"
        f"{report.parameters:,} parameters ({report.parameters + 10:,} as the released code "
        "counts, with one clipping constant per StatsQ)"
    )
    content = json.loads(json.dumps(report.as_dict()))
    assert content["mapped"]["blocks.0.attn.q.weight"] == {
        "ours": ["blocks.0.attn.q_weight"],
        "shape": [24, 24],
    }
    assert content["constants"]["blocks.0.attn.qk_quant.clip_val"] == "2"


def test_report_tells_of_other_clipping_constants(written):
    def change(state):
        state["blocks.1.attn.v_quant.clip_val"].fill_(1.5)

    loaded = load_released(written(change))
    assert loaded.report.clips == {"blocks.1.attn.v_quant.clip_val": 1.5}
    assert "1 StatsQ have clipping constants other than 2 (1.5000 to 1.5000)" in (
        loaded.report.summary()
    )
    assert float(loaded.model.blocks[1].attn.v.weight_quantizer.clip) == 0.75
    assert loaded.model.blocks[0].attn.v.weight_quantizer.clip is None


def test_sizes_of_deit_are_read_from_shapes(written):
    """Everything but the bits, which no tensor holds."""
    facts = load_released(written()).facts
    model = facts.model
    assert (model.img_size, model.patch_size, model.in_chans) == (32, 8, 3)
    assert (model.embed_dim, model.depth, model.num_heads) == (24, 2, 3)
    assert (model.mlp_ratio, model.num_classes) == (2.0, 5)
    assert (facts.tokens, facts.distilled) == (18, True)


def test_deit_without_distillation(written):
    facts = load_released(written(kind="deit_one_head")).facts
    assert (facts.tokens, facts.distilled) == (17, False)
    assert facts.model.name == "deit_base_patch16_224"


@pytest.mark.parametrize("qkr", [True, False])
def test_sizes_of_swin_are_read_from_shapes(qkr, written):
    """Heads too, with and without QKR: from the tables of relative position biases."""
    facts = load_released(written(kind="swin", qkr=qkr)).facts
    model = facts.model
    assert (model.img_size, model.patch_size, model.embed_dim) == (28, 2, 8)
    assert (model.depths, model.heads_per_stage, model.window_size) == ((2, 1), (1, 2), 7)
    assert (model.depth, model.num_heads, model.mlp_ratio) == (None, None, 2.0)
    assert (facts.tokens, facts.distilled) == (49, False)


@pytest.mark.parametrize(("bits", "names"), [(3, ("wq_bitw", "aq_bitw")), (4, ("wbits", "abits"))])
def test_bits_by_either_name(bits, names, converted, tmp_path):
    state = export_released(converted(wbits=bits, abits=bits))
    save_released(tmp_path / "x.pth", state, dict.fromkeys(names, bits))
    quant = load_released(tmp_path / "x.pth").facts.quant
    assert (quant.wbits, quant.abits) == (bits, bits)


def test_heads_of_plain_deit_from_the_name_of_the_model(converted, write):
    """DeiT-T is 192 wide and has 3 heads; a file that is as wide and names it needs no more."""
    sizes = {"embed_dim": 192, "num_heads": 3, "depth": 1}
    state = export_released(converted(qkr=False, sizes=sizes))
    for place in ({"model": "deit_tiny_distilled_patch16_224"}, {"arch": "deit_tiny_patch16_224"}):
        assert load_released(write(state, **place)).facts.model.num_heads == 3


def test_heads_of_plain_deit_change_the_outputs(converted, write, images):
    """Why they are asked for: nothing else tells 3 heads from 4."""
    model = converted(qkr=False)
    path = write(export_released(model))
    with torch.no_grad():
        expected = model(images())
        assert torch.equal(load_released(path, num_heads=3).model(images()), expected)
        assert not torch.allclose(load_released(path, num_heads=4).model(images()), expected)
