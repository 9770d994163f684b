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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ofq_core.errors import SettingsError, shortened
from ofq_core.explain import did_you_mean, validated
from ofq_core.settings import StudySettings, unknown_key
from ofq_core.yaml_files import read_yaml
from pipelines.stage import stage_main

PARAMS = Path("params.yaml")


def load_study(path: Path = PARAMS, source: str | None = None) -> StudySettings:
    """Parse and check all settings, whatever will run by them.

    Whether a run can be shows when it is asked for: nothing is refused for another's sake.

    Args:
        source: how messages call the file, by default its path.

    Raises:
        SettingsError: the file is missing, no YAML, or a setting is wrong.
    """
    if not path.exists():
        raise SettingsError(f"{path}: no such file; run from the root of the repository")
    name = source or str(path)
    return validated(StudySettings, read_yaml(path), name)


def compose(overrides: list[str], path: Path = PARAMS) -> StudySettings:
    """Compose conf/ with Hydra overrides into `path`.

    Raises:
        SettingsError: an override names no known key, group or option, or makes settings invalid.
    """
    draft = Path.cwd() / f".{path.name}.draft.yaml"
    check_dialect(Path("conf"))
    try:
        study = _compose_checked(overrides, draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return study


def _compose_checked(overrides: list[str], path: Path) -> StudySettings:
    """Compose into `path`; the settings, of which the experiment can run."""
    if not Path("conf/config.yaml").is_file():
        raise SettingsError("conf/config.yaml: no such file; run from the root of the repository")
    source = _shown(overrides) or "conf/config.yaml"
    for override in overrides:
        _check_override(override)
    from dvc.utils.hydra import compose_and_dump
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    root = Path.cwd()
    try:
        compose_and_dump(str(path), str(root / "conf"), None, "config", str(root), overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(f"{source}: {_explain(error)}") from error
    except RecursionError:
        raise SettingsError(f"{source}: nested too deeply") from None
    except ValueError as error:  # a group set to something that is no name
        raise SettingsError(f"{source}: {str(error).splitlines()[0]}") from error
    study = load_study(path, source=source)
    try:
        _no_effect(overrides, study)
        study.experiment()
    except SettingsError as error:
        raise SettingsError(f"{source}: {error}") from error
    return study


def _shown(overrides: list[str]) -> str:
    """Overrides as messages show them, which may be long."""
    text = " ".join(overrides)
    return text if len(text) <= 200 and text.isprintable() else shortened(text, 200)


def _check_override(text: str) -> None:
    """Refuse what Hydra cannot read, or takes for several experiments, in words of our own."""
    from dvc.utils.hydra import to_hydra_overrides

    try:
        (override,) = to_hydra_overrides([text])
        # A longer key would be looked for as a file, whose name the system refuses.
        readable = 0 < len(override.key_or_group) <= 200
    except Exception:  # a mistake of the lexer, the parser, or of Python's numbers
        readable = False
    if not readable:
        raise SettingsError(
            f"{_shown([text])}: no setting that can be read: expected key=value, in quotes where "
            "the value has other characters than letters, digits and -_./:, such as key='\"a (b)\"'"
        )
    key, group = override.key_or_group, override.key_or_group in _groups()
    if re.split(r"[./@]", key)[0] == "hydra":
        raise SettingsError(f"{text}: {unknown_key('hydra')}")
    if override.is_sweep_override():
        raise SettingsError(
            f"{text}: several values: expected one; slurm.sweep and `dvc exp run --queue` take more"
        )
    if group and not override.is_delete() and not isinstance(override.value(), str | list):
        raise SettingsError(f"{text}: expected the name of a file in conf/{key}/")


def check_dialect(conf: Path) -> None:
    """Refuse files of conf/ that are no strict YAML, or that Hydra, whose YAML is 1.1, reads as
    something else than DVC does.

    Raises:
        SettingsError: path and key.
    """
    from omegaconf import OmegaConf

    for path in sorted(conf.rglob("*.yaml")):
        ours = read_yaml(path)
        theirs = OmegaConf.to_container(OmegaConf.load(path))
        for key, one, other in _differences(ours, theirs):
            raise SettingsError(
                f"{path}: {key}: Hydra reads {other!r}, DVC {one!r}: expected a value that both "
                "read as the same, such as a text in quotes"
            )


def _differences(one: Any, other: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for name in one:
            yield from _differences(one[name], other[name], f"{key}.{name}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, values in enumerate(zip(one, other, strict=True)):
            yield from _differences(*values, f"{key}.{index}")
    elif repr(one) != repr(other):
        yield key, one, other


def _no_effect(overrides: list[str], study: StudySettings) -> None:
    """Refuse a recipe of one bit width that is dialled under a value for all."""
    for override in overrides:
        found = re.match(r"\+{0,2}recipe\.by_bits\.(\d)\.(\w+)=", override)
        common = found and getattr(study.recipe, found.group(2), None)
        if found and common is not None:
            raise SettingsError(
                f"recipe.by_bits.{found.group(1)}.{found.group(2)} has no effect: "
                f"recipe.{found.group(2)} = {common!r} counts for every bit width"
            )


def check(candidates: list[list[str]]) -> list[dict[str, Any]]:
    """Compose and check each list of overrides; params.yaml stays as it is.

    Returns:
        For each, {"settings": all of them} or {"error": what is wrong}.
    """
    found: list[dict[str, Any]] = []
    check_dialect(Path("conf"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PARAMS.name
        for overrides in candidates:
            try:
                _compose_checked(overrides, path)
                found.append({"settings": read_yaml(path)})
            except SettingsError as error:
                found.append({"error": str(error)})
    return found


def _candidates() -> list[list[str]]:
    """What standard input asks for."""
    try:
        found = json.load(sys.stdin)
    except (AttributeError, ValueError, RecursionError):  # closed, no UTF-8, no JSON, too deep
        found = None
    lists: list[Any] = found if isinstance(found, list) else [None]
    if not all(isinstance(words, list) for words in lists) or not all(
        isinstance(word, str) for words in lists for word in words
    ):
        raise SettingsError("standard input: expected a JSON list of lists of overrides")
    return lists


def _explain(error: Exception) -> str:
    """What is allowed, instead of Hydra's advice to append the unknown key."""
    from hydra.errors import MissingConfigException
    from omegaconf.errors import InterpolationResolutionError

    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).partition("/")
        known = ", ".join(error.options)
        return f"unknown {group} {name!r}{did_you_mean(name, error.options)}; known are {known}"
    if isinstance(error, InterpolationResolutionError):
        return "a value that this one or another refers to, as in ${quant.wbits}, cannot be found"
    text = str(error).strip()
    if "does not exist" in text:
        return "conf/ has no such entry to take away"
    if "Could not delete" in text:
        return "conf/ has another value there: leave out the = and what follows"
    if "already at" in text:
        return "conf/ has this entry: leave out the +"
    if "merging override" in text:
        return "expected keys with values, as conf/ has them there"
    key = re.match(r"Could not override '([^']+)'", text)
    if key is not None:
        return _unknown_group(key.group(1)) or unknown_key(key.group(1))
    return text.splitlines()[0]


def _groups() -> list[str]:
    return sorted(path.name for path in Path("conf").iterdir() if path.is_dir())


def _unknown_group(word: str) -> str | None:
    """The message where a group of conf/ is nearer to the word than any key is, else None."""
    if "." in word:
        return None
    groups = _groups()
    hint = did_you_mean(word, [*groups, *StudySettings.model_fields])
    if not any(hint == did_you_mean(group, [group]) for group in groups):
        return None
    return f"{word}: unknown group{hint} (groups: {', '.join(groups)})"


def main(argv: list[str]) -> None:
    """Command line."""
    if {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        return
    if argv == ["--check"]:
        print(json.dumps(check(_candidates())))
        return
    study = compose(argv)
    print(f"{PARAMS}: study {study.study}, experiment {study.experiment().name}")
    try:
        study.runs_of_grid()
    except SettingsError as error:
        print(f"note: the experiment can run, the grid cannot: {error}", file=sys.stderr)


if __name__ == "__main__":
    stage_main(main, sys.argv[1:])
