"""Settings: each mistake gives one message with key, value and what is allowed."""

import copy
import math
import subprocess
import sys

import pytest

from ofq_core.errors import SettingsError
from ofq_core.explain import validated
from ofq_core.settings import StudySettings

MISSING = object()
RECIPE = {"epochs": 10, "cga_epochs": 2, "batch_size": 32, "lr": 1e-3}
VALID = {
    "study": "digits",
    "seed": 0,
    "quant": {"weight": "statsq", "wbits": 2, "abits": 2, "qkr": True, "cga": True},
    "grid": {"methods": ["lsq", "ofq"], "bits": [2, 3, 4], "seeds": [0, 1, 2], "quant": {}},
    "methods": {
        "lsq": {"weight": "lsq", "qkr": False, "cga": False},
        "ofq": {"weight": "statsq", "qkr": True, "cga": True},
    },
    "model": {"name": "deit_tiny_distilled_patch16_224", "num_classes": 10},
    "data": {"name": "digits"},
    "recipe": RECIPE,
    "distill": {},
    "teacher": {"seed": 0, "recipe": dict(RECIPE)},
}


def changed(path, value, valid=VALID):
    raw = copy.deepcopy(valid)
    *parents, leaf = path.split(".")
    place = raw
    for key in parents:
        place = place[key]
    if value is MISSING:
        del place[leaf]
    else:
        place[leaf] = value
    return raw


def read(raw):
    return validated(StudySettings, raw, "params.yaml")


def message_of(raw):
    with pytest.raises(SettingsError) as error:
        read(raw)
    return str(error.value)


def test_valid_settings_are_taken():
    settings = read(VALID)
    assert settings.quant.wbits == 2
    assert settings.quant.edge_bits == 8
    assert settings.grid.seeds == (0, 1, 2)
    for bits in (2, 3, 4, 5, 6, 7, 8, 32):
        assert read(changed("quant.cga", False) | {"seed": bits}).seed == bits
        raw = changed("quant.cga", False)
        raw["quant"]["wbits"] = bits
        assert read(raw).quant.wbits == bits


# What is written at a key, and what the one line must contain.
MISTAKES = [
    # bits: neither outside the range, nor what YAML or Python take for a number
    ("quant.wbits", 1, ["quant.wbits = 1", "2, 3, 4, 5, 6, 7, 8 or 32"]),
    ("quant.wbits", 9, ["quant.wbits = 9", "2, 3, 4, 5, 6, 7, 8 or 32"]),
    ("quant.wbits", 0, ["quant.wbits = 0", "2, 3, 4, 5, 6, 7, 8 or 32"]),
    ("quant.wbits", -2, ["quant.wbits = -2", "2, 3, 4, 5, 6, 7, 8 or 32"]),
    ("quant.wbits", "two", ["quant.wbits = 'two'", "whole number", "2, 3, 4, 5, 6, 7, 8, 32"]),
    ("quant.wbits", "2", ["quant.wbits = '2'", "whole number"]),
    ("quant.wbits", 2.5, ["quant.wbits = 2.5", "whole number", "2, 3, 4, 5, 6, 7, 8, 32"]),
    ("quant.wbits", 2.0, ["quant.wbits = 2.0", "whole number"]),
    ("quant.wbits", True, ["quant.wbits = True", "whole number"]),
    ("quant.wbits", None, ["quant.wbits = None", "whole number"]),
    ("quant.wbits", [2], ["quant.wbits = [2]", "whole number"]),
    ("quant.abits", 1, ["quant.abits = 1", "2, 3, 4, 5, 6, 7, 8 or 32"]),
    ("quant.abits", True, ["quant.abits = True", "whole number"]),
    ("quant.edge_bits", 4, ["quant.edge_bits = 4", "8 or 32"]),
    ("quant.wbits", MISSING, ["quant.wbits", "missing"]),
    # names
    ("quant.weight", "statq", ["quant.weight = 'statq'", "did you mean 'statsq'?", "lsqplus"]),
    ("quant.qk_bias", "fold", ["quant.qk_bias", "unknown key"]),
    ("quant.qkr", "perhaps", ["quant.qkr = 'perhaps'", "true or false"]),
    ("distill.teacher_head", "cls", ["distill.teacher_head", "unknown key"]),
    ("study", "a b/c", ["study = 'a b/c'", "expected letters, digits"]),
    # misspelt keys
    ("quant.wbit", 2, ["quant.wbit", "unknown key", "did you mean 'wbits'?"]),
    ("quants", {}, ["quants", "unknown key", "did you mean 'quant'?", "recipe"]),
    ("recipe.epoch", 3, ["recipe.epoch", "unknown key", "did you mean 'epochs'?"]),
    ("teacher.recipe.epoch", 3, ["teacher.recipe.epoch", "did you mean 'epochs'?"]),
    ("methods.ofq.qrk", True, ["methods.ofq.qrk", "unknown key", "did you mean 'qkr'?"]),
    ("grid.seed", [1], ["grid.seed", "unknown key", "did you mean 'seeds'?"]),
    ("distill.xyzzy", 1, ["distill.xyzzy", "unknown key", "known keys: hard_weight"]),
    # seeds and grid
    ("seed", -1, ["seed = -1", "at least 0"]),
    ("seed", 1.5, ["seed = 1.5", "whole number"]),
    ("seed", True, ["seed = True", "whole number"]),
    ("seed", 2**31, [f"seed = {2**31}", f"less than {2**31}"]),
    ("grid.seeds", [], ["grid.seeds = []", "at least 1"]),
    ("grid.seeds", 3, ["grid.seeds = 3", "a list"]),
    ("grid.seeds", [0, 1, 0], ["grid", "seeds = [0, 1, 0]", "twice"]),
    ("grid.seeds", [0, "one"], ["grid.seeds.1 = 'one'", "whole number"]),
    ("grid.bits", [], ["grid.bits = []", "at least 1"]),
    ("grid.bits", [2, 2], ["grid", "bits = [2, 2]", "twice"]),
    ("grid.bits", [1, 2], ["grid.bits.0 = 1", "2, 3, 4, 5, 6, 7 or 8"]),
    ("grid.bits", [2, 32], ["grid.bits.1 = 32", "2, 3, 4, 5, 6, 7 or 8"]),
    ("grid.bits", [2, True], ["grid.bits = [2, True]", "whole numbers from 2 to 8", "True"]),
    ("grid.bits", [2, 3.0], ["grid.bits = [2, 3.0]", "whole numbers from 2 to 8", "3.0"]),
    ("grid.methods", [], ["grid.methods = []", "at least 1"]),
    ("grid.methods", ["lsq", "lsq"], ["methods = ['lsq', 'lsq']", "twice"]),
    ("grid.methods", ["lsq", "qat"], ["grid.methods", "'qat'", "known are lsq, ofq"]),
    # recipe
    ("recipe.epochs", 0, ["recipe.epochs = 0", "at least 1"]),
    ("recipe.epochs", 2.0, ["recipe.epochs = 2.0", "whole number"]),
    ("recipe.epochs", "ten", ["recipe.epochs = 'ten'", "whole number"]),
    ("recipe.epochs", MISSING, ["recipe.epochs", "missing"]),
    ("recipe.cga_epochs", -1, ["recipe.cga_epochs = -1", "at least 0"]),
    ("recipe.batch_size", 0, ["recipe.batch_size = 0", "at least 1"]),
    ("recipe.lr", -0.1, ["recipe.lr = -0.1", "more than 0"]),
    ("recipe.lr", 0, ["recipe.lr = 0", "more than 0"]),
    ("recipe.lr", math.nan, ["recipe.lr = nan", "finite"]),
    ("recipe.lr", math.inf, ["recipe.lr = inf", "finite"]),
    ("recipe.min_lr", 1.0, ["recipe", "min_lr = 1", "must not exceed lr = 0.001"]),
    ("recipe.warmup_epochs", 10, ["recipe", "warmup_epochs = 10", "below epochs = 10"]),
    ("recipe.warmup_epochs", 11, ["recipe", "warmup_epochs = 11", "below epochs = 10"]),
    ("recipe.label_smoothing", 1.0, ["recipe.label_smoothing = 1.0", "less than 1"]),
    ("recipe", MISSING, ["recipe", "missing"]),
    ("recipe", None, ["recipe = None", "keys with values"]),
    ("teacher.recipe.epochs", 0, ["teacher.recipe.epochs = 0", "at least 1"]),
    # CGA, distillation, data, model
    ("quant.boundary_range", 0, ["quant.boundary_range = 0", "more than 0"]),
    ("quant.boundary_range", 0.6, ["quant.boundary_range = 0.6", "at most 0.5"]),
    ("distill.temperature", 0, ["distill.temperature = 0", "more than 0"]),
    ("distill.soft_weight", -1, ["distill.soft_weight = -1", "at least 0"]),
    ("data.test_share", 1.5, ["data.test_share = 1.5", "less than 1"]),
    ("data.test_share", 0.95, ["data", "test_share + val_share = 1.05", "below 1"]),
    ("model.num_classes", 1, ["model.num_classes = 1", "at least 2"]),
    ("model.name", 5, ["model.name = 5", "a text"]),
    # what a recipe can do since it serves ImageNet
    ("recipe.mixup", -0.1, ["recipe.mixup = -0.1", "at least 0"]),
    ("recipe.mix_prob", 1.5, ["recipe.mix_prob = 1.5", "at most 1"]),
    ("recipe.mix_group", 3, ["recipe.mix_group = 3", "multiple of 2"]),
    ("recipe.mix_group", 0, ["recipe.mix_group = 0", "at least 2"]),
    ("recipe.repeated_augmentation", 0, ["recipe.repeated_augmentation = 0", "at least 1"]),
    ("recipe.clip_grad", 0, ["recipe.clip_grad = 0", "more than 0"]),
    ("recipe.ema_decay", 1.0, ["recipe.ema_decay = 1.0", "less than 1"]),
    ("recipe.precision", "fp16", ["recipe.precision = 'fp16'", "'fp32' or 'bf16'"]),
    ("recipe.cooldown_epochs", -1, ["recipe.cooldown_epochs = -1", "at least 0"]),
    ("recipe.channels_last", "maybe", ["recipe.channels_last = 'maybe'", "true or false"]),
    ("teacher.recipe", None, ["teacher", "a recipe, a checkpoint or pretrained", "all are null"]),
    ("teacher.pretrained", "hub", ["teacher.pretrained = 'hub'", "'timm' or 'torchvision'"]),
    (
        "teacher.pretrained",
        "torchvision",
        ["teacher.pretrained = 'torchvision' is for Swin", "deit_tiny", "expected 'timm'"],
    ),
    # one switch each
    ("fidelity", {"initialization": "half"}, ["fidelity.initialization = 'half'", "'released'"]),
    ("fidelity", {"qk_bias": "keep"}, ["fidelity.qk_bias = 'keep'", "'fold' or 'drop'"]),
    ("fidelity", {"teacher_mode": "test"}, ["fidelity.teacher_mode = 'test'", "'eval' or 'train'"]),
    ("fidelity", {"teacher_head": "dist"}, ["fidelity.teacher_head = 'dist'", "'mean' or 'cls'"]),
    (
        "fidelity",
        {"cga_targets": "none"},
        ["cga_targets = 'none'", "'all', 'linear' or 'released'"],
    ),
    ("fidelity", {"code_range": "all"}, ["code_range = 'all'", "'theoretical' or 'observed'"]),
    ("fidelity", {"swin_scale_axis": "row"}, ["swin_scale_axis = 'row'", "'token' or 'column'"]),
    ("fidelity", {"relative_bias_decay": 2}, ["relative_bias_decay = 2", "true or false"]),
    ("fidelity", {"dead_biases": "few"}, ["fidelity.dead_biases = 'few'", "true or false"]),
    ("fidelity", {"cooldown": 10}, ["fidelity.cooldown = 10", "true or false"]),
    ("fidelity", {"lr_step": "batch"}, ["fidelity.lr_step = 'batch'", "'step' or 'epoch'"]),
    ("fidelity", {"lsq_group": "all"}, ["lsq_group = 'all'", "'global' or 'per_process'"]),
    ("fidelity", {"qk_bia": "fold"}, ["fidelity.qk_bia", "did you mean 'qk_bias'?"]),
    ("fidelity", "released", ["fidelity = 'released'", "keys with values"]),
    # Swin
    ("model.depths", [], ["model.depths = []", "at least 1"]),
    ("model.depths", [2, 0], ["model.depths.1 = 0", "at least 1"]),
    ("model.window_size", 0, ["model.window_size = 0", "at least 1"]),
    # images
    ("data.name", "imagenet", ["data.name = 'imagenet'", "'digits'", "data.source", "'folder'"]),
    ("data", {"name": 3}, ["data.name = 3", "'digits'", "data.source"]),
    ("data", {"source": "folder"}, ["data.name", "missing"]),
    ("data", "digits", ["data = 'digits'", "keys with values"]),
    ("data.noize", 1, ["data.noize", "did you mean 'noise'?", "known keys: name, test_share"]),
    ("data.source", "folder", ["data.name = 'digits'", "'digits' without data.source"]),
]

# The same for a change of data that is read from images.
IMAGES = {"name": "photos", "source": "folder", "size": 32}
IMAGE_MISTAKES = [
    ("data.source", "zip", ["data.source = 'zip'", "expected 'folder', 'torch/<name>'"]),
    ("data.source", "torch/", ["data.source = 'torch/'", "expected 'folder'"]),
    ("data.name", "a/b", ["data.name = 'a/b'", "expected letters, digits"]),
    ("data.name", "digits", ["data.name = 'digits'", "another name together with data.source"]),
    ("data.noise", 0.1, ["data.noise", "unknown key", "known keys: name, source"]),
    ("data.hflipp", 0.5, ["data.hflipp", "did you mean 'hflip'?"]),
    ("data.size", 0, ["data.size = 0", "at least 1"]),
    ("data.channels", 2, ["data.channels = 2", "1 or 3"]),
    ("data.channels", 1, ["data: mean = [0.485, 0.456, 0.406]", "channels = 1 entries"]),
    ("data.std", [0.2, 0.2, 0.0], ["data: std = [0.2, 0.2, 0.0]", "above 0"]),
    ("data.val_share", 1.0, ["data.val_share = 1.0", "less than 1"]),
    ("data.erase_prob", 1.1, ["data.erase_prob = 1.1", "at most 1"]),
    ("data.erase_mode", "white", ["data.erase_mode = 'white'", "'const', 'rand' or 'pixel'"]),
    ("data.interpolation", "nearest", ["interpolation = 'nearest'", "'random'", "'bicubic'"]),
    ("data.crop_pct", 1.5, ["data.crop_pct = 1.5", "at most 1"]),
    ("data.crop_scale", [0.0, 1.0], ["data.crop_scale.0 = 0.0", "more than 0"]),
    ("model.img_size", 64, ["model.img_size = 64", "data.size = 32", "expected the same"]),
    ("model.in_chans", 1, ["model.in_chans = 1", "data.channels = 3", "expected the same"]),
]


def name_of(mistake):
    path, value, _ = mistake
    return f"{path}={'missing' if value is MISSING else value}"


@pytest.mark.parametrize("mistake", MISTAKES, ids=name_of)
def test_mistake(mistake):
    one_line(mistake, VALID)


@pytest.mark.parametrize("mistake", IMAGE_MISTAKES, ids=name_of)
def test_mistake_about_images(mistake):
    one_line(mistake, {**VALID, "data": IMAGES})


def one_line(mistake, valid):
    path, value, parts = mistake
    read(valid)
    message = message_of(changed(path, value, valid))
    assert "\n" not in message, "one mistake, one line"
    assert message.startswith("params.yaml: ")
    for part in parts:
        assert part in message
    assert "settings:" not in message, "no place that the user does not know"
    assert "pydantic" not in message
    assert "Value error" not in message


def test_cga_without_quantized_weights():
    raw = changed("quant.wbits", 32)
    message = message_of(raw)
    assert message == "params.yaml: quant: cga = true needs quantized weights, but wbits = 32"
    raw["quant"]["cga"] = False
    assert read(raw).quant.method == "statsq_qkr"


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ({"embed_dim": 25, "num_heads": 3}, ["embed_dim = 25", "multiple of num_heads = 3"]),
        ({"img_size": 9, "patch_size": 2}, ["img_size = 9", "multiple of patch_size = 2"]),
        (
            {"depths": [2, 2], "heads_per_stage": [3]},
            ["heads_per_stage = [3]", "depths = [2, 2]", "as many entries as there are stages"],
        ),
        (
            {"embed_dim": 12, "heads_per_stage": [3, 7]},
            ["heads_per_stage.1 = 7", "width of its stage, embed_dim * 2 = 24"],
        ),
    ],
)
def test_sizes_that_contradict_each_other(sizes, parts):
    raw = copy.deepcopy(VALID)
    raw["model"].update(sizes)
    message = message_of(raw)
    assert "\n" not in message
    assert all(part in message for part in parts)


def test_every_mistake_is_reported_at_once():
    raw = changed("quant.wbits", "two")
    raw["recipe"] = {**RECIPE, "epochs": 0}
    raw["data"] = {"nmae": "digits"}
    lines = message_of(raw).splitlines()
    assert len(lines) == 3, "a misspelt key is not a missing one too"
    assert all(line.startswith("params.yaml: ") for line in lines)


@pytest.mark.parametrize("raw", [None, [], "quant", 3])
def test_a_file_that_holds_no_settings(raw):
    message = message_of(raw)
    assert "\n" not in message
    assert message.startswith("params.yaml: settings = ")


def test_settings_are_immutable():
    settings = read(VALID)
    with pytest.raises(Exception, match="frozen"):
        settings.seed = 3


def test_no_torch_is_imported():
    """Bad settings are reported before the slow imports."""
    code = "import sys, ofq_core.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
