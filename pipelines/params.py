"""Read params.yaml, and compose it from conf/.

    python -m pipelines.params [OVERRIDE ...]     e.g. preset=smoke method=lsq quant.wbits=3

composes conf/ into params.yaml exactly as `dvc exp run -S` does, checks it, and runs nothing.

    python -m pipelines.params --check

reads a JSON list of lists of overrides from standard input, composes and checks each and writes
nothing: it prints a JSON list of {"settings": what would stand in params.yaml} and
{"error": message}. For programs that send many experiments off at once.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from ofq_core.errors import SettingsError
from ofq_core.explain import did_you_mean, validated
from ofq_core.settings import StudySettings, unknown_key
from ofq_core.yaml_files import read_yaml
from pipelines.stage import stage_main

PARAMS = Path("params.yaml")


def load_study(path: Path = PARAMS, source: str | None = None) -> StudySettings:
    """Parse and check all settings, and those of every run that they describe.

    Args:
        source: how messages call the file, by default its path.

    Raises:
        SettingsError: the file is missing, no YAML, or a setting is wrong.
    """
    if not path.exists():
        raise SettingsError(f"{path}: no such file; run from the root of the repository")
    name = source or str(path)
    study = validated(StudySettings, read_yaml(path), name)
    try:
        study.every_run()
    except SettingsError as error:
        raise SettingsError(f"{name}: {error}") from error
    return study


def compose(overrides: list[str], path: Path = PARAMS) -> None:
    """Compose conf/ with Hydra overrides into `path`.

    Raises:
        SettingsError: an override names no known key, group or option, or makes settings invalid.
    """
    draft = Path.cwd() / f".{path.name}.draft.yaml"
    try:
        _compose_checked(overrides, draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _compose_checked(overrides: list[str], path: Path) -> None:
    from dvc.utils.hydra import compose_and_dump
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    root = Path.cwd()
    try:
        compose_and_dump(str(path), str(root / "conf"), None, "config", str(root), overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(f"{' '.join(overrides)}: {_explain(error)}") from error
    load_study(path, source=" ".join(overrides) or "conf/config.yaml")


def check(candidates: list[list[str]]) -> list[dict[str, Any]]:
    """Compose and check each list of overrides; params.yaml stays as it is.

    Returns:
        For each, {"settings": all of them} or {"error": what is wrong}.
    """
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PARAMS.name
        for overrides in candidates:
            try:
                _compose_checked(overrides, path)
                found.append({"settings": read_yaml(path)})
            except SettingsError as error:
                found.append({"error": str(error)})
    return found


def _explain(error: Exception) -> str:
    """What is allowed, instead of Hydra's advice to append the unknown key."""
    from hydra.errors import MissingConfigException

    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).partition("/")
        known = ", ".join(error.options)
        return f"unknown {group} {name!r}{did_you_mean(name, error.options)}; known are {known}"
    text = str(error).strip()
    key = re.match(r"Could not override '([^']+)'", text)
    if key is not None:
        return _unknown_group(key.group(1)) or unknown_key(key.group(1))
    return text.splitlines()[0]


def _unknown_group(word: str) -> str | None:
    """The message where a group of conf/ is nearer to the word than any key is, else None."""
    if "." in word:
        return None
    groups = sorted(path.name for path in Path("conf").iterdir() if path.is_dir())
    hint = did_you_mean(word, [*groups, *StudySettings.model_fields])
    if not any(hint == did_you_mean(group, [group]) for group in groups):
        return None
    return f"{word}: unknown group{hint} (groups: {', '.join(groups)})"


def main(argv: list[str]) -> None:
    """Command line."""
    if argv in (["-h"], ["--help"]):
        print(__doc__.strip())
        return
    if argv == ["--check"]:
        print(json.dumps(check(json.load(sys.stdin))))
        return
    compose(argv)
    study = load_study()
    print(f"{PARAMS}: study {study.study}, experiment {study.experiment().name}")


if __name__ == "__main__":
    stage_main(main, sys.argv[1:])
