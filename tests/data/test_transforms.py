"""Transforms: step by step those of the paper's recipe (spec 7.1 and 8), made by timm."""

import math
import pickle

import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybeToTensor, RandomResizedCropAndInterpolation
from torchvision import transforms

from ofq_core.data.random_state import seeded
from ofq_core.data.transforms import eval_transform, train_transform
from ofq_core.errors import SettingsError
from ofq_core.explain import validated
from ofq_core.settings import ImageSettings

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def paper(image_settings):
    return image_settings(size=224, color_jitter=0.4)


def kinds(transform):
    return [type(step) for step in transform.transforms]


def test_training_steps_of_the_paper(paper):
    steps = train_transform(paper).transforms
    assert [type(step) for step in steps] == [
        RandomResizedCropAndInterpolation,
        transforms.RandomHorizontalFlip,
        RandAugment,
        MaybeToTensor,
        transforms.Normalize,
        RandomErasing,
    ]
    crop, flip, rand, _, normalise, erase = steps
    assert (tuple(crop.size), crop.scale) == ((224, 224), (0.08, 1.0))
    assert crop.ratio == pytest.approx((3 / 4, 4 / 3))
    names = {str(kind).rpartition(".")[2].lower() for kind in crop.interpolation}
    assert names == {"bilinear", "bicubic"}, "drawn for each image"
    assert flip.p == 0.5
    assert rand.num_layers == 2
    assert len(rand.ops) == 15
    for op in rand.ops:
        assert (op.magnitude, op.prob, op.magnitude_std) == (9, 0.5, 0.5)
        assert op.kwargs["fillcolor" if "fillcolor" in op.kwargs else "img_mean"]
    increasing = {op.level_fn.__name__ for op in rand.ops if op.level_fn is not None}
    assert {"_solarize_increasing_level_to_arg", "_posterize_increasing_level_to_arg"} <= increasing
    torch.testing.assert_close(torch.as_tensor(normalise.mean), torch.tensor(MEAN))
    torch.testing.assert_close(torch.as_tensor(normalise.std), torch.tensor(STD))
    assert erase.probability == 0.25
    assert (erase.per_pixel, erase.rand_color) == (True, False), "pixel mode"
    assert (erase.min_count, erase.max_count) == (1, 1)
    assert (erase.min_area, erase.max_area) == (0.02, 1 / 3)


def test_training_view_is_that_of_timms_factory(paper):
    """The same pixels from the same generators, with the recipe's numbers written out."""
    theirs = create_transform(
        224,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="random",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )
    ours = train_transform(paper)
    image = Image.linear_gradient("L").convert("RGB").resize((300, 260))
    for seed in range(5):
        with seeded(seed):
            expected = theirs(image)
        with seeded(seed):
            assert torch.equal(ours(image), expected)
    assert not torch.equal(expected, torch.zeros_like(expected))


def test_evaluation_steps_of_the_paper(paper):
    resize, crop, to_tensor, normalise = eval_transform(paper).transforms
    assert (resize.size, resize.interpolation.value) == (math.floor(224 / 0.9), "bicubic")
    assert resize.size == 248, "the shorter side"
    assert tuple(crop.size) == (224, 224)
    assert isinstance(to_tensor, MaybeToTensor)
    torch.testing.assert_close(torch.as_tensor(normalise.mean), torch.tensor(MEAN))
    view = eval_transform(paper)(Image.new("RGB", (500, 300), (255, 255, 255)))
    assert view.shape == (3, 224, 224)
    torch.testing.assert_close(view[:, 0, 0], (1 - torch.tensor(MEAN)) / torch.tensor(STD))


def test_evaluation_takes_the_centre(image_settings):
    """A white square in the middle of a black image, as large as the crop."""
    plain = image_settings(size=20, crop_pct=0.5, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image = Image.new("RGB", (60, 40))
    image.paste((255, 255, 255), (20, 10, 40, 30))
    assert float(eval_transform(plain)(image).min()) == 1.0


def test_colour_jitter_acts_only_without_auto_augment(image_settings):
    with_policy = train_transform(image_settings(color_jitter=0.4))
    without = train_transform(image_settings(color_jitter=0.4, auto_augment=None))
    assert transforms.ColorJitter not in kinds(with_policy)
    jitter = without.transforms[kinds(without).index(transforms.ColorJitter)]
    assert jitter.brightness == pytest.approx((0.6, 1.4))


def test_whole_image_with_padding(image_settings):
    """crop_scale null: nothing but a shift by up to `pad` pixels, black outside."""
    off = {"auto_augment": None, "erase_prob": 0.0, "hflip": 0.0, "interpolation": "bicubic"}
    flat = {"mean": (0.5,), "std": (0.5,), "channels": 1, "size": 8}
    still = train_transform(image_settings(crop_scale=None, **off, **flat))
    assert kinds(still) == [transforms.Resize, MaybeToTensor, transforms.Normalize]
    moving = train_transform(image_settings(crop_scale=None, pad=2, **off, **flat))
    assert kinds(moving)[:2] == [transforms.Resize, transforms.RandomCrop]
    image = Image.new("L", (8, 8), 255)
    seen = set()
    for seed in range(60):
        with seeded(seed):
            view = moving(image)
        assert view.shape == (1, 8, 8)
        seen.add((int((view[0, :, 4] > 0).sum()), int((view[0, 4] > 0).sum())))
    assert {rows for rows, _ in seen} == {6, 7, 8}
    assert {columns for _, columns in seen} == {6, 7, 8}
    stretched = still(Image.new("L", (31, 5), 255))
    assert float(stretched.min()) == 1.0, "the whole image, whatever its shape"


@pytest.mark.parametrize(
    "policy",
    ["rand-m9-typo7", "rand-m9-mstd", "randomly", "rand_m9", "", "v1", "original-m9"],
)
def test_policy_that_timm_would_misread_is_refused(policy):
    """timm passes over the parts that it does not know."""
    raw = {"name": "pets", "source": "folder", "auto_augment": policy}
    with pytest.raises(SettingsError) as error:
        validated(ImageSettings, raw, "params.yaml", prefix="data")
    assert f"data.auto_augment = {policy!r}: expected a policy of timm" in str(error.value)


@pytest.mark.parametrize("policy", ["rand-m9-n3-mstd0.5-mmax10-inc1-p0.5", "v0r", "augmix-m3-w3"])
def test_timms_policies_are_known(policy, image_settings):
    view = train_transform(image_settings(auto_augment=policy))
    assert view(Image.new("RGB", (30, 20))).shape == (3, 16, 16)


@pytest.mark.parametrize("policy", ["rand-m10-n15-mmax10-inc1-p1.0", "v0r"])
def test_posterize_to_no_bits_is_black(policy, image_settings):
    """timm asks for it at the largest magnitude, and Pillow 13 refuses."""
    steps = train_transform(image_settings(auto_augment=policy)).transforms
    step = next(s for s in steps if type(s).__name__ in {"RandAugment", "AutoAugment"})
    ops = step.ops if hasattr(step, "ops") else [op for pair in step.policy for op in pair]
    posterize = [op for op in ops if op.name == "PosterizeIncreasing"]
    assert posterize
    image = Image.linear_gradient("L").convert("RGB")
    for op in posterize:
        op.prob, op.magnitude, op.magnitude_std = 1.0, 10, 0
        assert op(image).getextrema() == ((0, 0), (0, 0), (0, 0))
        op.magnitude = 7  # two bits: multiples of 64
        assert op(image).getextrema() == ((0, 192), (0, 192), (0, 192))


def test_range_the_wrong_way_round_is_refused():
    raw = {"name": "pets", "source": "folder", "crop_scale": [1.0, 0.08]}
    with pytest.raises(SettingsError, match=r"data\.crop_scale = .*the smaller number first"):
        validated(ImageSettings, raw, "params.yaml", prefix="data")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"auto_augment": "augmix-m5-w4-d2"},
        {"auto_augment": "original"},
        {"auto_augment": "3a"},
        {"auto_augment": None, "color_jitter": 0.4, "crop_scale": None, "pad": 4},
    ],
)
def test_views_are_the_same_in_another_process(changes, image_settings):
    """Readers that are not forked are sent their transform."""
    transform = train_transform(image_settings(size=24, **changes))
    sent = pickle.loads(pickle.dumps(transform))
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    views = []
    for made in (transform, sent):
        with seeded(3):
            views.append(torch.stack([made(image) for _ in range(20)]))
    assert torch.equal(*views)
