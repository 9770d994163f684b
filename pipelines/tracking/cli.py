"""`python -m pipelines.tracking`: log result folders later, attach tables, look at the store."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from .errors import ResultFolderError, StoreError, TrackingError, redact
from .record import EXPERIMENT_FOLDER, RUN_NAME, RunRecord, read_folder
from .where import SWITCH, check_reachable, enabled, repo_root, tracking_uri

LOCAL_UI = "http://127.0.0.1:5000"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when everything asked for was done, 1 otherwise, 2 for bad usage."""
    args = _parser().parse_args(arguments)
    root: Path = (args.root or repo_root()).resolve()
    if not enabled():
        print(f"tracking is off ({SWITCH}={os.environ[SWITCH]})")
        return 0
    try:
        status: int = args.run(args, root)
    except TrackingError as error:
        print(f"tracking: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.tracking", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="{log,rows,init,status}")

    log = commands.add_parser("log", help="log result folders that are not in MLflow yet")
    log.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="default: all")
    log.set_defaults(run=_log)
    rows = commands.add_parser("rows", help="attach the rendered table to its rows' parent runs")
    rows.add_argument("--rendered", type=Path, default=Path("tables/rendered"))
    rows.add_argument("--study", required=True)
    rows.set_defaults(run=_rows)
    init = commands.add_parser("init", help="create the store, so that the first run need not")
    init.set_defaults(run=_init)
    status = commands.add_parser("status", help="where the store is, and what is not in it")
    status.set_defaults(run=_status)
    serve = commands.add_parser("serve")  # a stage's helper process; not for typing
    serve.add_argument("--parent", type=int, required=True)
    serve.set_defaults(run=_serve)

    for command in (log, rows, init, status, serve):
        command.add_argument("--root", type=Path, help="main repository (default: found)")
    for command in (log, status):
        command.add_argument("--results", type=Path, default=Path("results"), metavar="FOLDER")
    return parser


def _log(args: argparse.Namespace, root: Path) -> int:
    chosen = [folder.resolve() for folder in args.folders]
    folders = chosen or _all_folders(args.results.resolve())
    if not folders:
        print(f"no result folders in {args.results}")
        return 0
    store_uri = tracking_uri(root)
    records, broken = _read(folders)
    outcomes: Counter[str] = Counter()
    if records:
        _enter(root)
        from .store import Store

        store = Store(store_uri)
        # Oldest first, so that a parent run starts with its first child.
        for record in sorted(records, key=lambda record: record.start_ms):
            outcomes[store.log(record)] += 1
    for error in broken:
        print(f"tracking: {error}", file=sys.stderr)
    counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
    print(f"{redact(store_uri)}: {counts or 'nothing logged'}")
    return 1 if broken else 0


def _rows(args: argparse.Namespace, root: Path) -> int:
    rendered = args.rendered.resolve()
    _enter(root)
    from .rows import attach_rows
    from .store import Store

    for method, outcome in attach_rows(Store(tracking_uri(root)), rendered, args.study).items():
        print(f"{args.study}/{method}: {outcome}")
    return 0


def _init(args: argparse.Namespace, root: Path) -> int:
    _enter(root)
    from .store import Store

    print(f"{redact(Store(tracking_uri(root)).uri)} is ready")
    return 0


def _status(args: argparse.Namespace, root: Path) -> int:
    uri = tracking_uri(root)
    records, broken = _read(_all_folders(args.results.resolve()))
    print(f"store: {redact(uri)}")
    check_reachable(uri)
    _enter(root)
    from .store import Store

    store = Store(uri)
    missing = [record for record in records if not store.has(record)]
    print(f"result folders: {len(records)}, in MLflow: {len(records) - len(missing)}")
    for study in sorted({record.study for record in records}):
        page = store.runs_page(study)
        if page is not None:
            print(f"runs of {study}, when the UI runs: {ui_address(uri)}/{page}")
    for record in missing:
        print(f"not in MLflow: {record.folder}")
    for error in broken:
        print(f"unreadable: {error}")
    return 0


def ui_address(uri: str) -> str:
    """Where a browser, which asks for the user and password itself, finds the store."""
    parts = urlsplit(uri)
    if parts.scheme not in {"http", "https"}:
        return LOCAL_UI
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def _serve(args: argparse.Namespace, root: Path) -> int:
    _enter(root)
    from .serve import serve

    return serve(root, args.parent)


def _enter(root: Path) -> None:
    """Make this a logging process.

    mlflow resolves its default artifact folder against the working directory, which may be a
    temporary experiment that is about to be removed.
    """
    from .store import prepare_process

    prepare_process()
    try:
        os.chdir(root)
    except OSError as error:
        raise StoreError(tracking_uri(root), f"cannot enter {root}") from error


def _all_folders(results: Path) -> list[Path]:
    """Finished runs below `results`; a folder without metrics is still training."""
    found = [path for path in results.glob("*/*") if RUN_NAME.fullmatch(path.name)]
    found.append(results / EXPERIMENT_FOLDER)
    return sorted(path for path in found if (path / "metrics.json").is_file())


def _read(folders: Sequence[Path]) -> tuple[list[RunRecord], list[ResultFolderError]]:
    records: list[RunRecord] = []
    broken: list[ResultFolderError] = []
    for folder in folders:
        try:
            records.append(read_folder(folder))
        except ResultFolderError as error:
            broken.append(error)
    return records, broken
