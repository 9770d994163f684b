"""The MLflow side: one experiment per study, a parent per table row, a child per result folder.

mlflow is imported when a store is opened, because the import alone costs seconds.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from .errors import StoreError, TrackingError, first_line, redact
from .labels import (
    CELL,
    DIGEST,
    EXPERIMENT_TAGS,
    EXPERIMENTS,
    KIND,
    METHOD,
    NOTE,
    PARENT,
    ROW,
    SETTINGS,
    experiment_note,
    row_label,
    runs_page,
)
from .record import RunRecord
from .where import artifact_root, check_reachable, lock_path, sqlite_path

Outcome = Literal["logged", "replaced", "unchanged"]
LOCK_SECONDS = 45.0
# The tracking server refuses larger batches.
_MAX_METRICS, _MAX_PARAMS = 1000, 100
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_Item = TypeVar("_Item")


def prepare_process() -> None:
    """Defaults for a process that does nothing but log: fail soon, print little, call nobody.

    What the user has set stays. No secret of the store is printed, whoever prints.
    """
    for key, value in _DEFAULTS.items():
        os.environ.setdefault(key, value)
    # mlflow would print the whole address of every run, password included.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    logging.setLogRecordFactory(_RedactedRecord)
    sys.excepthook = _print_redacted


class _RedactedRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 - the name is logging's
        return redact(super().getMessage())


def _print_redacted(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr)


class Store:
    """An open tracking store. Every method raises `TrackingError` and nothing else."""

    def __init__(self, uri: str) -> None:
        """Open the store, and create it where it is a SQLite file that does not exist yet.

        Raises:
            StoreError: the store does not answer or cannot be opened.
        """
        self.uri = uri
        self._experiments: dict[str, str] = {}
        check_reachable(uri)
        with self._guarded():
            from mlflow import MlflowClient

            # mlflow lets a hundred lines of migrations through at any level of its own.
            logging.getLogger("alembic").setLevel(logging.WARNING)
            with self._lock():
                _create_sqlite(uri)
                self._client: Any = MlflowClient(uri)
                self._client.search_experiments(max_results=1)

    def log(self, record: RunRecord) -> Outcome:
        """Log one result folder; the same folder again changes nothing.

        A run counts as the same when kind, cell and settings agree. Other files under the same
        identity (a rerun), or a run that an interrupted logger left open, are replaced: the new
        run is complete before the old one goes.

        Raises:
            TrackingError: the store refused or went away; the run is logged in full next time.
        """
        with self._guarded(), self._lock():
            experiment = self._experiment(record.study)
            kind, method = (ROW, record.method) if record.kind == "seed" else (EXPERIMENTS, "")
            parent = self._parent(experiment, kind, method, record.start_ms)
            identity = _identity(record)
            known = self._search(experiment, identity)
            same = [run for run in known if _complete(run, record.digest)][:1]
            fresh = None if same else self._create_child(experiment, parent, record, identity)
            for run in known:
                if run not in same:
                    self._client.delete_run(run.info.run_id)
            for run in same:
                if run.data.tags.get(PARENT) != parent.info.run_id:
                    self._client.set_tag(run.info.run_id, PARENT, parent.info.run_id)
            if fresh is not None and (parent.info.end_time or 0) < record.end_ms:
                self._client.set_terminated(parent.info.run_id, "FINISHED", record.end_ms)
            return "unchanged" if same else "replaced" if known else "logged"

    def has(self, record: RunRecord) -> bool:
        """Whether this folder, with these files, is logged completely."""
        with self._guarded():
            experiment = self._client.get_experiment_by_name(record.study)
            if experiment is None or experiment.lifecycle_stage == "deleted":
                return False
            identity = _identity(record)
            known = self._search(experiment.experiment_id, identity)
            return any(_complete(run, record.digest) for run in known)

    def runs_page(self, study: str) -> str | None:
        """The UI page with the study's runs, relative to the UI's address; None if unknown."""
        with self._guarded():
            found = self._client.get_experiment_by_name(study)
            return None if found is None else runs_page(found.experiment_id)

    def attach_row(
        self,
        study: str,
        method: str,
        metrics: dict[str, float],
        tags: dict[str, str],
        files: Sequence[Path],
        digest_tag: str,
    ) -> Outcome:
        """Give a table row's parent run its means and files; nothing where it has them already.

        Raises:
            TrackingError: the store refused or went away.
        """
        from mlflow.entities import Metric, RunTag

        with self._guarded(), self._lock():
            now = int(time.time() * 1000)
            parent = self._parent(self._experiment(study), ROW, method, now)
            before = parent.data.tags.get(digest_tag)
            if before == tags[digest_tag]:
                return "unchanged"
            run_id = parent.info.run_id
            for path in files:
                self._client.log_artifact(run_id, str(path), "table")
            # The digest goes in with the last call: an interrupted attachment is done again.
            self._client.log_batch(
                run_id,
                metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
                tags=[RunTag(key, value) for key, value in tags.items()],
            )
            return "replaced" if before else "logged"

    def _create_child(
        self, experiment: str, parent: Any, record: RunRecord, identity: dict[str, str]
    ) -> Any:
        from mlflow.entities import Metric, Param, RunTag

        tags = {**record.tags, **identity, METHOD: record.method, PARENT: parent.info.run_id}
        run = self._client.create_run(experiment, record.start_ms, tags, record.name)
        run_id = run.info.run_id
        params = [Param(key, value) for key, value in record.params.items()]
        metrics = [Metric(key, value, record.end_ms, 0) for key, value in record.metrics.items()]
        metrics += [
            Metric(
                point.name, point.value, record.start_ms + int(point.seconds * 1000), point.epoch
            )
            for point in record.curves
        ]
        # 1000 is the limit for metrics and parameters together.
        for chunk in _chunks(params, _MAX_PARAMS):
            fits = _MAX_METRICS - len(chunk)
            self._client.log_batch(run_id, params=chunk, metrics=metrics[:fits])
            metrics = metrics[fits:]
        for rest in _chunks(metrics, _MAX_METRICS):
            self._client.log_batch(run_id, metrics=rest)
        for path in record.files:
            self._client.log_artifact(run_id, str(path))
        # Digest and status last: a run without them was cut off and will be replaced.
        self._client.log_batch(run_id, tags=[RunTag(DIGEST, record.digest)])
        self._client.set_terminated(run_id, "FINISHED", record.end_ms)
        return run

    def _parent(self, experiment: str, kind: str, method: str, start_ms: int) -> Any:
        identity = {KIND: kind, METHOD: method} if kind == ROW else {KIND: kind}
        found = self._search(experiment, identity)
        if found:
            return found[0]
        name = row_label(method) if kind == ROW else EXPERIMENTS
        run = self._client.create_run(experiment, start_ms, identity, name)
        if kind == ROW:
            self._client.log_param(run.info.run_id, "method", method)
        # Ends with its latest child; until then at its own start, not `now`.
        self._client.set_terminated(run.info.run_id, "FINISHED", start_ms)
        return run

    def _experiment(self, study: str) -> str:
        known = self._experiments.get(study)
        if known is not None:
            return known
        found = self._client.get_experiment_by_name(study)
        if found is None:
            root = artifact_root(self.uri)
            location = None if root is None else (root / study).as_uri()
            made: str = self._client.create_experiment(study, location, EXPERIMENT_TAGS)
            present: dict[str, str] = dict(EXPERIMENT_TAGS)
        else:
            made, present = found.experiment_id, found.tags
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(made)
        for key, value in {**EXPERIMENT_TAGS, NOTE: experiment_note(made)}.items():
            # What a user wrote in the UI stays.
            if key not in present:
                self._client.set_experiment_tag(made, key, value)
        self._experiments[study] = made
        return made

    def _search(self, experiment: str, tags: dict[str, str]) -> list[Any]:
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        return list(self._client.search_runs([experiment], wanted, order_by=["start_time ASC"]))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        try:
            with FileLock(lock_path(self.uri), timeout=LOCK_SECONDS):
                yield
        except Timeout as error:
            reason = f"another process has been writing for {LOCK_SECONDS:.0f} s"
            raise StoreError(self.uri, reason) from error

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except TrackingError:
            raise
        except Exception as error:
            # Anything may come out of mlflow, SQLAlchemy, requests or a full disk, and none of
            # it may reach the stage whose results are already written.
            raise StoreError(self.uri, first_line(error)) from error


def _identity(record: RunRecord) -> dict[str, str]:
    """The tags that make two logs the same run: cell, settings, teacher, data, and experiment."""
    known = {KIND: record.kind, CELL: record.cell, SETTINGS: record.settings_sha256}
    decides = ["teacher_sha256", "manifest_sha256"]
    if record.kind == "experiment":
        decides.append("dvc.experiment")
    return {**known, **{key: record.tags[key] for key in decides if key in record.tags}}


def _complete(run: Any, digest: str) -> bool:
    return bool(run.info.status == "FINISHED" and run.data.tags.get(DIGEST) == digest)


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _create_sqlite(uri: str) -> None:
    """Create the database under another name first.

    The migrations are not one transaction: a process killed among them would leave a file that
    mlflow neither accepts nor repairs.
    """
    path = sqlite_path(uri)
    if path is None or path.exists():
        return
    from mlflow import MlflowClient

    half = path.with_name(f"{path.name}.new")
    half.unlink(missing_ok=True)
    MlflowClient(f"sqlite:///{half}").search_experiments(max_results=1)
    os.replace(half, path)
