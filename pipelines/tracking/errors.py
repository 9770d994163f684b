"""What can go wrong while results are handed to MLflow."""

from __future__ import annotations

from pathlib import Path


class TrackingError(Exception):
    """Logging did not happen; the message is one line that a user can act on."""


class ResultFolderError(TrackingError):
    """The folder lacks a result file, or one of them cannot be read."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder} is not a result folder: {reason}")


class StoreError(TrackingError):
    """The tracking store cannot be reached, opened or written."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(f"MLflow store {uri} is not available: {reason}")
        self.uri = uri
        self.reason = reason


def first_line(error: BaseException) -> str:
    """The error's first non-empty line, or its type where it has no text.

    Database drivers append the SQL and a link; one line is what fits a training log.
    """
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()
    return type(error).__name__
