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

# What Python and YAML take for a number, a truth value or a text, and what a file system does.
MISTAKES += [
    ("recipe.lr", True, ["recipe.lr = True", "expected a number"]),
    ("recipe.lr", "0.1", ["recipe.lr = '0.1'", "expected a number"]),
    ("recipe.lr", 10**400, ["recipe.lr = ", "expected a number"]),
    ("recipe.mixup", False, ["recipe.mixup = False", "expected a number"]),
    ("distill.temperature", "1", ["distill.temperature = '1'", "expected a number"]),
    ("data.noise", "0", ["data.noise = '0'", "expected a number"]),
    ("quant.boundary_range", "0.1", ["quant.boundary_range = '0.1'", "expected a number"]),
    ("quant.options", {"strength": True}, ["quant.options.strength = True", "expected a number"]),
    ("quant.options", {"strength": "1"}, ["quant.options.strength = '1'", "expected a number"]),
    ("seed", 1.0, ["seed = 1.0", "expected a whole number"]),
    ("seed", "1", ["seed = '1'", "expected a whole number"]),
    ("grid.seeds", [1, True], ["grid.seeds.1 = True", "expected a whole number"]),
    ("grid.quant", {"edge_bits": 8.0}, ["grid.quant.edge_bits = 8.0", "expected a whole number"]),
    ("quant.qkr", 1, ["quant.qkr = 1", "expected true or false"]),
    ("quant.cga", "yes", ["quant.cga = 'yes'", "expected true or false"]),
    ("recipe.compile", 1, ["recipe.compile = 1", "expected true, false or a text"]),
    ("recipe.compile", "never", ["recipe.compile = 'never'", "expected True, False or 'auto'"]),
    ("distill.cache_teacher", 0, ["distill.cache_teacher = 0", "expected true or false"]),
    ("study", 12e8, ["study = 1200000000.0", "expected a text", "in quotes"]),
    ("study", True, ["study = True", "expected a text"]),
    ("study", "", ["study = ''", "a text that is not empty"]),
    ("model.name", "", ["model.name = ''", "a text that is not empty"]),
    ("teacher.checkpoint", "", ["teacher.checkpoint = ''", "a text that is not empty"]),
    ("study", "noise", ["study = 'noise'", "results/noise is taken by a stage"]),
    ("study", "Teacher", ["study = 'Teacher'", "results/teacher is taken by a stage"]),
    ("study", "a" * 101, ["study = 'aaa", "at most 100 characters, found 101"]),
    ("study", "a.", ["study = 'a.'", "without a dot at its end"]),
    ("study", "..", ["study = '..'", "expected letters, digits"]),
    ("study", "nul", ["study = 'nul'", "on Windows this one is a device"]),
    ("study", "Con.2", ["study = 'Con.2'", "on Windows this one is a device"]),
    ("study", "a\n", ["study = 'a\\n'", "expected letters, digits"]),
    ("methods.a b", {"weight": "lsq", "qkr": False, "cga": False}, ["methods.'a b'", "letters"]),
    ("recipe.epochs", 10**12, ["recipe.epochs = 1000000000000", "at most 100000"]),
    ("model.depth", 1001, ["model.depth = 1001", "at most 1000"]),
    ("recipe.batch_size", 10**30, ["recipe.batch_size = 1", "at most 1000000000"]),
    ("quant.edge_bits", 10**30, ["quant.edge_bits = 1", "expected a smaller number"]),
    ("recipe.precision", "x" * 500, ["recipe.precision = 'xxx", "...xxx", "'fp32' or 'bf16'"]),
    ("recipe." + "x" * 500, 1, ["recipe.'xxx", "...xxx", "unknown key"]),
    ("quant.weight", "x" * 500, ["quant.weight = 'xxx", "unknown method 'xxx", "...xxx"]),
    # one line, not what follows from it
    ("grid.seeds", ["010"], ["grid.seeds.0 = '010'", "expected a whole number"]),
    ("grid", {**VALID["grid"], 5: 1}, ["grid.5: no key is a number"]),
    ("methods", {5: VALID["methods"]["lsq"]}, ["methods.5 = 5", "expected a text"]),
]

# What contradicts itself, and what nothing would read.
WARM = {**RECIPE, "warmup_epochs": 2}
MIXED = {**RECIPE, "mixup": 0.8, "cutmix": 1.0}
SOFT = {**VALID, "distill": {"hard_weight": 0.0}}
HARD = {**VALID, "distill": {"soft_weight": 0.0}}
NO_CGA = changed("quant", {"weight": "lsq", "wbits": 2, "abits": 2, "qkr": False, "cga": False})
FULL = changed("quant", {**NO_CGA["quant"], "weight": "obr", "wbits": 32, "abits": 32})
TRAIN = {**VALID, "fidelity": {"teacher_mode": "train"}}
PHOTOS = {"name": "photos", "source": "folder"}
BY_BITS = {bits: {"lr": 0.1} for bits in (2, 3, 4)}
NO_EFFECT = "has no effect: "
CONTRADICTIONS = [
    (VALID, "recipe", {**WARM, "warmup_lr": 0.1}, ["recipe: warmup_lr = 0.1", "exceed lr = 0.001"]),
    (VALID, "recipe.warmup_epochs", 10, ["recipe: warmup_epochs = 10 must be below"]),
    (VALID, "model.mlp_ratio", 0.001, ["model: mlp_ratio = 0.001", "an MLP of width zero"]),
    (
        VALID,
        "teacher",
        {"seed": 0, "checkpoint": "x" * 3000, "pretrained": "timm"},
        ["teacher: checkpoint = 'xxx", "...xxx"],
    ),
    (VALID, "grid.full_precision_seeds", [1, 0], ["grid.full_precision_seeds = [1, 0] holds"]),
    (SOFT, "recipe.label_smoothing", 0.1, ["recipe.label_smoothing = 0.1: " + NO_EFFECT]),
    (SOFT, "recipe", {**MIXED, "mix_smoothing": 0.2}, ["recipe.mix_smoothing = 0.2: " + NO_EFFECT]),
    (VALID, "recipe", {**MIXED, "label_smoothing": 0.1}, ["recipe.label_smoothing = 0.1: "]),
    (HARD, "distill", {"soft_weight": 0.0, "temperature": 2.0}, ["distill.temperature = 2.0: "]),
    (
        HARD,
        "distill",
        {"soft_weight": 0.0, "cache_teacher": True},
        ["distill.cache_teacher = True"],
    ),
    (TRAIN, "distill.cache_teacher", True, ["distill.cache_teacher = True: " + NO_EFFECT]),
    (VALID, "recipe.cooldown_epochs", 3, ["recipe.cooldown_epochs = 3: " + NO_EFFECT, "cooldown"]),
    (VALID, "teacher.recipe.cooldown_epochs", 3, ["teacher.recipe.cooldown_epochs = 3: "]),
    (VALID, "recipe.mix_prob", 0.5, ["recipe.mix_prob = 0.5: " + NO_EFFECT, "mixup = cutmix = 0"]),
    (VALID, "recipe.mix_switch_prob", 0.1, ["recipe.mix_switch_prob = 0.1: " + NO_EFFECT]),
    (VALID, "recipe.mix_smoothing", 0.2, ["recipe.mix_smoothing = 0.2: " + NO_EFFECT]),
    (VALID, "recipe.mix_group", 4, ["recipe.mix_group = 4: " + NO_EFFECT]),
    (VALID, "recipe.warmup_lr", 1e-4, ["recipe.warmup_lr = 0.0001: " + NO_EFFECT, "warmup_epochs"]),
    (VALID, "teacher.recipe.warmup_lr", 1e-4, ["teacher.recipe.warmup_lr = 0.0001: " + NO_EFFECT]),
    (VALID, "teacher.recipe.mix_prob", 0.5, ["teacher.recipe.mix_prob = 0.5: " + NO_EFFECT]),
    (
        VALID,
        "recipe.by_bits",
        {2: {"lr": 0.1}},
        ["recipe.by_bits.2.lr = 0.1: ", "recipe.lr = 0.001"],
    ),
    (NO_CGA, "quant.boundary_range", 0.01, ["quant.boundary_range = 0.01: " + NO_EFFECT]),
    (FULL, "quant.options", {"strength": 0.5}, ["quant.options.strength = 0.5: " + NO_EFFECT]),
    (VALID, "data", {**PHOTOS, "erase_count": 2}, ["data.erase_count = 2: " + NO_EFFECT]),
    (VALID, "data", {**PHOTOS, "pad": 4}, ["data.pad = 4: " + NO_EFFECT]),
    (VALID, "data", {**PHOTOS, "name": "Digits"}, ["data.name = 'Digits'", "data/digits is taken"]),
    (VALID, "data", {**PHOTOS, "name": "checked"}, ["data/checked is taken"]),
]

# As near to these as can be, and right.
SENSIBLE = [
    (VALID, "recipe", {**RECIPE, "lr": 1}),
    (VALID, "recipe", {**WARM, "warmup_lr": 1e-3}),
    (VALID, "recipe.warmup_lr", 1e-6),
    (VALID, "recipe.mix_prob", None),
    (VALID, "recipe.label_smoothing", 0.1),
    (VALID, "recipe", {**MIXED, "mix_prob": 0.5, "mix_switch_prob": 0.1, "mix_group": 4}),
    (SOFT, "teacher.recipe.label_smoothing", 0.1),
    (SOFT, "distill.temperature", 2.0),
    (VALID, "distill.cache_teacher", True),
    ({**VALID, "fidelity": {"cooldown": True}}, "recipe.cooldown_epochs", 3),
    (VALID, "recipe", {**RECIPE, "lr": None, "by_bits": BY_BITS}),
    (NO_CGA, "recipe", {**RECIPE, "by_bits": {5: {"lr": 0.1}}}),
    (VALID, "recipe", {**RECIPE, "lr": None, "by_bits": {2: {"lr": 0.1, "mix_group": 4}}}),
    (VALID, "quant.boundary_range", 0.01),
    (VALID, "model.mlp_ratio", 0.01),
    (VALID, "model.mlp_ratio", 1e308),
    (VALID, "grid.full_precision_seeds", [1, 2]),
    (VALID, "study", "2024-01-01"),
    (VALID, "study", "console"),
    (VALID, "study", "a" * 100),
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
    ("data.test_split", "train", ["test_split = 'train' is train_split = 'train': expected test"]),
    ("data.test_split", "./train/", ["test_split = './train/' is train_split = 'train'"]),
    ("data.train_split", "x/../validation", ["test_split = 'validation' is train_split = 'x/../"]),
    ("data.val_share", 1.0, ["data.val_share = 1.0", "less than 1"]),
    ("data.erase_prob", 1.1, ["data.erase_prob = 1.1", "at most 1"]),
    ("data.erase_mode", "white", ["data.erase_mode = 'white'", "'const', 'rand' or 'pixel'"]),
    ("data.interpolation", "nearest", ["interpolation = 'nearest'", "'random'", "'bicubic'"]),
    ("data.crop_pct", 1.5, ["data.crop_pct = 1.5", "at most 1"]),
    ("data.crop_scale", [0.0, 1.0], ["data.crop_scale.0 = 0.0", "more than 0"]),
    ("data.crop_scale", [0.08, 100], ["data.crop_scale.1 = 100", "at most 1"]),
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


@pytest.mark.parametrize(("valid", "path", "value", "parts"), CONTRADICTIONS)
def test_what_contradicts_itself_or_has_no_effect(valid, path, value, parts):
    one_line((path, value, parts), valid)


@pytest.mark.parametrize(("valid", "path", "value"), SENSIBLE)
def test_what_is_near_to_it_and_right(valid, path, value):
    read(changed(path, value, valid))


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


# What may stand at any key by mistake, and words that only pydantic's authors would use.
ANYTHING = [
    *(None, True, 0, -1, 1.5, math.nan, math.inf, 10**30, 1e300, "", "x", "0.1", "yes", "x" * 1000),
    *([], [1], [None], [[1]], [{}], {}, {"a": 1}, {1: 2}, {"": 1}, {"a b": {}}),
]
RAW_WORDS = ("Input", "should", "valid", "instance", "type=", "union", "pydantic", "Value error")


@pytest.mark.parametrize("valid", [VALID, {**VALID, "data": IMAGES}], ids=["digits", "images"])
def test_anything_at_any_key_is_taken_or_explained(valid):
    """One line for a value, whatever it is; for several keys at once one line each."""
    raw = read(valid).model_dump(mode="json")
    raw["recipe"]["by_bits"] = {"2": dict(RECIPE)}
    for key in RECIPE:
        raw["recipe"][key] = None
    raw["grid"]["bits"] = [2]
    read(raw)
    for path in paths(raw):
        for value in ANYTHING:
            try:
                read(with_value(raw, path, value))
            except SettingsError as error:
                lines = str(error).splitlines()
            else:
                continue
            message = f"{path}: {value!r:.50}: {lines}"
            assert not any(word in line for line in lines for word in RAW_WORDS), message
            assert all(line.startswith("params.yaml: ") for line in lines), message
            assert "this value is not allowed" not in str(lines), message
            assert all(len(line) < 500 for line in lines), message
            assert len(lines) == 1 or isinstance(value, dict | list), message


def paths(value, above=()):
    entries = value.items() if isinstance(value, dict) else ()
    entries = enumerate(value) if isinstance(value, list) else entries
    for key, inner in entries:
        yield (*above, key)
        yield from paths(inner, (*above, key))


def with_value(raw, path, value):
    """A copy in which one place has changed; all others are shared."""
    key, *below = path
    copied = raw.copy()
    copied[key] = with_value(raw[key], below, value) if below else value
    return copied


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
