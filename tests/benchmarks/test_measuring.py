"""The measurements themselves, as small as they get: that they run, and what they return."""

import dataclasses
import os

import pytest

from benchmarks import growth, loader, steps
from benchmarks.growth import measure_growth
from benchmarks.page import render
from benchmarks.steps import (
    Options,
    measure_annealing,
    measure_distillation,
    measure_steps,
    measure_tracker,
)
from benchmarks.subjects import DEIT, SIZES, Size

SMALL = Size(
    DEIT, 10, {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
)
OPTIONS = Options(sizes=("deit_tiny",), batch=2, rounds=2, compiled=False)
MACHINE = {"date": "2000-01-01", "commit": "abc", "uncommitted": False, "processor": "P"}
MACHINE |= {"cores": 1, "threads": 1, "gpu": None, "python": "3", "torch": "2", "timm": "1"}


@pytest.fixture
def small(monkeypatch):
    """Models of one block in the place of DeiT-T."""
    monkeypatch.setitem(SIZES, "deit_tiny", SMALL)


def test_ratios_of_steps_reach_the_page(small, monkeypatch):
    monkeypatch.setattr(steps, "SAMPLE_EVERY", 2)
    results = {
        "steps": measure_steps(OPTIONS),
        "distillation": measure_distillation(OPTIONS),
        "annealing": measure_annealing(OPTIONS),
        "tracker": measure_tracker(OPTIONS),
    }
    rows = results["steps"]["deit_tiny"]
    assert rows["full_precision"]["ratio"]["median"] == 1.0
    assert rows["full_precision"]["saved_bytes_per_image"] > 0
    assert rows["statsq"]["plain_saved_bytes_per_image"] > rows["statsq"]["saved_bytes_per_image"]
    assert results["tracker"]["micro"]["statsq"]["ratio"]["n"] == 2
    page = render({name: {"machine": MACHINE, "result": found} for name, found in results.items()})
    assert "DeiT-T W2A2: QAT step / full-precision step, both eager | 2.04x | <= 1.25x |" in page
    assert page.count("n = 2 |") >= 8


def test_growth_follows_the_batch(small, monkeypatch):
    kinds = {
        "batch": [(b, dataclasses.replace(SMALL), b) for b in (1, 2)],
    }
    monkeypatch.setattr(growth, "_sizes", lambda: kinds)
    found = measure_growth(OPTIONS)
    assert [value for value, _ in found["batch"]["statsq"]["points"]] == [1, 2]
    assert isinstance(found["batch"]["full_precision"]["slope"], float)


def test_the_loader_alone(monkeypatch, capsys):
    """The command, with one worker process and without; it leaves the environment as it was."""
    names = ("OFQ_DATA_DIR", "OFQ_WORKERS", "XDG_CACHE_HOME")
    before = {name: os.environ.get(name) for name in names}
    words = ["loader", "--no-model", "--count", "32", "--rounds", "1", "--workers", "0", "1"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(loader, "FASHION_IMAGES", 256)
    loader.main()
    out = capsys.readouterr().out
    for kind in ("imagenet_train", "imagenet_eval"):
        assert f"{kind}, bare loop: " in out
        assert f"{kind}, 1 workers: " in out
    assert "digits, 0 workers: " in out
    assert "waits" not in out
    assert {name: os.environ.get(name) for name in names} == before


def test_the_loader_beside_a_model_on_given_images(small, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(loader, "FASHION", tmp_path / "none")
    for seed, split in enumerate(("train", "val")):
        loader.generate(tmp_path / "mine" / split, 32, seed)
    words = ["loader", "--images", str(tmp_path / "mine"), "--rounds", "1", "--workers", "0"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(loader, "SIZES", {"deit_tiny": Size(DEIT, 1000, {"depth": 1})})
    loader.main()
    out = capsys.readouterr().out
    assert "of a step waits for its images" in out
    assert "fashion" not in out
