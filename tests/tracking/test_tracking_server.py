"""A tracking server instead of a file: the same runs, with the server's own artifact store."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE


def ask(address: str, path: str) -> Any:
    with urllib.request.urlopen(f"{address}/api/2.0/{path}", timeout=PATIENCE) as answer:
        return json.load(answer)


def test_logging_to_a_server(
    tmp_path: Path,
    address: str,
    make_run: Callable[..., Path],
    cli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    make_run(tmp_path, study="remote")
    # The server asks nobody who they are; one behind a proxy would.
    uri = address.replace("//", "//user:s3cret@")
    shown = uri.replace("user:s3cret", "***")
    for words, expected in (
        (("log",), f"{shown}: 1 logged"),
        (("log",), f"{shown}: 1 unchanged"),
        (("init",), f"{shown} is ready"),
        (("status",), f"store: {shown}\n"),
        (("status",), f"runs of remote, when the UI runs: {address}/#/experiments/"),
    ):
        done = cli(tmp_path, *words, MLFLOW_TRACKING_URI=uri)
        assert (done.returncode, done.stderr) == (0, "")
        assert expected in done.stdout
        assert "s3cret" not in done.stdout
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "mlruns").exists()
    found = ask(address, "mlflow/experiments/get-by-name?experiment_name=remote")["experiment"]
    search = urllib.request.Request(
        f"{address}/api/2.0/mlflow/runs/search",
        data=json.dumps({"experiment_ids": [found["experiment_id"]]}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(search, timeout=PATIENCE) as answer:
        runs = {run["info"]["run_name"]: run["info"] for run in json.load(answer)["runs"]}
    assert runs.keys() == {"OFQ (StatsQ + QKR + CGA)", "ofq-w2a2-s0"}
    files = ask(address, f"mlflow/artifacts/list?run_id={runs['ofq-w2a2-s0']['run_id']}")["files"]
    assert {file["path"] for file in files} >= {"metrics.json", "settings.yaml", "history.csv"}
