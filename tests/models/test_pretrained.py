"""Published weights: what arrives where, and what is said when they cannot be had."""

import copy

import pytest
import torch

from ofq_core.errors import ModelError
from ofq_core.models import (
    build_model,
    load_pretrained,
    pad_before_shift,
    pretrained,
    unlike_released,
)
from ofq_core.models.swin_keys import swin_from_torchvision, timm_name, torchvision_name
from ofq_core.models.torchvision_compat import import_torchvision
from ofq_core.settings import ModelSettings

DEIT, SWIN = "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224"


@pytest.fixture(scope="module")
def torchvision_swin():
    """torchvision's own Swin-T with random weights, each tensor of realistic size and not zero."""
    import_torchvision()
    import torchvision

    generator = torch.Generator().manual_seed(0)
    model = torchvision.models.swin_t(weights=None).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise)
    return model


def test_torchvisions_swin_is_timms_swin(torchvision_swin, monkeypatch):
    """The same function after renaming: windows, shifts, order of the merged patches, masks.

    28.3 million parameters in both; the released code is a port of torchvision's model.
    """
    state = torchvision_swin.state_dict()
    monkeypatch.setattr(pretrained, "_torchvision_state", lambda name: {"swin_t": state}[name])
    model = load_pretrained(ModelSettings(name=SWIN, num_classes=1000), "torchvision").eval()
    assert sum(p.numel() for p in model.parameters()) == 28_288_354
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, actual = torchvision_swin(images), model(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [40, 28, 20, 32])
def test_maps_that_windows_do_not_fit(size):
    """Maps of 10 and 5 (7 and 4, 5 and 3, 8 and 4) tokens in windows of 4.

    What timm shifts before it pads is not what torchvision computes; padded first, it is, and so is
    a copy of it.
    """
    import_torchvision()
    from torchvision.models.swin_transformer import SwinTransformer

    depths, heads = ((2,), (2,)) if size == 20 else ((2, 2), (2, 4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = SwinTransformer([4, 4], 16, [*depths], [*heads], [4, 4], num_classes=10).eval()
        for parameter in theirs.parameters():
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
        images = torch.randn(2, 3, size, size)
    sizes = {"img_size": size, "patch_size": 4, "embed_dim": 16, "window_size": 4}
    sizes |= {"depths": depths, "heads_per_stage": heads}
    model = build_model(ModelSettings(name=SWIN, num_classes=10, **sizes), 0).eval()
    model.load_state_dict(swin_from_torchvision(theirs.state_dict()))
    padded = size != 32
    with torch.no_grad():
        expected, before = theirs(images), model(images)
        assert (float((before - expected).abs().max()) > 0.1) == padded
        assert ("layers.0.blocks.1 shifts maps of" in (unlike_released(model) or "")) == padded
        pad_before_shift(model)
        assert unlike_released(model) is None
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
        twin = copy.deepcopy(model)
        model.layers[0].blocks[1].attn.proj.weight.zero_()
        torch.testing.assert_close(twin(images), expected, rtol=1e-4, atol=1e-5)


def test_names_go_there_and_back(torchvision_swin):
    state = {
        name: value
        for name, value in torchvision_swin.state_dict().items()
        if not name.endswith("relative_position_index")
    }
    renamed = swin_from_torchvision(state)
    assert len(renamed) == len(state)
    assert timm_name("features.5.3.mlp.3.bias") == "layers.2.blocks.3.mlp.fc2.bias"
    assert timm_name("features.4.reduction.weight") == "layers.2.downsample.reduction.weight"
    for name in state:
        released = name.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
        assert torchvision_name(timm_name(name)) == released


def test_timms_weights_arrive(monkeypatch, tmp_path):
    """What the hub's file holds is what the model holds, in every tensor."""
    import_torchvision()
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(7)
    published = timm.create_model(DEIT).state_dict()
    save_file(published, tmp_path / "model.safetensors")
    monkeypatch.setattr(
        timm.models._hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "model.safetensors")
    )
    before = torch.get_rng_state()
    model = load_pretrained(ModelSettings(name=DEIT, num_classes=1000), "timm")
    assert torch.equal(torch.get_rng_state(), before)
    assert model.state_dict().keys() == published.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, published[name]), name
    assert isinstance(model.train()(torch.zeros(2, 3, 224, 224)), tuple)


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_without_network_or_cache(source, monkeypatch):
    """One line that names the key and the three ways out."""
    import_torchvision()
    import timm
    import torchvision

    def unreachable(*_, **__):
        raise OSError("Temporary failure in name resolution\nsecond line")

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", unreachable)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", unreachable)
    with pytest.raises(ModelError) as error:
        load_pretrained(ModelSettings(name=SWIN, num_classes=1000), source)
    message = str(error.value)
    for part in (f"teacher.pretrained = '{source}'", "not in the cache", "name resolution"):
        assert part in message
    for way_out in ("machine with a network", "copy the cache", "teacher.checkpoint"):
        assert way_out in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "classes", "source", "message"),
    [
        (DEIT, 10, "timm", "model.num_classes = 10: the published weights .* know 1000 classes"),
        (DEIT, 1000, "torchvision", "'torchvision' has weights for swin_tiny_patch4_window7_224"),
        ("vit_tiny_patch16_18x2", 1000, "timm", "timm has no such model"),
        ("vit_small_patch8_224.nonsense", 1000, "timm", "no such model"),
    ],
)
def test_refusals(name, classes, source, message):
    with pytest.raises(ModelError, match=message):
        load_pretrained(ModelSettings(name=name, num_classes=classes), source)


def test_sizes_that_the_published_weights_do_not_have(torchvision_swin, monkeypatch):
    state = torchvision_swin.state_dict()
    monkeypatch.setattr(pretrained, "_torchvision_state", lambda name: state)
    settings = ModelSettings(name=SWIN, num_classes=1000, depths=(2, 2, 2, 2))
    with pytest.raises(ModelError, match=r"do not fit .* leave model sizes null"):
        load_pretrained(settings, "torchvision")
