"""What the commands of this package say when something is wrong: one message, no stack trace."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from pydantic import ValidationError

from slurm.show import any_terminal

INTERRUPTED = 130  # as shells report a command that Ctrl-C ended
BROKEN_PIPE = 141  # and one whose reader went away


class SlurmError(Exception):
    """Something the user can put right; the message says what and how."""


def command_main(run: Callable[[list[str]], int | None], argv: list[str]) -> NoReturn:
    """Run a command of this package and exit with its status.

    Args:
        run: returns the exit status, None for 0. What it raises beyond the below is a defect and
            keeps its stack trace.

    Raises:
        SystemExit: always: 1 after a SlurmError, or what the system says of a file, which is
            printed; 130 after Ctrl-C; 141 where nobody reads the output any more, as in
            `... | head`; argparse's own status.
    """
    any_terminal()
    status: int | str | None
    try:
        try:
            status = run(argv)
        except SlurmError as error:
            status = 1
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            status = INTERRUPTED
        except SystemExit as end:
            status = end.code
        # Here rather than at exit, where a broken pipe can no longer be caught.
        sys.stdout.flush()
    except BrokenPipeError:
        status = BROKEN_PIPE
        _drop_output()
    except OSError as error:  # a file, or the output itself, as on a full disk
        status = 1
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
    sys.exit(status)


def _drop_output() -> None:
    """Let go of what cannot be written: Python flushes once more at exit, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint ', did you mean X?' when a known word is close, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def explain(error: ValidationError, known: Callable[[list[str]], Iterable[str]]) -> list[str]:
    """What is wrong with each value: key, value and what would be right, one line each.

    Args:
        known: the keys there are at a location, the keys down to there.
    """
    return [line for e in error.errors() for line in _lines(dict(e), known)]


_REASONS = {
    "model_type": "expected keys with values",
    "dict_type": "expected keys with values",
    "list_type": "expected a list, one '- ...' a line",
    "string_type": "expected text, in quotes",
    "string_too_short": "expected text, leave the key out for none",
    "string_pattern_mismatch": "expected a single line",
    "int_parsing": "expected a whole number",
    "float_parsing": "expected a number",
    "bool_parsing": "expected true or false",
}


def _lines(error: dict[str, Any], known: Callable[[list[str]], Iterable[str]]) -> list[str]:
    location = [str(part) for part in error["loc"]]
    # pydantic's mark for the key of a mapping, where not its value is wrong but the key.
    wrong_key = location[-1:] == ["[key]"]
    if wrong_key:
        location.pop()
    key, kind, value = ".".join(location), error["type"], error["input"]
    # Files are read as text; what looks like a number is shown as the user wrote it.
    shown = value if re.fullmatch(r"[-+]?[\d.]+", str(value)) else repr(value)
    if kind == "extra_forbidden":
        keys = list(known(location[:-1]))
        hint = did_you_mean(location[-1], keys)
        return [f"{key}: unknown key{hint} (known keys: {', '.join(keys)})"]
    if kind == "missing":
        return [f"{key}: this key is missing"]
    if kind == "value_error":
        reason = str(error["ctx"]["error"])
        # A rule about several keys names them itself, one line each.
        if not location:
            return reason.splitlines()
        return [f"{key}: {reason}" if wrong_key else f"{key} = {shown}: {reason}"]
    if value is None:
        return [f"{key}: this key has no value"]
    if kind == "literal_error":
        expected = error["ctx"]["expected"]
        hint = did_you_mean(str(value), re.findall(r"'(.*?)'", expected))
        return [f"{key} = {shown}: expected {expected}{hint}"]
    reason = _REASONS.get(kind) or error["msg"].replace("Input should be", "expected")
    return [f"{key} = {shown}: {reason[0].lower()}{reason[1:]}"]
