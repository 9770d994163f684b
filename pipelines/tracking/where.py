"""Where the tracking store is, and whether it answers. Nothing here imports mlflow."""

from __future__ import annotations

import hashlib
import os
import socket
import sqlite3
import tempfile
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from .errors import URI, StoreError, first_line

SWITCH = "OFQ_TRACKING"
WORKSPACE = "OFQ_WORKSPACE"
_TEMPORARY = (".dvc", "tmp", "exps")
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SERVER_DOWN = {502, 503, 504}  # a proxy answers for a server that does not


def enabled() -> bool:
    """False when `OFQ_TRACKING` is `off` (or 0, no, false)."""
    return os.environ.get(SWITCH, "").strip().lower() not in {"off", "0", "no", "false"}


def temporary_workspace(path: Path) -> Path | None:
    """The DVC temporary experiment that holds `path`, or None.

    `dvc exp run --temp` uses `.dvc/tmp/exps/standalone/<name>`, the queue `.dvc/tmp/exps/<name>`.
    """
    found = _main_and_depth(path)
    if found is None:
        return None
    parts, depth = path.resolve().parts, found[1]
    skip = 1 if parts[depth : depth + 1] == ("standalone",) else 0
    return Path(*parts[: depth + skip + 1])


def _main_and_depth(path: Path) -> tuple[Path, int] | None:
    parts = path.resolve().parts
    for index in range(1, len(parts)):
        if parts[index : index + 3] == _TEMPORARY:
            return Path(*parts[:index]), index + 3
    return None


def repo_root(start: Path | None = None) -> Path:
    """The main repository of `start` (default: $OFQ_WORKSPACE, else the working directory).

    Jobs of a cluster run in private folders and name their workspace in OFQ_WORKSPACE. A store
    inside a temporary experiment would vanish with it, so a path below `<root>/.dvc/tmp/exps`
    belongs to `<root>`. Without any repository: `start` itself.
    """
    here = (start or Path(os.environ.get(WORKSPACE) or Path.cwd())).resolve()
    found = _main_and_depth(here)
    if found is not None:
        return found[0]
    for folder in (here, *here.parents):
        if any((folder / marker).exists() for marker in (".dvc", ".git", "dvc.yaml")):
            return folder
    return here


def tracking_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI`, else SQLite in `root`; a relative SQLite path is below `root`."""
    uri = os.environ.get(URI, "").strip()
    if not uri:
        return f"sqlite:///{root / 'mlflow.db'}"
    path = sqlite_path(uri)
    if path is not None and not path.is_absolute():
        return f"sqlite:///{root / path}"
    return uri


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLite URI, None for any other URI."""
    prefix = "sqlite:///"
    return Path(uri[len(prefix) :].partition("?")[0]) if uri.startswith(prefix) else None


def lock_path(uri: str) -> Path:
    """The file whose lock a writer holds: beside a SQLite database, else in the temp folder.

    A server's lock is per user and machine; that is where several workers share a store.
    """
    path = sqlite_path(uri)
    if path is not None:
        return path.with_name(path.name + ".lock")
    digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"ofq-tracking-{os.getuid()}-{digest}.lock"


def artifact_root(uri: str) -> Path | None:
    """`mlruns` beside a SQLite database; None where the server or file store decides."""
    path = sqlite_path(uri)
    return None if path is None else path.parent / "mlruns"


def check_reachable(uri: str, timeout: float = 3.0) -> None:
    """Find out within seconds that the store is down, before mlflow's own retries start.

    Raises:
        StoreError: nothing answers at `uri`, or its database file cannot be used.
    """
    path = sqlite_path(uri)
    try:
        if path is not None:
            _check_sqlite(path)
            return
        parts = _parts(uri)
        if parts.scheme in {"http", "https"}:
            _check_http(uri, timeout)
        elif parts.hostname:
            port = parts.port or _DATABASE_PORTS.get(parts.scheme.partition("+")[0])
            if port is not None:
                socket.create_connection((parts.hostname, port), timeout).close()
    except (OSError, ValueError, sqlite3.Error) as error:
        # requests wraps what happened in layers that repeat the address.
        cause: BaseException = error
        while cause.__context__ is not None:
            cause = cause.__context__
        raise StoreError(uri, first_line(cause)) from error


def _parts(uri: str) -> SplitResult:
    """The address in parts; what Python says of a wrong one may quote a piece of a password."""
    try:
        parts = urlsplit(uri)
        valid = parts.port is None or parts.hostname is not None
    except ValueError:
        valid = False
    if not valid or ("@" in parts.path and "@" not in parts.netloc and parts.netloc):
        raise ValueError(
            "no valid address; special characters of a user or password must be percent-encoded, "
            "such as %40 for @ and %2F for /"
        ) from None
    return parts


def _check_sqlite(path: Path) -> None:
    if not path.parent.is_dir():
        raise OSError(f"the folder {path.parent} does not exist")
    usable = path if path.exists() else path.parent
    if not os.access(usable, os.W_OK):
        raise OSError(f"no permission to write {usable}")
    if path.exists():
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            connection.execute("select count(*) from sqlite_master").fetchone()
        finally:
            connection.close()


def _check_http(uri: str, timeout: float) -> None:
    """Ask as the client does: by requests, which knows users in addresses, proxies and netrc."""
    import requests

    try:
        with requests.get(uri.rstrip("/") + "/health", timeout=timeout) as answer:
            status = answer.status_code
    except requests.exceptions.SSLError:
        # mlflow has its own switch for certificates; let it decide.
        return
    if status in _SERVER_DOWN:
        raise OSError(f"the server answers {status}")
