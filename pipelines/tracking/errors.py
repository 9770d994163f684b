"""What can go wrong while results are handed to MLflow."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote

HIDDEN = "***"
URI = "MLFLOW_TRACKING_URI"
# What else a client of MLflow proves with who it is.
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
# An address within a message; the one that is known may be written in any way.
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://\S*")
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*:")
# A shorter one would be found within words of any message.
_SHORTEST = 4


def redact(text: str) -> str:
    """Hide users, passwords and tokens of the tracking store in a text."""
    secrets = {os.environ.get(name, "") for name in _SECRETS}
    for address in (os.environ.get(URI, "").strip(), *_ADDRESS.findall(text)):
        user, query = _secret_parts(address)
        if user:
            text = text.replace(user, f"{HIDDEN}@")
            secrets.add(user[:-1].partition(":")[2] or user[:-1])
            # As the client sends them; a server may quote that in its answer.
            secrets.add(b64encode(unquote(user[:-1]).encode()).decode())
        secrets |= {query, query[1:], *(value for _, value in parse_qsl(query[1:]))}
    plain = secrets | {unquote(secret) for secret in secrets}
    for secret in sorted(plain | {quote(secret, "") for secret in plain}, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, HIDDEN)
    return text


def _secret_parts(address: str) -> tuple[str, str]:
    """User and password with their '@', and the query with its '?' or '#'; empty if there is none.

    Also of what is no valid address: without slashes, with blanks, with characters that should be
    percent-encoded.
    """
    scheme = _SCHEME.match(address)
    rest = address[scheme.end() :] if scheme else address
    place = rest.lstrip("/")
    server, query = re.match(r"([^/?#]*)[^?#]*(.*)", place, re.DOTALL).groups()  # type: ignore[union-attr]
    if rest.startswith("///") or (rest.startswith("/") and not scheme and rest[1:2] != "/"):
        # A path.
        return "", query
    if "@" in server:
        return server[: server.rindex("@") + 1], query
    user = place[: place.rfind("@") + 1]
    # Behind a path the '@' may as well be part of the query.
    unsure = "@" in query and "/" in place.removesuffix(query)
    return user, place[len(user) :] if unsure else query


class TrackingError(Exception):
    """Logging did not happen; the message is one line that a user can act on, without secrets."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class ResultFolderError(TrackingError):
    """The folder lacks a result file, or one of them cannot be read."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder} is not a result folder: {reason}")


class StoreError(TrackingError):
    """The tracking store cannot be reached, opened or written."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(f"MLflow store {uri} is not available: {reason}")


def first_line(error: BaseException) -> str:
    """The error's first non-empty line, or its type where it has no text.

    Database drivers append the SQL and a link; one line is what fits a training log.
    """
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()
    return type(error).__name__
