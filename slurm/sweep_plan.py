"""What a sweep is made of: combinations of settings, checked, named, found among earlier ones."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofq_core.errors import SettingsError
from ofq_core.yaml_files import read_yaml
from slurm.commit import git
from slurm.errors import SlurmError
from slurm.pipeline import Pipeline
from slurm.profile import Profile, Resources
from slurm.snapshot import tracked_files
from slurm.sweeps import Experiment, Stand, Sweeps, revision_of, stands

PARAMS = "params.yaml"
# Files that count for an experiment though no stage names them.
ALWAYS = ("conf", "pipelines", "slurm", "dvc.lock")
# `dvc exp run` composes the one anew, and the other only says what need not be run.
NO_PART = frozenset({PARAMS, "dvc.lock"})
TEACHER = ("study", "fidelity", "data", "model", "teacher")
MOST_MISTAKES = 5


@dataclass
class Item:
    """One combination. found: the experiment that is just this one already, and how it stands."""

    overrides: list[str]
    key: str
    name: str = ""
    found: Experiment | None = None
    stand: Stand | None = None

    @property
    def wanted(self) -> bool:
        """Whether it is to be sent off."""
        return self.stand is None or not self.stand.good


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The combinations of overrides that `dvc exp run --queue -S` makes of lists and ranges.

    Raises:
        SlurmError: one is no override, or DVC does not take it.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.cli_parse import to_path_overrides
    from dvc.utils.hydra import get_hydra_sweeps, to_hydra_overrides
    from hydra.errors import HydraException

    by_file: dict[str, list[str]] = to_path_overrides(overrides)
    try:
        parsed = [item for words in by_file.values() for item in to_hydra_overrides(words)]
        several = any(item.is_sweep_override() for item in parsed)
        combinations = get_hydra_sweeps(by_file) if several else [by_file]
    except (DvcException, HydraException) as error:
        raise SlurmError(f"-S {' -S '.join(overrides)}: {str(error).splitlines()[0]}") from error
    return [
        [
            word if path == PARAMS else f"{path}:{word}"
            for path, words in combination.items()
            for word in words
        ]
        for combination in combinations
    ]


def settings_of(root: Path, combinations: list[list[str]]) -> list[dict[str, Any]]:
    """The settings that each combination makes, composed and checked by pipelines.params.

    Raises:
        SlurmError: some are wrong.
    """
    own = [[word for word in words if ":" not in word.partition("=")[0]] for words in combinations]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.params", "--check"],
        cwd=root,
        input=json.dumps(own),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise SlurmError(f"the settings could not be checked: {said.removeprefix('error: ')}")
    # What Hydra prints on the way comes before.
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    wrong = [answer["error"] for answer in answers if "error" in answer]
    if wrong:
        lines = [line for message in wrong[:MOST_MISTAKES] for line in message.splitlines()]
        if len(wrong) > MOST_MISTAKES:
            lines.append(f"... and {len(wrong) - MOST_MISTAKES} more")
        count = f"{len(wrong)} of {len(answers)} experiments"
        raise SlurmError("\n  ".join([f"nothing was submitted, {count} cannot be run:", *lines]))
    return [answer["settings"] for answer in answers]


def commit_of(root: Path) -> str:
    """The commit that the experiments belong to.

    Raises:
        SlurmError: there is none.
    """
    try:
        top = git(root, "rev-parse", "--show-toplevel").strip()
    except SlurmError as error:
        raise SlurmError(
            f"{root} is no git repository, which DVC's experiments need (git init, and a commit)"
        ) from error
    if Path(top).resolve() != root.resolve():
        raise SlurmError(f"{root} lies in the git repository {top}: it must be one of its own")
    try:
        return git(root, "rev-parse", "--verify", "HEAD").strip()
    except SlurmError as error:
        raise SlurmError(
            f"{root} has no commit yet, which DVC's experiments belong to: git commit"
        ) from error


def code_of(pipeline: Pipeline, targets: list[str]) -> list[str]:
    """Where new files count that are not in git yet.

    Raises:
        SlurmError: a target is unknown.
    """
    stages = pipeline.stages(targets)
    return sorted({*ALWAYS, *(dep.def_path for stage in stages for dep in stage.deps)})


def digest_of(root: Path, code: list[str]) -> str:
    """Hash of the files that decide what an experiment is."""
    digest = hashlib.sha256()
    for name in tracked_files(root, code):
        if name not in NO_PART:
            content = (root / name).read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def resources_of(profile: Profile) -> tuple[Resources, int]:
    """What a job asks for, one task on one node, and in how many processes its stages run.

    Raises:
        SlurmError: the profile wants several nodes.
    """
    asked = profile.resources_of("sweep")
    if asked.nodes > 1:
        raise SlurmError(
            f"profile {profile.name}: nodes = {asked.nodes} for sweep: an experiment of a sweep "
            "runs on one node; put nodes: 1 under stages, sweep, or use `dvc exp run` with this "
            "profile, which sends each stage off by itself"
        )
    processes = asked.tasks_on_node
    one = Resources(tasks_per_node=1, cpus_per_task=asked.cpus * processes)
    return one.over(asked), processes


def match(
    sweeps: Sweeps,
    root: Path,
    commit: str,
    combinations: list[list[str]],
    content: str,
    targets: list[str],
) -> list[Item]:
    """The combinations, each once, with what has been sent off of them before."""
    items: dict[str, Item] = {}
    for overrides in combinations:
        text = json.dumps([commit, content, overrides, targets])
        key = hashlib.sha256(text.encode()).hexdigest()[:20]
        items.setdefault(key, Item(overrides, key))
    # The latest of the same key counts.
    for experiment in sweeps.everything():
        order = experiment.order()
        if order is not None and order.key in items:
            items[order.key].found, items[order.key].name = experiment, order.name
    known = {item.found.path: item for item in items.values() if item.found is not None}
    experiments = [item.found for item in known.values() if item.found is not None]
    found = stands(experiments, submitting=False)
    for experiment in experiments:
        item, order, result = known[experiment.path], experiment.order(), experiment.result()
        item.stand = found[experiment.path]
        if order and result and result["revision"] and revision_of(root, order) is None:
            # By `dvc exp remove`.
            item.stand = Stand("removed", True)
    return list(items.values())


def name_all(
    items: list[Item], root: Path, commit: str, sweeps: Sweeps, prefix: str | None
) -> None:
    """Give every experiment that is to be sent off its name, as DVC would.

    Raises:
        SlurmError: a name is taken, or cannot be one.
    """
    from dvc.repo.experiments.utils import gen_random_name

    space = f"refs/exps/{commit[:2]}/{commit[2:]}"
    listed = git(root, "for-each-ref", "--format=%(refname:lstrip=4)", space).split()
    others = [item for item in sweeps.everything() if item.result() is None and not item.failed()]
    orders = [order for item in others if (order := item.order()) and order.commit == commit]
    keys = {item.key for item in items}
    taken = {*listed, *(order.name for order in orders if order.key not in keys)}
    taken |= {item.name for item in items if not item.wanted}
    for index, item in enumerate(items):
        if not item.wanted:
            continue
        if prefix is not None:
            item.name = prefix if len(items) == 1 else f"{prefix}-{index + 1}"
            if item.name in taken:
                raise SlurmError(
                    f"there is an experiment {item.name} of this commit already: choose another "
                    f"--name-prefix, or remove it (dvc exp remove {item.name})"
                )
        while not item.name or item.name in taken:
            item.name = str(gen_random_name())
        taken.add(item.name)
        try:
            # DVC takes no name with a slash, git would.
            git(root, "check-ref-format", f"{space}/{item.name.replace('/', '..')}")
        except SlurmError as error:
            raise SlurmError(f"{item.name!r} cannot be the name of an experiment") from error


def teacher_remarks(
    pipeline: Pipeline, items: list[Item], settings: dict[str, dict[str, Any]]
) -> list[str]:
    """Warnings where several experiments would each train the same teacher."""
    try:
        here = read_yaml(pipeline.workspace / PARAMS)
    except SettingsError as error:
        raise SlurmError(str(error)) from None
    groups: dict[str, list[Item]] = {}
    for item in items:
        if item.wanted:
            part = {name: settings[item.key].get(name) for name in TEACHER}
            groups.setdefault(json.dumps(part, sort_keys=True), []).append(item)
    own = json.dumps({name: here.get(name) for name in TEACHER}, sort_keys=True)
    remarks = []
    for which, members in groups.items():
        if len(members) == 1:
            continue
        count = f"{len(members)} experiments would each train the same teacher"
        if which == own:
            if any(task.stage == "teacher" for task in pipeline.plan(["teacher"]).tasks):
                remarks.append(f"{count}: run `dvc repro teacher` first, and they take that one")
            continue
        first, *rest = members
        common = [w for w in first.overrides if all(w in other.overrides for other in rest)]
        words = " ".join(["python -m pipelines.params", *common])
        remarks.append(
            f"unless DVC's cache has their teacher, {count}: `{words} && dvc repro teacher` "
            "before this trains it once"
        )
    return remarks
