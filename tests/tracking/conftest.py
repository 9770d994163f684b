"""Synthetic result folders, and an empty store that is created once and copied."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.patience import PATIENCE

CODE = Path(__file__).resolve().parents[2]
HEADER = (
    "epoch,phase,lr,train_loss,train_hard_loss,train_soft_loss,val_loss,val_top1,seconds,"
    "images_per_second,oscillation_share,flip_rate"
)


def write_run(
    root: Path,
    method: str = "ofq",
    bits: int = 2,
    seed: int = 0,
    top1: float = 0.9,
    folder: str | None = None,
    experiment: str | None = None,
    study: str = "digits",
) -> Path:
    """A result folder as a training stage leaves it."""
    cell = f"{method}-w{bits}a{bits}-s{seed}"
    target = root / "results" / (folder or f"{study}/{cell}")
    target.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "study": study,
        "method": method,
        "seed": seed,
        "quant": {
            "weight": "lsq" if method == "lsq" else "statsq",
            "wbits": bits,
            "abits": bits,
            "edge_bits": 8,
            "qkr": method == "ofq",
            "cga": method == "ofq",
            "boundary_range": 0.005,
        },
        "model": {"name": "micro", "depth": 4},
        "data": {"name": "digits", "root": "/somewhere/data"},
        "recipe": {"epochs": 6, "lr": 0.001},
    }
    text = yaml.safe_dump(settings, sort_keys=False)
    (target / "settings.yaml").write_text(text)
    measured = {"share": 0.03, "mean_frequency": 0.01, "flip_rate": 0.002, "in_band_0.005": 0.2}
    metrics = {
        "top1": top1,
        "top5": 0.99,
        "loss": 0.3,
        "n_images": 360,
        "n_correct": round(360 * top1),
        "val_top1": top1,
        "epoch_selected": 5,
        "oscillation": None if method == "fp" else measured,
        "cost": {"train_seconds": 20.0, "model_bytes": 54321, "macs": 999},
        "settings_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    (target / "metrics.json").write_text(json.dumps(metrics))
    with (target / "history.csv").open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(HEADER.split(","))
        for epoch in range(6):
            loss = 2.0 / (epoch + 1)
            share = "" if method == "fp" else 0.05
            rows.writerow([epoch, "qat", 1e-3, loss, 1, 1, loss, top1, 3.5, 400, share, 0.01])
    env = {
        "versions": {"torch": "2"},
        "device": "cpu",
        "git": {"commit": "c" * 40, "dirty": False},
        "dvc": {"stage": f"grid@{cell}", "experiment": experiment},
        "manifest_sha256": "1" * 64,
        "teacher_sha256": "2" * 64,
        "wall_seconds": 23.0,
        "slurm_job": None,
    }
    (target / "env.json").write_text(json.dumps(env))
    (target / "oscillation.json").write_text("{}")
    (target / "student.pt").write_bytes(b"weights")
    return target


def write_tables(root: Path, methods: tuple[str, ...] = ("lsq", "ofq"), mean: float = 0.8) -> Path:
    rendered = root / "tables" / "rendered"
    (rendered / "rows").mkdir(parents=True, exist_ok=True)
    cell = {"top1_mean": mean, "top1_sd": 0.01, "n": 3, "diff_to_lsq": None}
    table = {method: {"w2a2": cell, "w3a3": cell} for method in methods}
    (rendered / "ablation.json").write_text(json.dumps(table))
    (rendered / "ablation.html").write_text("<table></table>")
    for method in methods:
        (rendered / "rows" / f"{method}.md").write_text(f"| {method} | {mean} |\n")
    return rendered


def environment(**changes: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
    clean.pop("OFQ_TRACKING", None)
    return clean | {"PYTHONPATH": str(CODE), "MLFLOW_DISABLE_TELEMETRY": "true"} | changes


def start_cli(root: Path, *words: str, **changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.tracking", *words],
        cwd=root,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_cli(root: Path, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    process = start_cli(root, *words, **changes)
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template")
    done = run_cli(root, "init", "--root", str(root))
    assert done.returncode == 0, done.stderr
    return root / "mlflow.db"


@pytest.fixture
def repo(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with an empty store; the working directory of the test."""
    (tmp_path / ".dvc").mkdir()
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("OFQ_TRACKING", raising=False)
    return tmp_path


@pytest.fixture
def make_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture
def make_tables() -> Callable[..., Path]:
    return write_tables


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    return run_cli


@pytest.fixture
def cli_start() -> Callable[..., subprocess.Popen[str]]:
    return start_cli


@pytest.fixture
def clean_environment() -> Callable[..., dict[str, str]]:
    return environment


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running `mlflow ui` on a store with a few runs."""
    root = tmp_path_factory.mktemp("ui")
    for method, seed in (("lsq", 0), ("ofq", 0), ("ofq", 1)):
        write_run(root, method, 2, seed, top1=0.8 + 0.01 * seed)
    for words in (("log",), ("rows", "--study", "digits")):
        write_tables(root)
        done = run_cli(root, *words, "--root", str(root))
        assert done.returncode == 0, done.stderr
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = ["ui", "--backend-store-uri", "sqlite:///mlflow.db", "--port", str(port)]
    with (root / "ui.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, "--workers", "1"],
            cwd=root,
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(url, server, root / "ui.log")
        yield url
    finally:
        # The server has workers; its session ends as a whole.
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait_until_up(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=60).close()
            return
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        time.sleep(0.5)
    pytest.fail(f"mlflow ui did not start:\n{log.read_text()[-2000:]}")
