"""The loader beside a bare loop, and the rendering of one table beside reading its files."""

import json
import os

import pytest
import yaml

from benchmarks.loader import BATCH, bare_loop, image_folder, imagenet_settings, train_batches
from ofq_core.data import open_data
from ofq_core.data.transforms import train_transform
from tables.render import render

IMAGES = 2 * BATCH


@pytest.fixture(scope="module")
def prepared():
    """A small folder of JPEG images, and what `prepare` says of it."""
    with image_folder(None, IMAGES) as folders:
        yield folders


@pytest.mark.parametrize("how", ["bare loop", "loader"])
def test_loader(how, prepared, benchmark, monkeypatch):
    """Two batches with ImageNet's training transform, in this process."""
    root, folder = prepared
    monkeypatch.setitem(os.environ, "OFQ_WORKERS", "0")
    settings = imagenet_settings()
    data, transform = open_data(settings, folder), train_transform(settings)
    benchmark.group = "loader, two batches of ImageNet's training images"
    if how == "loader":
        count = benchmark(lambda: sum(len(batch.images) for batch in train_batches(data)))
    else:
        count = benchmark(lambda: bare_loop(root / "train", transform))
    assert count == IMAGES


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The files of eight made-up runs."""
    folder = tmp_path_factory.mktemp("benchmark") / "study"
    for method, toggles in {"lsq": ("lsq", False), "ofq": ("statsq", True)}.items():
        for bits in (2, 3):
            for seed in (0, 1):
                write_run(folder, method, toggles, bits, seed)
    return folder


def write_run(folder, method, toggles, bits, seed):
    weight, others = toggles
    quant = {"wbits": bits, "abits": bits, "edge_bits": 8, "boundary_range": 0.005}
    settings = {
        "study": folder.name,
        "method": method,
        "seed": seed,
        "quant": quant | {"weight": weight, "qkr": others, "cga": others, "qk_bias": True},
        "model": {"name": "synthetic_micro", "img_size": 8, "patch_size": 2}
        | {"embed_dim": 48, "depth": 2, "num_heads": 3},
        "data": {"name": "synthetic"},
        "recipe": {"epochs": 30, "cga_epochs": 5, "batch_size": 64, "lr": 0.001},
    }
    metrics = {"top1": 90.0, "top5": 99.5, "loss": 0.25, "n_images": 400, "n_correct": 360}
    metrics |= {"val_top1": 91.0, "epoch_selected": 33, "settings_sha256": "0" * 64}
    metrics |= {"oscillation": {"share": 0.05, "mean_frequency": 0.001, "flip_rate": 0.01}}
    metrics |= {"cost": {"train_seconds": 10.0, "model_bytes": 12345, "macs": 1000000}}
    env = {
        "versions": {"torch": "0.0.synthetic"},
        "device": "cpu",
        "git": {"commit": "abcdef0123456789", "dirty": False},
        "manifest_sha256": "1" * 64,
        "teacher_sha256": "2" * 64,
    }
    run = folder / f"{method}-w{bits}a{bits}-s{seed}"
    run.mkdir(parents=True)
    (run / "settings.yaml").write_text(yaml.safe_dump(settings))
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "env.json").write_text(json.dumps(env))


@pytest.mark.parametrize("how", ["read the files", "render"])
def test_table(how, results, tmp_path, benchmark):
    """All formats of the ablation table, figure included, and the files it is made of."""
    benchmark.group = "one table of eight runs"
    if how == "render":
        benchmark(lambda: render(results, tmp_path))
        assert (tmp_path / "ablation.md").is_file()
        return

    def read():
        return [
            (yaml.safe_load((run / "settings.yaml").read_text()), json.loads(metrics.read_text()))
            for metrics in results.glob("*/metrics.json")
            for run in [metrics.parent]
        ]

    assert len(benchmark(read)) == 8
