"""Building models through timm: the same for the same seed, and refusals in words."""

import pytest
import torch

from ofq_core.errors import ModelError
from ofq_core.models import build_model, is_distilled
from ofq_core.settings import ModelSettings


def test_same_seed_same_model(micro):
    one, two, other = micro(seed=1), micro(seed=1), micro(seed=2)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert not torch.equal(one.head.weight, other.head.weight)


def test_the_global_random_state_is_left_alone(micro):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    micro(seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_distilled_models_return_both_heads_in_training(micro, images):
    model = micro()
    assert is_distilled(model)
    cls_logits, dist_logits = model.train()(images())
    assert cls_logits.shape == dist_logits.shape == (8, 10)
    assert torch.equal(model.eval()(images()), (cls_logits + dist_logits) / 2)
    plain = micro("vit_tiny_patch16_224")
    assert not is_distilled(plain)
    assert plain.train()(images()).shape == (8, 10)


def test_sizes_left_out_are_those_of_timm():
    model = build_model(ModelSettings(name="deit_tiny_distilled_patch16_224", num_classes=7), 0)
    assert model.pos_embed.shape == (1, 198, 192)
    assert len(model.blocks) == 12
    assert model.head.out_features == 7
    assert sum(p.numel() for p in model.parameters()) == 5_910_800 - 2 * (1000 - 7) * 193


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("deit_tiny_distiled_patch16_224", {}, "did you mean 'deit_tiny_distilled_patch16_224'?"),
        ("nonsense", {}, "timm has no such model"),
        ("mixer_s16_224", {"embed_dim": 64, "num_heads": None}, "mixer_s16_224"),
        ("swin_tiny_patch4_window7_224", {"num_heads": None}, "swin_tiny_patch4_window7_224"),
        ("resnet18", {}, "resnet18"),
        ("deit_tiny_patch16_224", {"embed_dim": 25, "num_heads": None}, "cannot be built with"),
        # The patch size is timm's own 16: no image token would be left.
        ("deit_tiny_patch16_224", {"patch_size": None}, "must be a multiple of the patch size"),
        # Larger than any machine: no room is made for it.
        (
            "deit_tiny_patch16_224",
            {"embed_dim": 99_999, "depth": 200},
            "GiB of memory: expected smaller sizes",
        ),
        ("deit_tiny_patch16_224", {"img_size": 100_000}, "GiB of memory: expected"),
        ("deit_tiny_patch16_224", {"mlp_ratio": 1e15}, "GiB of memory: expected"),
        ("deit_tiny_patch16_224", {"mlp_ratio": 1e17}, "no tensor can be so large"),
        ("deit_tiny_patch16_224", {"mlp_ratio": 1e30}, "no tensor can be so large"),
        ("deit_tiny_patch16_224", {"mlp_ratio": 1e300}, "no tensor can be so large"),
    ],
)
def test_refusals(micro, name, sizes, message):
    with pytest.raises(ModelError) as error:
        micro(name, **sizes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["mixer_s16_224", "swinv2_tiny_window8_256", "resnet18"])
def test_other_architectures_are_named_as_such(name):
    """With sizes that the model takes, the kind of the model is what is wrong."""
    with pytest.raises(ModelError, match="expected a vision transformer with attention blocks"):
        build_model(ModelSettings(name=name, num_classes=10), 0)
