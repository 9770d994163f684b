"""A tracking server that does not answer: the run is safe, the message is one, the log is later."""

import json
import shutil

import pytest

NOWHERE = {"OFQ_TRACKING": "on", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
CELL = ("pipelines.grid", "--method", "ofq", "--bits", "2", "--seed", "0")
FOLDER = "results/smoke/ofq-w2a2-s0"


@pytest.fixture(scope="module")
def trained_cell(trained, command, tmp_path_factory):
    """A cell that was trained while the server was down."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("down") / "work")
    return folder, command(folder, *CELL, **NOWHERE)


def test_the_stage_succeeds_with_one_message(trained_cell):
    folder, done = trained_cell
    assert done.code == 0
    assert "Traceback" not in done.err
    (message,) = [line for line in done.err.splitlines() if "not logged" in line]
    assert NOWHERE["MLFLOW_TRACKING_URI"] in message
    assert f"safe in {FOLDER}" in message
    assert message.endswith(f"python -m pipelines.tracking log {FOLDER}")
    metrics = json.loads((folder / FOLDER / "metrics.json").read_text())
    assert metrics["n_images"] == 75
    assert "top-1" in done.out


def test_the_result_is_that_of_a_run_without_tracking(trained_cell, workspace, command):
    folder, _ = trained_cell
    assert command(workspace, *CELL).code == 0
    mine, theirs = ((root / FOLDER / "student.pt").read_bytes() for root in (folder, workspace))
    assert mine == theirs


def test_logging_later_fails_with_one_message_while_it_is_down(
    trained_cell, fresh_command, snapshot
):
    folder, _ = trained_cell
    before = snapshot(folder)
    done = fresh_command(folder, "pipelines.tracking", "log", "--root", str(folder), **NOWHERE)
    assert done.code == 1
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("tracking: MLflow store http://127.0.0.1:9 is not available")
    assert snapshot(folder) == before
