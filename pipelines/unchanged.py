"""What a stage reads: seen when it begins, and again before its result is handed over.

DVC hashes dependencies and parameters when the command has ended. It would record an edit of
meanwhile as what the result came from, and say that all is up to date.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofq_core.errors import OFQError, SettingsError, some
from ofq_core.yaml_files import read_yaml
from slurm.contents import list_path
from slurm.fingerprints import IGNORED, fingerprints

DEFINITION, PARAMS = Path("dvc.yaml"), "params.yaml"
# So many changes are named.
SHOWN = 5


class ChangedError(OFQError):
    """What a stage read is no longer what it was when the stage began."""


class OutputError(OFQError):
    """The result of a stage cannot be put where it belongs."""


@dataclass(frozen=True)
class Definition:
    """A stage of dvc.yaml, its templates filled in: paths, and keys of params.yaml ("": all)."""

    deps: list[str]
    params: list[str]
    outs: list[str]


def read_definition(stage: str, argv: list[str]) -> Definition | None:
    """A stage with the values of params.yaml and of its own arguments.

    Returns:
        None where DVC knows no such stage, or a file cannot be read, which others report.
    """
    try:
        raw = read_yaml(DEFINITION)["stages"][stage]
        values = _flat(_params())
        words = {
            kind: [name for entry in raw.get(kind) or [] for name in _names(entry)]
            for kind in ("deps", "params", "outs")
        }
    except (SettingsError, AttributeError, KeyError, TypeError):
        return None
    said = " ".join(argv)

    def value(match: re.Match[str]) -> str:
        key = match[1]
        if key.startswith("item."):
            found = re.search(rf"--{re.escape(key[5:])}[= ](\S+)", said)
            return found[1] if found else ""
        return str(values.get(key, ""))

    filled = {
        kind: [re.sub(r"\$\{([^}]+)\}", value, name) for name in names]
        for kind, names in words.items()
    }
    return Definition(**filled)


def _names(entry: Any) -> list[str]:
    """A path or key; the whole of params.yaml is the empty key."""
    return ["" if name == PARAMS else str(name) for name in _listed(entry)]


def _listed(entry: Any) -> list[Any]:
    return list(entry) if isinstance(entry, dict) else [entry]


def _params() -> Any:
    return read_yaml(Path(PARAMS))


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """The leaves of nested settings by their dotted keys."""
    if not isinstance(value, dict) or not value:
        return {key: value}
    prefix = f"{key}." if key else ""
    parts = [_flat(part, f"{prefix}{name}") for name, part in value.items()]
    return {name: leaf for part in parts for name, leaf in part.items()}


class Watch:
    """What a stage reads, as it is now; `check` compares."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        # Before what they stand for: what changes in between is looked at again.
        self._quick = self._fingerprints()
        self._params, self._files = self._read_params(), self._read_files()

    def _fingerprints(self) -> dict[str, str]:
        return fingerprints(Path(), self.definition.deps, [PARAMS])

    def _read_params(self) -> dict[str, Any]:
        everything = _flat(_params())
        keys = self.definition.params
        return {
            name: value
            for name, value in everything.items()
            if any(not key or name == key or name.startswith(key + ".") for key in keys)
        }

    def _read_files(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in self.definition.deps:
            found |= list_path(Path(), path)
        return {name: md5 for name, md5 in found.items() if IGNORED not in Path(name).parts}

    def changes(self) -> list[str]:
        """What is another now, with both values."""
        if self._fingerprints() == self._quick:
            return []
        try:
            params, files = self._read_params(), self._read_files()
        except (OSError, SettingsError) as error:
            return [f"not all of it can be read any more ({' '.join(str(error).split())})"]
        return [
            *_differences(self._params, params, f"{PARAMS}: ", repr),
            *_differences(self._files, files, "", lambda md5: f"MD5 {md5[:8]}"),
        ]


def _differences(
    before: dict[str, Any], now: dict[str, Any], where: str, show: Callable[[Any], str]
) -> list[str]:
    def shown(values: dict[str, Any], key: str) -> str:
        return show(values[key]) if key in values else "nothing"

    return [
        f"{where}{key} was {shown(before, key)}, is {shown(now, key)}"
        for key in sorted({*before, *now})
        # By what it looks like: true is not 1, nor is 1.0.
        if key not in before or key not in now or repr(before[key]) != repr(now[key])
    ]


def check_outputs(outs: list[str]) -> None:
    """Find out before the work what would make DVC, or the last step, refuse its result.

    Raises:
        OutputError: a folder on the way to an output is a link out of the repository, or an output
            is a mount point, which cannot be replaced.
    """
    here = Path.cwd().resolve()
    root = next((path for path in (here, *here.parents) if (path / ".git").exists()), None)
    for out in map(Path, outs):
        place = out.parent.resolve()
        if os.environ.get("DVC_STAGE") and root is not None and not place.is_relative_to(root):
            link = next(path for path in reversed(out.parents) if path.is_symlink())
            raise OutputError(
                f"{link} is a link to {link.resolve()}, out of the repository, where DVC takes no "
                f"result ({out}): make it a folder, or mount one there. What may be elsewhere is "
                "DVC's cache (`dvc cache dir`) and .partial"
            )
        if out.parts[0] == "results" and out.is_mount():
            raise OutputError(
                f"{out} is a mount point, and a result replaces what is there as a whole: mount a "
                "folder above it"
            )


_watch: Watch | None = None


def begin(stage: str, argv: list[str]) -> None:
    """Note what a stage reads; called before it reads anything.

    Raises:
        OutputError: its result could not be handed over.
    """
    global _watch
    definition = read_definition(stage, argv)
    _watch = None
    if definition is not None:
        check_outputs(definition.outs)
        _watch = Watch(definition)


def check_unchanged() -> None:
    """Called before a result is put in place.

    Raises:
        ChangedError: what the stage reads has changed since `begin`.
    """
    changes = [] if _watch is None else _watch.changes()
    if changes:
        raise ChangedError(
            f"what this stage reads has changed while it ran: {some(changes, SHOWN)}. "
            "Its result is not handed over, for it would count as that of what is there now. With "
            "the change undone the same command goes on from the last checkpoint; without, it "
            "begins anew"
        )
