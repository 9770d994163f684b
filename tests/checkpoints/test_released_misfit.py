"""Files that do not fit, and models that the layout cannot say: the tensor and the way out."""

import pytest
import torch

from ofq_core.checkpoints import export_released, fill_released, load_released, read_released
from ofq_core.errors import CheckpointError, OFQError
from ofq_core.models import pad_before_shift
from ofq_core.settings import BUNDLES

DESCRIBED = BUNDLES["described"]


def refused(call, *arguments, **named):
    with pytest.raises(CheckpointError) as error:
        call(*arguments, **named)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_missing_key(written):
    def change(state):
        del state["blocks.1.attn.move_v_b4.bias"]

    assert "blocks.1.attn.move_v_b4.bias is missing" in refused(load_released, written(change))


def test_unknown_key(written):
    def change(state):
        state["blocks.1.attn.extra"] = torch.zeros(1)

    assert "blocks.1.attn.extra is not known" in refused(load_released, written(change))


def test_many_keys_are_counted(written):
    def change(state):
        for i in range(9):
            state[f"x{i}"] = torch.zeros(1)

    message = refused(load_released, written(change))
    assert "x0 is not known; x1 is not known; x2 is not known; and 6 more" in message


def test_lsq_weights_are_named(written):
    def change(state):
        state["blocks.0.mlp.fc1.lsqw_fn.s"] = torch.ones(48)
        del state["blocks.0.mlp.fc1.statsq_fn.clip_val"]

    message = refused(load_released, written(change))
    assert "blocks.0.mlp.fc1.lsqw_fn.s is not known (LSQ weights; only StatsQ" in message


def test_full_precision_weights(tmp_path):
    """A checkpoint of DeiT itself has no scales."""
    path = tmp_path / "x.pth"
    state = {
        "pos_embed": torch.zeros(1, 18, 24),
        "cls_token": torch.zeros(1, 1, 24),
        "patch_embed.proj.weight": torch.zeros(24, 3, 8, 8),
        "blocks.0.norm1.weight": torch.ones(24),
    }
    torch.save(state, path)
    message = refused(load_released, path, wbits=2, abits=2)
    assert "patch_embed.proj.move_b4.bias is missing" in message


def test_no_entries(written):
    def change(state):
        state["patch_embed.proj.weight"] = torch.zeros(0, 3, 8, 8)

    message = refused(load_released, written(change))
    assert "patch_embed.proj.weight has shape (0, 3, 8, 8): no entry in it" in message


def test_other_types(written):
    """They would be converted in silence."""

    def change(state):
        state["norm.weight"] = state["norm.weight"].double()

    message = refused(load_released, written(change))
    assert "norm.weight is torch.float64, the model torch.float32: convert it first" in message


def test_neither_deit_nor_swin(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"layer1.conv.weight": torch.zeros(1)}, path)
    message = refused(load_released, path)
    assert "neither DeiT (no pos_embed) nor Swin (no features.*)" in message
    assert "layer1.conv.weight" in message


@pytest.mark.parametrize("given", [{}, {"wbits": 2}, {"abits": 2}])
def test_bits_are_nowhere(given, converted, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(export_released(converted()), path)
    missing = "abits" if "wbits" in given else "wbits"
    message = refused(load_released, path, **given)
    assert f"does not say its {missing}" in message
    assert f"give them, --{missing} 2|3|4" in message


def test_bits_that_contradict_the_file(written):
    message = refused(load_released, written(), wbits=3)
    assert "wbits = 3 was given, but the file holds wbits = 2" in message


@pytest.mark.parametrize("bits", [1, 0, 9, 2.0, "2", True])
def test_impossible_bits(bits, written):
    with pytest.raises(OFQError, match=r"quant\.wbits"):
        load_released(written(wq_bitw=bits))


def test_heads_are_nowhere(written):
    message = refused(load_released, written(qkr=False))
    assert "number of heads is not in the tensors" in message
    assert "--num-heads N" in message


def test_heads_of_a_model_of_another_width_are_not_taken(written):
    """DeiT-T has 3 heads, and this file is no DeiT-T, whatever it says."""
    path = written(qkr=False, model="deit_tiny_distilled_patch16_224")
    assert "number of heads" in refused(load_released, path)


def test_heads_that_contradict_the_file(written):
    message = refused(load_released, written(), num_heads=4)
    assert "num_heads = 4 was given, but the file holds num_heads = 3" in message
    message = refused(load_released, written(kind="swin"), num_heads=4)
    assert "Swin's heads per stage are in its tensors" in message


def test_heads_that_do_not_divide_the_width(written):
    with pytest.raises(OFQError, match="num_heads = 5"):
        load_released(written(qkr=False), num_heads=5)


def test_tokens_and_pixels_contradict_each_other(written):
    def change(state):
        state["pos_embed"] = torch.zeros(1, 50, 24)

    message = refused(load_released, written(change))
    assert "pos_embed has 50 tokens, but 32 x 32 pixels" in message
    assert "patches of 8 give 16, plus 2" in message


def test_pixels_that_are_no_square(written):
    def change(state):
        state["patch_embed.proj.move_b4.bias"] = torch.zeros(1000)

    message = refused(load_released, written(change))
    assert "patch_embed.proj.move_b4.bias has 1000 entries" in message


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("blocks.1.attn.quan_a_softmax_fn.s", (17,)),
        ("blocks.1.mlp.fc2.weight", (24, 40)),
        ("blocks.0.attn.quan_a_qkx_fn.s", (18,)),
        ("norm.weight", (25,)),
    ],
)
def test_shape(key, shape, written):
    expected = None

    def change(state):
        nonlocal expected
        expected = tuple(state[key].shape)
        state[key] = torch.ones(shape)

    message = refused(load_released, written(change))
    assert f"{key} has shape {shape}, the model {expected}" in message


def test_a_gap_in_the_blocks(written):
    def change(state):
        for key in [key for key in state if key.startswith("blocks.1.")]:
            state[key.replace("blocks.1.", "blocks.2.")] = state.pop(key)

    assert "blocks [0, 2]" in refused(load_released, written(change))


def test_file_of_198_tokens_into_a_model_of_51(converted):
    """Scales belong to a number of tokens: the message says both and what to set."""
    large = converted(sizes={"img_size": 224, "patch_size": 16})
    small = converted(sizes={"img_size": 112, "patch_size": 16})
    before = {key: value.clone() for key, value in small.state_dict().items()}
    message = refused(fill_released, small, export_released(large), "x.pth")
    assert message.startswith("x.pth: pos_embed has shape (1, 198, 24), the model (1, 51, 24)")
    assert "set model.img_size and model.patch_size to those of the file" in message
    after = small.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_another_width(converted):
    narrow, wide = converted(), converted(sizes={"embed_dim": 48})
    message = refused(fill_released, narrow, export_released(wide), "x.pth")
    assert "patch_embed.proj.weight has shape (48, 3, 8, 8), the model (24, 3, 8, 8)" in message
    assert "set model.embed_dim" in message
    assert "more" in message


def test_with_and_without_qkr(converted):
    qkr, plain = converted(), converted(qkr=False)
    message = refused(fill_released, qkr, export_released(plain), "x.pth")
    assert "is missing" in message


def test_unsigned_patches_are_explained(written):
    def change(state):
        state["patch_embed.proj.input_quant_fn.signed"].zero_()

    message = refused(load_released, written(change))
    assert "patch_embed.proj.input_quant_fn.signed = 0, expected 1" in message
    assert "no image with a negative value has ever come in" in message


def test_another_order_of_relative_positions(written):
    def change(state):
        index = state["features.1.0.attn.relative_position_index"]
        state["features.1.0.attn.relative_position_index"] = index.flip(0)

    message = refused(load_released, written(change, kind="swin"))
    assert "features.1.0.attn.relative_position_index" in message
    assert "another order" in message


@pytest.mark.parametrize("value", [0.0, -2.0, float("nan"), float("inf")])
def test_impossible_clipping_constant(value, written):
    def change(state):
        state["blocks.0.attn.v_quant.clip_val"].fill_(value)

    message = refused(load_released, written(change))
    assert f"blocks.0.attn.v_quant.clip_val = {value:g}, expected 2" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(value, written):
    def change(state):
        state["blocks.0.mlp.fc1.input_quant_fn.s"][3] = value

    message = refused(load_released, written(change))
    assert "blocks.0.mlp.fc1.input_quant_fn.s has 1 of " in message
    assert f" values like {value}" in message


def released_but(**switches):
    return BUNDLES["released"].model_copy(update=switches)


def test_folded_query_bias_cannot_be_exported(converted):
    message = refused(export_released, converted(fidelity=released_but(qk_bias="fold")))
    assert message.startswith("blocks.0.attn.q_bias is not zero")
    assert message.endswith("train with fidelity.qk_bias = drop")


def test_scales_per_token_of_swin_cannot_be_exported(converted):
    model = converted("swin", fidelity=released_but(swin_scale_axis="token"))
    message = refused(export_released, model)
    assert "layers.0.blocks.0.mlp.fc1.input_quantizer.scale has 196 scales, one per" in message
    assert "14, one per image column: train with fidelity.swin_scale_axis = column" in message


def test_default_fidelity_cannot_be_exported(converted):
    """The query bias is folded by default."""
    assert "q_bias" in refused(export_released, converted(fidelity=DESCRIBED))
    assert "q_bias" in refused(export_released, converted("swin", fidelity=DESCRIBED))


def test_default_fidelity_of_plain_deit_can_be_exported(converted, write, images):
    model = converted(qkr=False, fidelity=DESCRIBED)
    loaded = load_released(write(export_released(model), num_heads=3))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images()), model(images()))


# Maps of 10 x 10 tokens, padded to windows of 4, then 5 x 5; and of 8 x 8, 4 x 4, 2 x 2.
PADDED = {"img_size": 40, "patch_size": 4, "window_size": 4, "depths": (2, 2)}
SMALL = {"img_size": 32, "patch_size": 4, "window_size": 4}
SMALL |= {"depths": (1, 1, 1), "heads_per_stage": (1, 2, 4)}


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            PADDED,
            "layers.0.blocks.1 shifts maps of 10 x 10 before it pads them to windows of 4 x 4",
        ),
        (SMALL, "layers.2.blocks.0 has windows of 2 x 2, smaller than those of others"),
    ],
    ids=["padded", "small"],
)
def test_swin_that_the_released_code_computes_otherwise(sizes, said, converted, golden_model):
    model = converted("swin", sizes=sizes)
    assert refused(export_released, model).startswith(said)
    state = read_released(golden_model).state
    assert refused(fill_released, model, state, "a file").startswith(said)


def test_a_padded_and_shifted_swin_is_read_and_written(converted, write):
    model = converted("swin", sizes=PADDED)
    images = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        as_timm = model(images)
        pad_before_shift(model)
        loaded = load_released(write(export_released(model)))
        assert torch.equal(loaded.model(images), model(images))
        assert float((loaded.model(images) - as_timm).abs().max()) > 0.1
    assert export_released(loaded.model).keys() == export_released(model).keys()


def test_windows_larger_than_a_map(written):
    """The released code would have padded the last map to a window."""

    def change(state):
        for key in list(state):
            if key.startswith("features.") and key.endswith("relative_position_bias_table"):
                state[key] = torch.zeros(31 * 31, state[key].shape[1])

    message = refused(load_released, written(change, kind="swin"))
    assert "the last stage has a map of 7 x 7 in windows of 16" in message
    assert "cannot be read" in message


def test_lsq_weights_cannot_be_exported(converted):
    message = refused(export_released, converted(weight="lsq"))
    assert "blocks.0" in message
    assert "quant.weight = statsq" in message


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        ({"wbits": 32}, "quant.wbits from 2 to 8"),
        ({"abits": 32}, "quant.abits or quant.edge_bits is 32"),
        ({"edge_bits": 32}, "quant.abits or quant.edge_bits is 32"),
    ],
)
def test_32_bits_cannot_be_exported(bits, said, converted):
    assert said in refused(export_released, converted(**bits))


@pytest.mark.parametrize("name", ["deit3_small_patch16_224", "vit_tiny_patch16_224"])
def test_models_with_more_parts(name, converted):
    """Layer scale has no place in the layout; a plain ViT is a plain DeiT."""
    model = converted("deit_one_head", sizes={"name": name})
    if name.startswith("vit"):
        assert "head.lsqw_fn.s" in export_released(model)
        return
    message = refused(export_released, model)
    assert "blocks.0.ls1.gamma: the released layout has no such tensor" in message


def test_full_precision_model_cannot_be_exported(converted):
    from ofq_core.models import build_model
    from ofq_core.settings import ModelSettings

    model = build_model(ModelSettings(name="deit_tiny_patch16_224", num_classes=5, depth=1), 0)
    message = refused(export_released, model)
    assert "the released layout has no such tensor" in message


def test_a_model_that_follows_other_constants_takes_back_two(converted, golden_model):
    """Filling twice: the second file's constants count."""
    loaded = load_released(golden_model)
    state = {
        key: torch.full_like(value, 2.0) if key.endswith("clip_val") else value
        for key, value in read_released(golden_model).state.items()
    }
    fill_released(loaded.model, state, "x.pth")
    exported = export_released(loaded.model)
    assert all(float(exported[k]) == 2.0 for k in exported if k.endswith("clip_val"))
