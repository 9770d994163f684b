"""What MLflow holds after logging."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.tracking.errors import StoreError, TrackingError
from pipelines.tracking.record import read_folder
from pipelines.tracking.rows import attach_rows
from pipelines.tracking.store import Store, prepare_process
from pipelines.tracking.where import tracking_uri

# Third parties' own deprecations, met while mlflow opens its store.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]
MakeRun = Callable[..., Path]
MakeTables = Callable[..., Path]


@pytest.fixture
def store(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return Store(tracking_uri(repo))


def runs(store: Store, wanted: str = "") -> list[Any]:
    experiment = store._client.get_experiment_by_name("digits")
    return list(store._client.search_runs([experiment.experiment_id], wanted))


def kinds(store: Store) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for run in runs(store):
        found.setdefault(run.data.tags["ofq.kind"], []).append(run.info.run_name)
    return {kind: sorted(names) for kind, names in found.items()}


def test_one_experiment_a_parent_per_row_and_children(
    store: Store, repo: Path, make_run: MakeRun
) -> None:
    folders = [make_run(repo, "lsq", 2), make_run(repo, "ofq", 2), make_run(repo, "ofq", 3, seed=1)]
    assert [store.log(read_folder(folder)) for folder in folders] == ["logged"] * 3
    assert kinds(store) == {
        "row": ["LSQ", "OFQ (StatsQ + QKR + CGA)"],
        "seed": ["lsq-w2a2-s0", "ofq-w2a2-s0", "ofq-w3a3-s1"],
    }
    names = {run.info.run_id: run.info.run_name for run in runs(store)}
    parents = {
        run.info.run_name: names[run.data.tags["mlflow.parentRunId"]]
        for run in runs(store, "tags.`ofq.kind` = 'seed'")
    }
    assert parents["lsq-w2a2-s0"] == "LSQ"
    assert parents["ofq-w3a3-s1"] == parents["ofq-w2a2-s0"] == "OFQ (StatsQ + QKR + CGA)"


def test_the_experiment_is_marked_as_model_training_and_links_its_runs(
    store: Store, repo: Path, make_run: MakeRun
) -> None:
    store.log(read_folder(make_run(repo)))
    experiment = store._client.get_experiment_by_name("digits")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert (
        f"(#/experiments/{experiment.experiment_id}/runs?"
        in (experiment.tags["mlflow.note.content"])
    )


def test_a_child_holds_everything(store: Store, repo: Path, make_run: MakeRun) -> None:
    record = read_folder(make_run(repo, top1=0.75))
    store.log(record)
    (child,) = runs(store, "tags.`ofq.kind` = 'seed'")
    assert child.info.status == "FINISHED"
    assert child.info.end_time - child.info.start_time == 23_000
    assert child.data.params == record.params
    assert child.data.metrics["top1"] == 0.75
    assert child.data.metrics["oscillation.share"] == 0.03
    assert child.data.tags["ofq.settings_sha256"] == record.settings_sha256
    assert child.data.tags["manifest_sha256"] == "1" * 64
    curve = store._client.get_metric_history(child.info.run_id, "history/train_loss")
    assert [(point.step, point.value) for point in curve][:2] == [(0, 2.0), (1, 1.0)]
    assert curve[1].timestamp == child.info.start_time + 7000
    stored = repo / "mlruns" / "digits" / child.info.run_id / "artifacts"
    assert {path.name for path in stored.iterdir()} == {path.name for path in record.files}
    assert json.loads((stored / "metrics.json").read_text())["top1"] == 0.75


def test_logging_again_changes_nothing(store: Store, repo: Path, make_run: MakeRun) -> None:
    folder = make_run(repo)
    store.log(read_folder(folder))
    before = [(run.info.run_id, run.info.end_time) for run in runs(store)]
    assert store.log(read_folder(folder)) == "unchanged"
    assert Store(store.uri).log(read_folder(folder)) == "unchanged"
    assert [(run.info.run_id, run.info.end_time) for run in runs(store)] == before


def test_a_rerun_with_other_results_replaces_the_run(
    store: Store, repo: Path, make_run: MakeRun
) -> None:
    store.log(read_folder(make_run(repo, top1=0.5)))
    assert store.log(read_folder(make_run(repo, top1=0.6))) == "replaced"
    (child,) = runs(store, "tags.`ofq.kind` = 'seed'")
    assert child.data.metrics["top1"] == 0.6


def test_a_run_that_was_cut_off_is_replaced(
    store: Store, repo: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read_folder(make_run(repo))

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(store._client, "log_artifact", full_disk)
        with pytest.raises(StoreError, match="No space left on device"):
            store.log(record)
    assert not store.has(record)
    assert store.log(record) == "replaced"
    assert store.has(record)
    (child,) = runs(store, "tags.`ofq.kind` = 'seed'")
    assert child.info.status == "FINISHED"


def test_other_settings_are_another_run(store: Store, repo: Path, make_run: MakeRun) -> None:
    store.log(read_folder(make_run(repo, bits=3, folder="experiment")))
    store.log(read_folder(make_run(repo, bits=4, folder="experiment")))
    assert kinds(store) == {
        "experiments": ["experiments"],
        "experiment": ["ofq-w3a3-s0", "ofq-w4a4-s0"],
    }


def test_a_parent_deleted_in_the_ui_is_made_anew(
    store: Store, repo: Path, make_run: MakeRun
) -> None:
    record = read_folder(make_run(repo))
    store.log(record)
    (parent,) = runs(store, "tags.`ofq.kind` = 'row'")
    store._client.delete_run(parent.info.run_id)
    assert store.log(record) == "unchanged"
    (parent,) = runs(store, "tags.`ofq.kind` = 'row'")
    (child,) = runs(store, "tags.`ofq.kind` = 'seed'")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_an_experiment_deleted_in_the_ui_comes_back(
    store: Store, repo: Path, make_run: MakeRun
) -> None:
    record = read_folder(make_run(repo))
    store.log(record)
    found = store._client.get_experiment_by_name("digits")
    store._client.delete_experiment(found.experiment_id)
    again = Store(store.uri)
    assert not again.has(record)
    again.log(record)
    assert again.has(record)


def test_more_values_than_one_batch_takes(store: Store, repo: Path, make_run: MakeRun) -> None:
    folder = make_run(repo)
    header, *_ = (folder / "history.csv").read_text().splitlines()
    cells = ["qat", *["0.5"] * (len(header.split(",")) - 2)]
    rows = [",".join([str(epoch), *cells]) for epoch in range(250)]
    (folder / "history.csv").write_text("\n".join([header, *rows]))
    with (folder / "settings.yaml").open("a") as lines:
        lines.writelines(f"extra_{index}: {index}\n" for index in range(150))
    store.log(read_folder(folder))
    (child,) = runs(store, "tags.`ofq.kind` = 'seed'")
    assert child.data.params["extra_149"] == "149"
    for column in ("history/lr", "history/flip_rate"):
        assert len(store._client.get_metric_history(child.info.run_id, column)) == 250


def test_rows_go_to_the_parents(
    store: Store, repo: Path, make_run: MakeRun, make_tables: MakeTables
) -> None:
    store.log(read_folder(make_run(repo, "ofq")))
    rendered = make_tables(repo, mean=0.8)
    assert attach_rows(store, rendered, "digits") == {"lsq": "logged", "ofq": "logged"}
    assert attach_rows(store, rendered, "digits") == {"lsq": "unchanged", "ofq": "unchanged"}
    make_tables(repo, mean=0.9)
    assert attach_rows(store, rendered, "digits") == {"lsq": "replaced", "ofq": "replaced"}
    assert kinds(store)["row"] == ["LSQ", "OFQ (StatsQ + QKR + CGA)"]
    (parent,) = runs(store, "tags.`ofq.kind` = 'row' and tags.`ofq.method` = 'ofq'")
    assert parent.data.metrics == {
        f"{bits}.{name}": value
        for bits in ("w2a2", "w3a3")
        for name, value in (("top1_mean", 0.9), ("top1_sd", 0.01), ("n", 3.0))
    }
    assert parent.data.tags["mlflow.note.content"] == "| ofq | 0.9 |\n"
    table = repo / "mlruns" / "digits" / parent.info.run_id / "artifacts" / "table"
    assert {path.name for path in table.iterdir()} == {
        "ofq.md",
        "ablation.json",
        "ablation.html",
    }
    assert (table / "ofq.md").read_text() == "| ofq | 0.9 |\n"


@pytest.mark.parametrize("text", [None, "{", "{}", '{"ofq": {"mean": 1}}'])
def test_no_table_is_said_so(store: Store, tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "ablation.json").write_text(text)
    with pytest.raises(TrackingError, match=r"ablation\.json"):
        attach_rows(store, tmp_path, "digits")


@pytest.mark.parametrize(
    ("study", "method", "reason"),
    [
        ("../../x", "ofq", "study '../../x': expected letters"),
        ("/etc", "ofq", "study '/etc': expected letters"),
        ("", "ofq", "study '': expected letters"),
        ("digits", "../../x", "has a row '../../x': expected letters"),
    ],
)
def test_no_name_leads_out_of_its_folder(
    store: Store, repo: Path, make_tables: MakeTables, study: str, method: str, reason: str
) -> None:
    rendered = make_tables(repo, ("ofq",))
    table = (rendered / "ablation.json").read_text()
    (rendered / "ablation.json").write_text(table.replace("ofq", method))
    with pytest.raises(TrackingError, match=re.escape(reason)):
        attach_rows(store, rendered, study)
    assert not (repo / "mlruns").exists()


@pytest.fixture
def logging_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `prepare_process` changes, as it was before at the end of the test."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")


@pytest.mark.usefixtures("logging_process")
def test_nothing_that_a_library_says_tells_a_password(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = "http://user:s3cret@server"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    prepare_process()
    logging.getLogger("urllib3").warning("retrying %s", uri)
    sys.excepthook(RuntimeError, RuntimeError(f"{uri}: s3cret refused"), None)
    said = capsys.readouterr().err
    assert caplog.messages == ["retrying http://***@server"]
    assert "RuntimeError: http://***@server: *** refused" in said
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"


@pytest.mark.usefixtures("logging_process")
def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    for key in (
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
        "MLFLOW_LOGGING_LEVEL",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
        "MLFLOW_DISABLE_TELEMETRY",
    ):
        monkeypatch.setenv(key, "x")
        monkeypatch.delenv(key)
    prepare_process()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
