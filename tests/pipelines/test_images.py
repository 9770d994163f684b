"""The ImageNet presets, run on a folder of small images: every stage, as a user would run them."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ofq_core import checkpoints
from ofq_core.models import build_model
from ofq_core.settings import ModelSettings

SMALL = (
    "data.size=32",
    "data.val_share=0.2",
    "model.num_classes=4",
    "model.img_size=32",
    "recipe.batch_size=16",
    "recipe.mix_group=8",
    "recipe.epochs=2",
    "recipe.cga_epochs=1",
    "recipe.warmup_epochs=0",
    "recipe.threads=1",
    "teacher.pretrained=null",
    "teacher.checkpoint=teacher.pt",
)
DEIT = ("model.patch_size=8", "model.embed_dim=16", "model.depth=1", "model.num_heads=2")
SWIN = (
    "model.patch_size=2",
    "model.embed_dim=8",
    "model.depths=[1,2]",
    "model.heads_per_stage=[1,2]",
    "model.window_size=4",
)
# Preset with its bits, sizes, and what the recipe of these bits turns on (spec 7.2).
STUDIES = {
    "deit": (("preset=imagenet_deit_small", "quant.wbits=3"), DEIT),
    "swin": (
        (
            "preset=imagenet_swin_tiny",
            "quant.wbits=2",
            "fidelity=released",
            "recipe.cooldown_epochs=1",
        ),
        SWIN,
    ),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Four classes of noise with a colour: 40 images each to train, 9 to test, one of them torn."""
    root = tmp_path_factory.mktemp("sets")
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 9)):
        for label in range(4):
            folder = root / "imagenet" / split / f"n{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 128, (40, 36, 3))
                pixels[..., label % 3] += 100 if label < 3 else 0
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    torn = root / "imagenet/train/n1/7.png"
    torn.write_bytes(torn.read_bytes()[:600])
    return root


@pytest.fixture(scope="module", params=STUDIES)
def finished(request, smoke, images, fresh_command, tmp_path_factory):
    """A folder in which all stages of a study have run; the training in two processes as well."""
    preset, sizes = STUDIES[request.param]
    folder = shutil.copytree(smoke, tmp_path_factory.mktemp(request.param) / "work")
    extra = {"OFQ_DATA_DIR": str(images), "OFQ_WORKERS": "1"}

    def run(*words, **more):
        done = fresh_command(folder, *words, **extra, **more)
        assert done.code == 0, done.err
        return done.out

    run("pipelines.params", *preset, *sizes, *SMALL, "data.max_unreadable=0.02")
    settings = yaml.safe_load((folder / "params.yaml").read_text())
    teacher = build_model(ModelSettings(**settings["model"]), 3)
    checkpoints.save(folder / "teacher.pt", teacher.state_dict())
    for stage in ("check", "prepare", "teacher"):
        run(f"pipelines.{stage}")
    run("slurm.run", "--", "python", "-m", "pipelines.qat", OFQ_PROCESSES="2")
    two = folder / "two"
    (folder / "results/experiment").rename(two)
    run("pipelines.qat")
    out = run("pipelines.evaluate")
    return request.param, folder, two, out


def test_metrics(finished):
    name, folder, _, out = finished
    metrics = json.loads((folder / "results/experiment/metrics.json").read_text())
    assert metrics["n_images"] == 36
    assert sum(metrics["per_class_correct"]) == metrics["n_correct"]
    assert metrics["per_class_images"] == [9, 9, 9, 9]
    assert metrics["top1_low"] < metrics["top1"] < metrics["top1_high"]
    assert 0 <= metrics["reference_top1"] <= 100
    assert metrics["unreadable_images"] == {"count": 1, "names": ["train/n1/7.png"]}
    assert f"({metrics['n_correct']} of 36 test images)" in out
    bits = {"deit": "w3a3", "swin": "w2a2"}[name]
    assert f"evaluate ofq-{bits}-s0" in out


def test_recipe_and_phases(finished):
    """What the bit width's recipe and the fidelity say is what ran."""
    name, folder, _, _ = finished
    settings = yaml.safe_load((folder / "results/experiment/settings.yaml").read_text())
    recipe = settings["recipe"]
    with (folder / "results/experiment/history.csv").open() as file:
        rows = list(csv.DictReader(file))
    phases = [row["phase"] for row in rows]
    if name == "deit":
        assert (recipe["mixup"], recipe["cutmix"], recipe["repeated_augmentation"]) == (0.8, 1, 3)
        assert (recipe["lr"], recipe["weight_decay"]) == (3.2e-4, 0)
        assert phases == ["qat", "qat", "anneal"]
    else:
        assert (recipe["mixup"], recipe["cutmix"], recipe["repeated_augmentation"]) == (0, 0, 1)
        assert (recipe["lr"], recipe["weight_decay"]) == (5e-4, 0.05)
        assert phases == ["qat", "qat", "cooldown", "anneal"]
    assert rows[-1]["unreadable_images"] == "1"
    assert 0 < float(rows[-1]["free_share"]) < 0.2


def test_two_processes_train_the_same(finished):
    """In FP32 the order of sums differs, and a code that flips moves losses by some percent.

    Losses that are added up wrongly over processes are half or twice that;
    tests/training/test_split_batch.py compares exactly.
    """
    _, folder, two, _ = finished
    losses = []
    for place in (folder / "results/experiment", two):
        with (place / "history.csv").open() as file:
            losses.append([float(row["train_loss"]) for row in csv.DictReader(file)])
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    environment = json.loads((two / "env.json").read_text())
    assert environment["processes"] == 2
    one, other = (
        torch.load(place / "student.pt", weights_only=True)
        for place in (folder / "results/experiment", two)
    )
    assert one.keys() == other.keys()


def test_the_command_for_any_checkpoint_agrees(finished, images, fresh_command):
    _, folder, _, _ = finished
    done = fresh_command(
        folder,
        "ofq_core.evaluate",
        "results/experiment",
        # The batches of the stage: in FP32 others may flip a code, and with it a class.
        *("--batch-size", "16"),
        *("--data", "data/imagenet", "--json", "found.json"),
        OFQ_DATA_DIR=str(images),
        OFQ_WORKERS="0",
    )
    assert done.code == 0, done.err
    found = json.dumps(json.loads((folder / "found.json").read_text()))
    metrics = json.loads((folder / "results/experiment/metrics.json").read_text())
    assert f'"n_correct": {metrics["n_correct"]}' in found
    assert f'"n_images": {metrics["n_images"]}' in found
