"""ImageNet's recipes are those of the released scripts, and their headers say what is known."""

import functools
import re
import shutil
from pathlib import Path

import pytest
import yaml

from ofq_core.settings import ImageSettings
from ofq_core.training.schedule import learning_rate
from pipelines.params import load_study

ROOT = Path(__file__).parents[2]
PUBLISHED = yaml.safe_load((ROOT / "tables/published.yaml").read_text())
MODELS = ("deit_tiny", "deit_small", "swin_tiny")
IMAGENET = [f"imagenet_{model}{cheap}" for model in MODELS for cheap in ("", "_cheap")]

# The table of the released scripts (spec, section 7.2), and the images per GPU where it mixes them.
COLUMNS = ("batch_size", "lr", "weight_decay", "warmup_epochs", "mixup", "cutmix", "mix_group")
TABLE = {
    ("deit_tiny", 2): (560, 5.47e-4, 0.05, 5, 0, 0, None),
    ("deit_tiny", 3): (560, 5.47e-4, 0.05, 5, 0, 0, None),
    ("deit_tiny", 4): (560, 5.47e-4, 0.05, 5, 0, 0, None),
    ("deit_small", 2): (560, 5.47e-4, 0.05, 5, 0, 0, None),
    ("deit_small", 3): (800, 3.2e-4, 0.0, 0, 0.8, 1.0, 100),
    ("deit_small", 4): (800, 3.2e-4, 0.0, 0, 0.8, 1.0, 100),
    ("swin_tiny", 2): (512, 5.0e-4, 0.05, 5, 0, 0, None),
    ("swin_tiny", 3): (512, 2.0e-4, 0.0, 0, 0.8, 1.0, 64),
    ("swin_tiny", 4): (512, 2.0e-4, 0.0, 0, 0.8, 1.0, 64),
}
# Views of an image in a row: timm's RepeatAugSampler with 3 in DeiT-S at 3 and 4 bits.
REPEATED = {("deit_small", 3): 3, ("deit_small", 4): 3}
# What all nine have in common (section 7.1).
ALWAYS = {
    "epochs": 300,
    "cooldown_epochs": 10,
    "cga_epochs": 30,
    "min_lr": 1e-5,
    "warmup_lr": 1e-6,
    "label_smoothing": 0.0,
    "mix_prob": 1.0,
    "mix_switch_prob": 0.5,
    "mix_smoothing": 0.1,
    "clip_grad": None,
    "ema_decay": None,
    "precision": "fp32",
    "channels_last": False,
}
# How often and with how many threads: says nothing about the mathematics.
MACHINE = {"checkpoint_seconds", "compile", "oscillation_every", "threads"}
NAMES = {
    "deit_tiny": ("deit_tiny_distilled_patch16_224", "timm"),
    "deit_small": ("deit_small_distilled_patch16_224", "timm"),
    "swin_tiny": ("swin_tiny_patch4_window7_224", "torchvision"),
}
IMAGES = {
    "size": 224,
    "channels": 3,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_scale": (0.08, 1.0),
    "crop_ratio": (3 / 4, 4 / 3),
    "pad": 0,
    "interpolation": "random",
    "hflip": 0.5,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "erase_prob": 0.25,
    "erase_mode": "pixel",
    "erase_count": 1,
    "crop_pct": 0.9,
    "eval_interpolation": "bicubic",
    "val_share": 0.01,
    "subset": None,
}


@pytest.fixture(scope="module")
def study_of(smoke, command, tmp_path_factory):
    """The settings that overrides of conf/ make."""
    folder = shutil.copytree(smoke, tmp_path_factory.mktemp("recipes") / "work")

    @functools.cache
    def compose(*overrides):
        done = command(folder, "pipelines.params", *overrides)
        assert done.code == 0, done.err
        return load_study(folder / "params.yaml")

    return compose


@pytest.mark.parametrize(("model", "bits"), TABLE, ids=lambda value: str(value))
def test_the_recipe_of_each_bit_width(model, bits, study_of):
    """`-S preset=imagenet_deit_small -S quant.wbits=3` is all that needs to be said."""
    study = study_of(f"preset=imagenet_{model}", f"quant.wbits={bits}")
    run = study.experiment()
    recipe = run.recipe.model_dump(exclude=MACHINE)
    assert recipe == {
        **ALWAYS,
        **dict(zip(COLUMNS, TABLE[model, bits], strict=True)),
        "repeated_augmentation": REPEATED.get((model, bits), 1),
    }
    assert (run.quant.wbits, run.quant.abits, run.quant.edge_bits) == (bits, bits, 8)
    assert (run.quant.cga, run.quant.boundary_range) == (True, 0.005)
    assert (run.model.name, study.teacher.pretrained) == NAMES[model]
    assert run.distill.model_dump() == {
        "hard_weight": 1.0,
        "soft_weight": 1.0,
        "temperature": 1.0,
        "cache_teacher": False,
    }
    for method in study.grid.methods:
        assert study.cell(method, bits, 7).recipe == run.recipe, "the grid takes the same"


def test_global_batches_are_those_of_the_released_machines():
    """Images per GPU times GPUs, and the optimizer steps in an epoch of 1,281,167 images."""
    per_gpu = {(4, 140): 560, (8, 100): 800, (8, 64): 512}
    assert {gpus * images for gpus, images in per_gpu} == {row[0] for row in TABLE.values()}
    steps = {batch: 1281167 // batch for batch in per_gpu.values()}
    assert steps == {560: 2287, 800: 1601, 512: 2502}


@pytest.mark.parametrize("preset", IMAGENET)
def test_a_value_that_is_dialled_wins_at_every_bit_width(preset, study_of):
    study = study_of(f"preset={preset}", "recipe.lr=1e-3", "recipe.weight_decay=0.0")
    for bits in study.grid.bits:
        recipe = study.cell("ofq", bits, 0).recipe
        assert (recipe.lr, recipe.weight_decay) == (1e-3, 0.0)


def test_the_recipe_of_one_bit_width_can_be_dialled(study_of):
    study = study_of("preset=imagenet_deit_small", "recipe.by_bits.4.lr=1e-3")
    assert [study.cell("ofq", bits, 0).recipe.lr for bits in (2, 3, 4)] == [5.47e-4, 3.2e-4, 1e-3]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_learning_rates(model, bits, study_of):
    """Per epoch, by hand: lr_min + (lr - lr_min) (1 + cos(pi e / 300)) / 2, warm-up from 1e-6."""
    recipe = study_of(f"preset=imagenet_{model}", f"quant.wbits={bits}").experiment().recipe
    rates = {
        epoch: learning_rate(
            epoch, recipe.epochs, recipe.lr, recipe.min_lr, recipe.warmup_lr, recipe.warmup_epochs
        )
        for epoch in (0, 1, 5, 150, 299, 300, 339)
    }
    wanted = {
        5.47e-4: (1e-6, 1.102e-4, 5.46632e-4, 2.785e-4, 1.001472e-5, 1e-5, 1e-5),
        5.0e-4: (1e-6, 1.008e-4, 4.996643e-4, 2.55e-4, 1.001343e-5, 1e-5, 1e-5),
        3.2e-4: (3.2e-4, 3.199915e-4, 3.197876e-4, 1.65e-4, 1.00085e-5, 1e-5, 1e-5),
        2.0e-4: (2.0e-4, 1.999948e-4, 1.998698e-4, 1.05e-4, 1.000521e-5, 1e-5, 1e-5),
    }[recipe.lr]
    assert list(rates.values()) == pytest.approx(wanted, rel=2e-6)


@pytest.mark.parametrize("preset", IMAGENET)
def test_the_images_and_their_augmentation(preset, study_of):
    data = study_of(f"preset={preset}").data
    assert isinstance(data, ImageSettings)
    assert {key: getattr(data, key) for key in IMAGES} == IMAGES


@pytest.mark.parametrize("preset", IMAGENET)
def test_a_pretrained_teacher_needs_no_training(preset, study_of):
    study = study_of(f"preset={preset}")
    assert (study.teacher.recipe, study.teacher.checkpoint) == (None, None)
    assert study.grid.full_precision_seeds == ()
    assert study.model.num_classes == 1000


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_the_cheap_track(model, bits, study_of):
    """Ten epochs of soft labels alone, without mixing, the same at all bit widths."""
    study = study_of(f"preset=imagenet_{model}_cheap", f"quant.wbits={bits}")
    run = study.experiment()
    assert (run.recipe.epochs, run.recipe.cga_epochs, run.recipe.mixes) == (10, 1, False)
    assert (run.distill.hard_weight, run.distill.soft_weight) == (0.0, 1.0)
    assert (run.model.name, study.teacher.pretrained) == NAMES[model]


# Headers


def header(preset):
    """The comment at the top of a preset, in one line."""
    lines = (ROOT / f"conf/preset/{preset}.yaml").read_text().splitlines()
    comment = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.removeprefix("#").strip() for line in comment)


@pytest.mark.parametrize("model", MODELS)
def test_published_accuracies(model):
    row = next(r for r in PUBLISHED["main"] if (r["paper"], r["model"]) == ("ofq", model))
    told = re.findall(r"(\d) bits (\d+\.\d+)", header(f"imagenet_{model}").split("Published:")[1])
    assert {f"w{bits}a{bits}": float(top1) for bits, top1 in told[:3]} == {
        key: row[key] for key in ("w2a2", "w3a3", "w4a4")
    }
    assert f"(top-1 %, {row['trust']}: " in header(f"imagenet_{model}")


@pytest.mark.parametrize("model", MODELS)
def test_what_is_known_of_the_cost(model):
    """Every number is in published.yaml, with how far it can be trusted; else it is not known."""
    told = header(f"imagenet_{model}").split("Cost:")[1].split("Machine:")[0]
    whole, epoch = (PUBLISHED["training_cost"][i] for i in (0, 3))
    assert [whole["what"], epoch["what"]] == [
        "OFQ Swin-T W4A4, whole run",
        "OFQ recipe Swin-T W4A4, bf16, per epoch on 8 x H100",
    ]
    if model != "swin_tiny":
        assert told.strip() == "not known."
        assert not any(
            name in cost["what"]
            for cost in PUBLISHED["training_cost"]
            for name in ("DeiT-T", "DeiT-S")
        )
        return
    assert f"{whole['minutes']} minutes and {whole['peak_memory_gb']} GB peak memory" in told
    assert f"({whole['trust']}, from {whole['source']};" in told
    assert f"{epoch['minutes']} minutes an epoch at 4 bits in bf16 on 8 x H100" in told
    assert f"({epoch['trust']})" in told
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", told)]
    assert numbers == [18360, 37.5, 4, 10, 4, 16, 8, 100]


def test_what_was_reproduced_outside():
    (row,) = PUBLISHED["outside_reproduction"]
    told = header("imagenet_swin_tiny").split("Reproduced outside:")[1].split("Cost:")[0]
    assert (row["model"], row["bits"]) == ("swin_tiny", "w4a4")
    assert f"4 bits {row['top1']} after {row['epochs']} epochs ({row['trust']}, one seed" in told
    others = [m for m in MODELS if "Reproduced outside" in header(f"imagenet_{m}")]
    assert others == ["swin_tiny"]


@pytest.mark.parametrize("model", MODELS)
def test_the_cheap_track_promises_nothing(model):
    text = header(f"imagenet_{model}_cheap")
    assert "Accuracy: not known." in text
    assert "Cost: not known;" in text
    assert not re.search(r"\d\d\.\d", text), "no accuracy of another recipe"


@pytest.mark.parametrize("preset", IMAGENET)
def test_the_command_of_the_header_names_the_preset(preset):
    (command,) = re.findall(r"Command: (dvc exp run .*? evaluate)", header(preset))
    assert f"-S preset={preset} " in command


# docs/recipes.md


def test_the_page_names_every_preset_and_no_other():
    text = (ROOT / "docs/recipes.md").read_text().split("## ImageNet")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == {path.stem for path in (ROOT / "conf/preset").glob("*.yaml")}


def test_the_page_has_the_table():
    """Every number of docs/recipes.md is that of the recipes, or published."""
    text = (ROOT / "docs/recipes.md").read_text().split("## ImageNet")[1].split("\nAll:")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    found, model = {}, ""
    for name, bits, *values in ([cell.strip() for cell in row] for row in rows):
        model = name.strip("`").removeprefix("imagenet_") or model
        found[model, int(bits)] = values
    assert set(found) == set(TABLE)
    for (model, bits), (top1, batch, lr, decay, warmup, mixing, repeated) in found.items():
        row = next(r for r in PUBLISHED["main"] if (r["paper"], r["model"]) == ("ofq", model))
        assert float(top1) == row[f"w{bits}a{bits}"]
        mixup, cutmix = (0, 0) if mixing == "off" else map(float, mixing.split(","))
        numbers = (int(batch), float(lr), float(decay), int(warmup), mixup, cutmix)
        assert numbers == TABLE[model, bits][:6]
        assert (1 if repeated == "off" else int(repeated)) == REPEATED.get((model, bits), 1)
