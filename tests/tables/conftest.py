"""A folder of synthetic result files. Every number in these tests is made up; none was measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tables.render import render
from tables.write import RenderedPaths

METHODS = {
    "fp": {"weight": "none", "qkr": False, "cga": False},
    "lsq": {"weight": "lsq", "qkr": False, "cga": False},
    "statsq": {"weight": "statsq", "qkr": False, "cga": False},
    "statsq_qkr": {"weight": "statsq", "qkr": True, "cga": False},
    "ofq": {"weight": "statsq", "qkr": True, "cga": True},
}
N_IMAGES = 400


class SyntheticStudy:
    """Writes run folders of the result protocol; accuracies are counts out of 400 images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self,
        method: str,
        bits: int,
        seed: int,
        n_correct: int = 360,
        share: float | None = 0.05,
        change: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None] | None = None,
        name: str | None = None,
    ) -> Path:
        """One finished run; `change` may edit settings, metrics and env before they are written."""
        settings = {
            "study": self.folder.name,
            "method": method,
            "seed": seed,
            "quant": {
                "wbits": bits,
                "abits": bits,
                "edge_bits": 8,
                "boundary_range": 0.005,
                "qk_bias": True,
            }
            | METHODS.get(method, METHODS["ofq"]),
            "model": {
                "name": "synthetic_micro",
                "img_size": 8,
                "patch_size": 2,
                "embed_dim": 48,
                "depth": 2,
                "num_heads": 3,
            },
            "data": {"name": "synthetic"},
            "recipe": {"epochs": 30, "cga_epochs": 5, "batch_size": 64, "lr": 0.001},
        }
        full = method == "fp"
        metrics = {
            "top1": 100 * n_correct / N_IMAGES,
            "top5": 99.5,
            "loss": 0.25 + seed,
            "n_images": N_IMAGES,
            "n_correct": n_correct,
            "val_top1": 91.0,
            "epoch_selected": 33,
            "oscillation": None
            if full
            else {"share": share, "mean_frequency": 0.001, "flip_rate": 0.01},
            "cost": {"train_seconds": 10.0 + seed, "model_bytes": 12345, "macs": 1000000},
            "settings_sha256": "0" * 64,
        }
        env = {
            "versions": {"torch": "0.0.synthetic"},
            "device": "cpu",
            "git": {"commit": "abcdef0123456789", "dirty": False},
            "manifest_sha256": "1" * 64,
            "teacher_sha256": None if full else "2" * 64,
        }
        if change is not None:
            change(settings, metrics, env)
        folder = self.folder / (name or f"{method}-w{bits}a{bits}-s{seed}")
        folder.mkdir(parents=True)
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        (folder / "env.json").write_text(json.dumps(env), encoding="utf-8")
        (folder / "history.csv").write_text("epoch,phase,lr\n0,qat,0.001\n", encoding="utf-8")
        (folder / "oscillation.json").write_text("{}", encoding="utf-8")
        return folder

    def complete(self) -> None:
        """All five rows, three bit widths, three seeds."""
        for seed in range(3):
            self.run("fp", 32, seed, 390 + seed)
            for row, method in enumerate(("lsq", "statsq", "statsq_qkr", "ofq")):
                for bits in (2, 3, 4):
                    n_correct = 330 + 20 * (bits - 2) + 4 * row + (seed * (row + 1) * bits) % 5
                    self.run(method, bits, seed, n_correct, share=0.12 / (1 + row) / bits)


@pytest.fixture
def study(tmp_path: Path) -> SyntheticStudy:
    """An empty results folder `synthetic` that the test fills."""
    folder = tmp_path / "results" / "synthetic"
    folder.mkdir(parents=True)
    return SyntheticStudy(folder)


@pytest.fixture
def complete(study: SyntheticStudy) -> SyntheticStudy:
    """A results folder with every cell of the ablation table."""
    study.complete()
    return study


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> RenderedPaths:
    """The complete synthetic study, rendered once; tests only read it."""
    root = tmp_path_factory.mktemp("tables")
    study = SyntheticStudy(root / "results" / "synthetic")
    study.complete()
    return render(study.folder, root / "rendered")
