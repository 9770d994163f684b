"""Reading result folders and finding the store: no mlflow involved."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.tracking.cli import ui_address
from pipelines.tracking.errors import ResultFolderError, StoreError, TrackingError, redact
from pipelines.tracking.messages import Handed, not_logged
from pipelines.tracking.record import read_folder
from pipelines.tracking.where import (
    check_reachable,
    enabled,
    lock_path,
    repo_root,
    tracking_uri,
)
from tests.patience import PATIENCE

MakeRun = Callable[..., Path]


def test_importing_the_package_imports_neither_mlflow_nor_torch() -> None:
    code = (
        "import sys, pipelines.tracking, pipelines.tracking.cli;"
        "print(sorted({'mlflow', 'torch', 'ofq_core.settings', 'sqlalchemy'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_record_of_a_seed(tmp_path: Path, make_run: MakeRun) -> None:
    record = read_folder(make_run(tmp_path, "ofq", 3, seed=1, top1=0.875))
    assert (record.study, record.method, record.kind) == ("digits", "ofq", "seed")
    assert record.name == record.cell == "ofq-w3a3-s1"
    assert record.metrics["top1"] == 0.875
    assert record.metrics["oscillation.in_band_0.005"] == 0.2
    assert record.metrics["cost.macs"] == 999
    assert "settings_sha256" not in record.metrics
    assert record.params["quant.wbits"] == "3"
    assert record.params["quant.qkr"] == "true"
    assert record.tags["git.commit"] == record.tags["mlflow.source.git.commit"] == "c" * 40
    assert record.tags["git.dirty"] == "false"
    assert record.tags["dvc.stage"] == "grid@ofq-w3a3-s1"
    assert "dvc.experiment" not in record.tags
    assert "slurm.job" not in record.tags
    assert record.end_ms - record.start_ms == 23_000
    names = {path.name for path in record.files}
    assert names == {
        "settings.yaml",
        "metrics.json",
        "history.csv",
        "env.json",
        "oscillation.json",
    }


def test_curves_have_epochs_as_steps_and_leave_out_words_and_gaps(
    tmp_path: Path, make_run: MakeRun
) -> None:
    curves = read_folder(make_run(tmp_path, "fp", 32)).curves
    loss = [point for point in curves if point.name == "history/train_loss"]
    assert [point.epoch for point in loss] == list(range(6))
    assert loss[1].value == 1.0
    assert loss[1].seconds == 7.0
    names = {point.name for point in curves}
    assert not names & {"history/phase", "history/epoch", "history/oscillation_share"}


def test_full_precision_has_no_oscillation(tmp_path: Path, make_run: MakeRun) -> None:
    metrics = read_folder(make_run(tmp_path, "fp", 32)).metrics
    assert not [name for name in metrics if name.startswith("oscillation")]


def test_two_seeds_differ_in_the_parameter_seed_only(tmp_path: Path, make_run: MakeRun) -> None:
    first = read_folder(make_run(tmp_path, seed=0)).params
    second = read_folder(make_run(tmp_path, seed=1)).params
    assert first.keys() == second.keys()
    assert [key for key in first if first[key] != second[key]] == ["seed"]


def test_paths_are_no_parameters(tmp_path: Path, make_run: MakeRun) -> None:
    params = read_folder(make_run(tmp_path)).params
    assert "data.root" not in params
    assert params["data.name"] == "digits"


def test_the_dialled_experiment_is_named_after_its_cell(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path, "ofq", 3, folder="experiment", experiment="lanky-toga")
    record = read_folder(folder)
    assert (record.kind, record.name) == ("experiment", "ofq-w3a3-s0 (lanky-toga)")


def test_digest_follows_content_and_not_time(tmp_path: Path, make_run: MakeRun) -> None:
    before = read_folder(make_run(tmp_path, top1=0.9)).digest
    assert read_folder(make_run(tmp_path, top1=0.9)).digest == before
    assert read_folder(make_run(tmp_path, top1=0.8)).digest != before


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("metrics.json", None, "metrics.json is missing"),
        ("settings.yaml", None, "settings.yaml is missing"),
        ("metrics.json", '{"top1": 0.', "metrics.json cannot be read"),
        ("metrics.json", "[]", "metrics.json does not hold a mapping"),
        ("metrics.json", '{"a":' * 100_000, "metrics.json cannot be read (nested too deeply)"),
        (
            "metrics.json",
            '{"top1": 1e999}',
            "metrics.json cannot be read (top1 = inf, expected",
        ),
        ("env.json", f'{{"a": {"9" * 400}}}', "env.json cannot be read (a = 9999"),
        ("metrics.json", '{"top1": 0.5}', "metrics.json has no 'settings_sha256'"),
        ("settings.yaml", "study: [", "settings.yaml cannot be read"),
        ("settings.yaml", "study: digits", "settings.yaml has no 'method'"),
        ("settings.yaml", "{study: a, method: b, quant: 3}", "unexpected content"),
        ("settings.yaml", "{study: /etc, method: b}", "settings.yaml: study = '/etc': expected"),
        ("settings.yaml", "{study: ../../x, method: b}", "study = '../../x': expected letters"),
        ("settings.yaml", "{study: a/b, method: b}", "study = 'a/b': expected letters"),
        ("settings.yaml", '{study: "a\\n", method: b}', r"study = 'a\n': expected letters"),
        ("settings.yaml", "{study: .., method: b}", "study = '..': expected letters"),
        ("settings.yaml", "{study: a, method: ../b}", "method = '../b': expected letters"),
        ("history.csv", "loss\n1\n", "history.csv has a row without an epoch"),
    ],
)
def test_a_broken_folder_is_refused_by_name(
    tmp_path: Path, make_run: MakeRun, file: str, text: str | None, reason: str
) -> None:
    folder = make_run(tmp_path)
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(ResultFolderError) as caught:
        read_folder(folder)
    assert str(folder) in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inside", ["standalone/tmpabc", "tmpabc", "tmpabc/results/digits"])
def test_a_temporary_experiment_belongs_to_the_main_repository(tmp_path: Path, inside: str) -> None:
    workspace = tmp_path / ".dvc/tmp/exps" / inside
    (workspace / ".git").mkdir(parents=True)
    assert repo_root(workspace) == tmp_path


def test_the_root_is_found_from_a_subfolder(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    below = tmp_path / "tables" / "rendered"
    below.mkdir(parents=True)
    assert repo_root(below) == tmp_path


def test_tracking_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert lock_path(tracking_uri(tmp_path)) == tmp_path / "mlflow.db.lock"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(tmp_path) == "http://server:5000"
    assert lock_path("http://server:5000") != lock_path("http://server:5001")


@pytest.mark.parametrize(
    ("value", "expected"), [("off", False), ("OFF", False), ("0", False), ("", True), ("on", True)]
)
def test_switch(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("OFQ_TRACKING", value)
    assert enabled() is expected


def test_a_corrupt_database_is_refused_before_mlflow_sees_it(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database, and it is long enough to tell")
    with pytest.raises(StoreError, match="file is not a database"):
        check_reachable(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        check_reachable(f"sqlite:///{tmp_path}/nowhere/mlflow.db")


def test_nothing_listens() -> None:
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9 .*refused"):
        check_reachable("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("uri", "password", "shown"),
    [
        ("http://user:s3cret@server:5000", "s3cret", "http://***@server:5000"),
        ("http://user:s3cr%65t@server:5000/x", "s3cret", "http://***@server:5000/x"),
        ("http://user:s3:ret@server:5000", "s3:ret", "http://***@server:5000"),
        ("http://s3cret@server", "s3cret", "http://***@server"),
        ("http://user:s3cret/@server:5000", "s3cret/", "http://***@server:5000"),
        ("http://user:a@s3cret@server:5000", "a%40s3cret", "http://***@server:5000"),
        ("http://user:s3cret#a?b@server:5000", "s3cret#a?b", "http://***@server:5000"),
        ("postgresql+psycopg2://me:s3cret@server/db", "s3cret", "postgresql+psycopg2://***@server"),
        ("mysql://server/db?user=me&password=s3%26et", "s3&et", "mysql://server/db***"),
        ("http://server/?token=s3cret", "s3cret", "http://server/***"),
        ("http://user:s3cret@server", "dXNlcjpzM2NyZXQ=", "http://***@server"),
        ("http://me you:s3cret@server", "s3cret", "http://***@server"),
        ("http:user:s3cret@server", "s3cret", "http:***@server"),
        ("user:s3cret@server", "s3cret", "***@server"),
        ("//user:s3cret@server", "s3cret", "//***@server"),
        ("http://server/#s3cret", "s3cret", "http://server/***"),
        ("http://server/?q=a@s3cret", "a@s3cret", "http://***@***"),
        ("sqlite:////tmp/mlflow.db?key=s3cret", "s3cret", "sqlite:////tmp/mlflow.db***"),
        ("sqlite:////tmp/a@b/mlflow.db", None, "sqlite:////tmp/a@b/mlflow.db"),
        ("http://server:5000", None, "http://server:5000"),
        ("databricks://profile", None, "databricks://profile"),
    ],
)
def test_secrets_of_the_store_are_not_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uri: str, password: str | None, shown: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    reason = f"cannot connect to {uri} with {password!r}"
    said = [
        str(StoreError(uri, reason)),
        not_logged(reason, [Handed(tmp_path)], tmp_path),
        redact(f"store: {uri}, {password}"),
    ]
    for text in said:
        assert shown in text
        assert password is None or not {uri, password} & set(re.split("[ ,']", text))


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"])
def test_secrets_beside_the_address_are_not_said(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "a b/c@")
    error = TrackingError("a b/c@ and a%20b%2Fc%40 are refused")
    assert str(error) == "*** and *** are refused"


@pytest.mark.parametrize(
    "uri",
    [
        "http://u:p/w@host:5000",
        "http://u/p@host",
        "http://u:p?w@host",
        "http://u:p#w@host",
        "http://host:99999",
    ],
)
def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError, match=r"no valid address; .* percent-encoded"):
        check_reachable(uri)


def test_the_user_of_an_address_reaches_the_server() -> None:
    asked: list[bytes] = []

    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            asked.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        check_reachable(f"http://user:a%40b@127.0.0.1:{server.getsockname()[1]}", timeout=PATIENCE)
        thread.join()
    credentials = base64.b64encode(b"user:a@b")
    assert asked[0].startswith(b"GET /health ")
    assert b"Authorization: Basic " + credentials in asked[0]


def _answer_once(server: socket.socket, reply: bytes | None) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        if reply is not None:
            connection.sendall(reply)
        else:
            connection.recv(4096)  # until the client gives up


@pytest.mark.parametrize(
    ("reply", "reason", "timeout"),
    [(b"HTTP/1.0 503 no\r\n\r\n", "answers 503", PATIENCE), (None, "timed out", 0.5)],
)
def test_a_server_that_does_not_work(reply: bytes | None, reason: str, timeout: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_answer_once, args=(server, reply))
        thread.start()
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(StoreError, match=reason):
            check_reachable(uri, timeout=timeout)
        thread.join()


def test_the_message_names_the_folder_and_a_command_that_works_at_the_root(tmp_path: Path) -> None:
    text = not_logged("no", [Handed(tmp_path / "results/digits/a b")], tmp_path)
    assert "results are safe in results/digits/a b" in text
    assert text.endswith("python -m pipelines.tracking log 'results/digits/a b'")


def test_the_message_of_a_temporary_experiment_survives_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / ".dvc/tmp/exps/standalone/tmpxyz/results/experiment"
    text = not_logged("no", [Handed(folder)], tmp_path)
    assert "tmpxyz" not in text
    assert text.endswith(
        "after `dvc exp apply` log them with: python -m pipelines.tracking log results/experiment"
    )


def test_the_message_of_rendered_tables_names_the_other_command(tmp_path: Path) -> None:
    text = not_logged("no", [Handed(tmp_path / "tables/rendered", "digits")], tmp_path)
    assert text.endswith("tracking rows --rendered tables/rendered --study digits")


def test_settings_may_hold_lists_and_nothing(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path)
    with (folder / "settings.yaml").open("a") as lines:
        lines.write("grid: {bits: [2, 3], limit: null}\n")
    params = read_folder(folder).params
    assert json.loads(params["grid.bits"]) == [2, 3]
    assert params["grid.limit"] == "null"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:s3cret@server:5000/mlflow/?token=s3cret", "http://server:5000/mlflow"),
        ("HTTPS://user:s3cret@server", "https://server"),
        ("http://server#s3cret", "http://server"),
        ("postgresql://user:s3cret@server/db", "http://127.0.0.1:5000"),
    ],
)
def test_the_address_for_a_browser_holds_no_secret(uri: str, shown: str) -> None:
    assert ui_address(uri) == shown
