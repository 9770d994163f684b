"""SIGTERM to a stage whose images are read by other processes, which may get it as well."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from ofq_core import checkpoints
from ofq_core.models import build_model
from pipelines.params import load_study
from tests.patience import PATIENCE

# Short ones: the signal comes in the second or third.
EPOCHS = 30
SETTINGS = (
    "preset=imagenet_deit_small",
    "quant.wbits=3",
    *("data.size=32", "data.val_share=0.2", "data.max_unreadable=0"),
    *("model.num_classes=2", "model.img_size=32", "model.patch_size=8", "model.embed_dim=16"),
    *("model.depth=1", "model.num_heads=2"),
    *(
        "recipe.batch_size=8",
        "recipe.mix_group=8",
        f"recipe.epochs={EPOCHS}",
        "recipe.cga_epochs=1",
    ),
    *("recipe.cooldown_epochs=0", "recipe.warmup_epochs=0", "recipe.threads=1"),
    *("teacher.pretrained=null", "teacher.checkpoint=teacher.pt"),
)
STUDENT = "results/experiment/student.pt"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of noise: 40 images each to train, 4 to test."""
    root = tmp_path_factory.mktemp("sets")
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 4)):
        for label in range(2):
            folder = root / "imagenet" / split / f"n{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def prepared(smoke, images, command, tmp_path_factory):
    """A folder with data and a teacher, and the environment that goes with it; then its student."""
    folder = shutil.copytree(smoke, tmp_path_factory.mktemp("readers") / "work")
    extra = {"OFQ_DATA_DIR": str(images), "OFQ_WORKERS": "2"}

    def run(*words):
        done = command(folder, *words, **extra)
        assert done.code == 0, done.err

    run("pipelines.params", *SETTINGS)
    study = load_study(folder / "params.yaml")
    teacher = build_model(study.model, 3)
    checkpoints.save(folder / "teacher.pt", teacher.state_dict())
    run("pipelines.prepare")
    run("pipelines.teacher")
    undisturbed = shutil.copytree(folder, folder.with_name("undisturbed"))
    done = command(undisturbed, "pipelines.qat", **extra)
    assert done.code == 0, done.err
    return folder, extra, (undisturbed / STUDENT).read_bytes()


@pytest.mark.parametrize(
    ("processes", "whom"), [(1, "main process"), (1, "all processes"), (2, "all processes")]
)
def test_sigterm(processes, whom, prepared, environment, command, tmp_path):
    folder, extra, student = prepared
    folder = shutil.copytree(folder, tmp_path / "work")
    path = folder / "progress.json"
    with subprocess.Popen(
        [sys.executable, "-m", "slurm.run", "--", "python", "-m", "pipelines.qat"],
        cwd=folder,
        env=environment
        | extra
        | {"OFQ_PROGRESS": str(path), "OFQ_PROCESSES": str(processes), "OFQ_DEVICE": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            until = time.monotonic() + PATIENCE
            while not (path.exists() and json.loads(path.read_text())["epoch"] > 1):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < until
                time.sleep(0.01)
            if whom == "main process":
                process.send_signal(signal.SIGTERM)
            else:
                os.killpg(process.pid, signal.SIGTERM)
            _, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 143, err
    if processes == 1:
        # The readers died of the same signal, and may be complained of after it.
        assert any(line.startswith("stopped on request") for line in err.splitlines()), err
    done = command(folder, "pipelines.qat", **extra)
    assert done.code == 0, done.err
    if whom == "main process":
        assert "Traceback" not in err
        assert "stopped on request after epoch " in err
        assert "going on after epoch" in done.out
    # The sums of two processes have other last bits.
    if processes == 1:
        assert (folder / STUDENT).read_bytes() == student
