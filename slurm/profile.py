"""Profiles: where stages run and what a job asks of the cluster, in `slurm/profiles/<name>.yaml`.

A profile says on what a stage is computed, never what: no key of it is a setting of DVC's, so that
another partition or time limit makes no result stale.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from ofq_core.errors import SettingsError
from ofq_core.yaml_files import read_yaml
from slurm.errors import SlurmError, did_you_mean, explain
from slurm.times import seconds_of

PROFILES = Path(__file__).parent / "profiles"
PROFILE = "OFQ_PROFILE"

# Stages of dvc.yaml that are one process each, and those that can be several. `sweep` is no stage
# but a job that runs a whole experiment of a sweep.
SINGLE = ("check", "prepare", "fit", "tables")
TRAINED = ("teacher", "full_precision", "grid", "rivals", "variants", "qat")
SEVERAL = (*TRAINED, "evaluate", "noise", "sweep")
STAGES = (*SINGLE, *SEVERAL)


def _time(value: Any) -> Any:
    """A time limit, checked; a number is what other YAML readers make of one without quotes."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(
            "put the time in quotes, such as '04:00:00', or "
            f"'{value}' for minutes: YAML reads 4:00:00 without quotes as the number 14400"
        )
    if isinstance(value, str):
        value = value.strip()
        seconds_of(value)
    return value


def _without_empty(raw: Any) -> Any:
    """A key with nothing after it, as when all lines under it are comments, says nothing."""
    if not isinstance(raw, dict):
        return raw
    return {key: value for key, value in raw.items() if value is not None}


def _stage(name: str) -> str:
    if name not in STAGES:
        hint = did_you_mean(name, STAGES)
        raise ValueError(f"unknown stage{hint} (known stages: {', '.join(STAGES)})")
    return name


def _variable(name: str) -> str:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None:
        raise ValueError("no name of an environment variable: expected letters, digits and _")
    return name


# No line breaks: each of these becomes one line of a job script.
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^[^\r\n]*$")]
Shell = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Stage = Annotated[str, AfterValidator(_stage)]
Variable = Annotated[str, AfterValidator(_variable)]
Count = Annotated[int, Field(ge=1)]


class Model(BaseModel):
    """Base of what a profile holds: immutable, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Resources(Model):
    """What a job asks of the cluster.

    As every key has a default, the same model holds what a stage overrides: the keys that were set.
    """

    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    nodes: Count = 1
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    tasks_per_node: Count | None = None
    workers: Annotated[int, Field(ge=0)] = 4
    cpus_per_task: Count | None = None
    memory_gb: Annotated[float, Field(ge=0)] = 8
    time: Annotated[str, BeforeValidator(_time)] = "04:00:00"
    array_parallelism: Count = 64

    @property
    def tasks_on_node(self) -> int:
        """Processes on each node: one per GPU unless said otherwise, at least one."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def tasks(self) -> int:
        """Processes of the job on all nodes together."""
        return self.nodes * self.tasks_on_node

    @property
    def cpus(self) -> int:
        """CPUs of each process: by default one for itself and one per reader of images."""
        return self.cpus_per_task or self.workers + 1

    @property
    def minutes(self) -> int:
        """The time limit in minutes, rounded up: SLURM counts in whole minutes."""
        return math.ceil(seconds_of(self.time) / 60)

    def over(self, defaults: Resources) -> Resources:
        """These resources where a key was set, the defaults elsewhere."""
        given = defaults.model_dump(exclude_unset=True) | self.model_dump(exclude_unset=True)
        return Resources.model_validate(given)

    def submitit(self) -> dict[str, str | int]:
        """Keyword arguments of submitit's `SlurmExecutor.update_parameters`."""
        # SLURM would take --mem=0 for all the memory of the node; without it the cluster decides.
        megabytes = math.ceil(self.memory_gb * 1024)
        arguments = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "time": self.minutes,
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks_on_node,
            "cpus_per_task": self.cpus,
            "gpus_per_node": self.gpus_per_node,
            "mem": f"{megabytes}MB" if megabytes else None,
            "array_parallelism": self.array_parallelism,
        }
        return {key: value for key, value in arguments.items() if value}


class Profile(Model):
    """Where stages run, and how their jobs are started, ended and watched."""

    name: str
    executor: Literal["in_place", "slurm", "local", "debug"]
    resources: Resources = Resources()
    stages: Annotated[dict[Stage, Resources], BeforeValidator(_without_empty)] = {}
    setup: list[Shell] = []
    python: Line | None = None
    environment: dict[Variable, str] = {}
    signal_delay_seconds: Count = 120
    requeue: bool = True
    max_timeouts: Annotated[int, Field(ge=0)] = 50
    on_interrupt: Literal["cancel", "leave"] = "cancel"
    poll_seconds: Annotated[float, Field(gt=0)] = 2
    probe_seconds: Annotated[float, Field(ge=0)] = 30
    max_array_size: Count = 1000
    run_here: list[Stage] = ["check"]

    @model_validator(mode="before")
    @classmethod
    def _says_something(cls, raw: Any) -> Any:
        return _without_empty(raw)

    @model_validator(mode="after")
    def _fits_together(self) -> Profile:
        mistakes = list(self._unfit("resources", self.resources))
        for stage in self.stages if not mistakes else ():
            mistakes += self._unfit(f"stages.{stage}", self.resources_of(stage))
        mistakes += self._several_of_one()
        if self.executor == "in_place":
            idle = [key for key in ("setup", "python") if getattr(self, key)]
            mistakes += [f"{key}: no effect with executor in_place: no job" for key in idle]
        elif "OFQ_WORKERS" in self.environment:
            mistakes.append(
                "environment.OFQ_WORKERS: set workers under resources or stages instead"
            )
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    def _unfit(self, place: str, asked: Resources) -> Iterator[str]:
        """What is wrong with the resources at one place of the file."""
        if self.signal_delay_seconds >= asked.minutes * 60:
            yield (
                f"{place}: time = {asked.time!r} is no longer than signal_delay_seconds = "
                f"{self.signal_delay_seconds}, so that jobs would be told to end as they start"
            )
        if asked.tasks_on_node > asked.gpus_per_node > 0:
            yield (
                f"{place}: tasks_per_node = {asked.tasks_on_node} with gpus_per_node = "
                f"{asked.gpus_per_node}: expected at most one task per GPU"
            )
        if self.executor == "local" and asked.nodes > 1:
            yield f"{place}: nodes = {asked.nodes}: executor local has one node, this machine"
        if self.executor in ("in_place", "debug") and asked.tasks > 1:
            hint = "; see OFQ_PROCESSES" if self.executor == "in_place" else ""
            yield f"{place}: {asked.tasks} tasks: executor {self.executor} starts one{hint}"

    def _several_of_one(self) -> Iterator[str]:
        """Stages that are one process, and for which several are asked in so many words."""
        for stage, override in self.stages.items():
            most = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0} if stage in SINGLE else {}
            for key, limit in most.items():
                asked = getattr(override, key)
                if asked is not None and asked > limit:
                    yield (
                        f"stages.{stage}.{key} = {asked}: expected {limit}, "
                        f"since {stage} is one process that uses no GPU"
                    )

    def runs_here(self, stage: str) -> bool:
        """Whether a stage (name or address) runs where the command is typed, and not as a job."""
        return stage.rpartition(":")[2].partition("@")[0] in self.run_here

    def resources_of(self, stage: str) -> Resources:
        """What the jobs of a stage ask for; it may be the address of one, such as grid@lsq-2-0.

        Raises:
            SlurmError: there is no such stage.
        """
        try:
            name = _stage(stage.rpartition(":")[2].partition("@")[0])
        except ValueError as error:
            raise SlurmError(f"{stage}: {error}") from None
        merged = self.stages.get(name, Resources()).over(self.resources)
        one = Resources(nodes=1, tasks_per_node=1, gpus_per_node=0)
        return one.over(merged) if name in SINGLE else merged


def _known(location: list[str]) -> Iterable[str]:
    """The keys that a profile has at a location."""
    if location:
        return Resources.model_fields
    return [key for key in Profile.model_fields if key != "name"]


def read_profile(path: Path) -> Profile:
    """The profile in a file, whether or not this machine can run it.

    Raises:
        SlurmError: the file cannot be read, or a line for each value that is wrong.
    """
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    try:
        # As text, for pydantic to read by the type that a value should have: 022 is 22, and a time
        # or `yes` what it looks like.
        raw = read_yaml(shown, verbatim=True)
    except SettingsError as error:
        raise SlurmError(str(error)) from None
    if "name" in raw:
        raise SlurmError(f"{shown}: name: unknown key, since the file's name is the profile's")
    try:
        return Profile.model_validate(raw | {"name": path.stem})
    except ValidationError as error:
        lines = explain(error, _known)
    raise SlurmError("\n".join(f"{shown}: {line}" for line in lines))


def load_profile(name: str | None = None, root: Path = PROFILES) -> Profile:
    """The profile to use, once this machine has what it needs.

    Args:
        name: of a file in `root`, or the path of a file; by default $OFQ_PROFILE, and without that
            `generic` where there is SLURM and `local` where there is none.

    Raises:
        SlurmError: there is no such profile, it is wrong, or it cannot be used here.
    """
    source = "--profile" if name else PROFILE
    name = name or os.environ.get(PROFILE)
    if not name:
        name = "generic" if shutil.which("sbatch") else "local"
    as_path = os.sep in name or name.endswith((".yaml", ".yml"))
    path = Path(os.path.expanduser(name)) if as_path else root / f"{name}.yaml"
    if not path.is_file():
        names = sorted(file.stem for file in root.glob("*.yaml"))
        hint = did_you_mean(path.stem, names)
        there = f"profiles: {', '.join(names) or 'none'}; or the path of a file"
        kind = "file" if as_path else "profile"
        raise SlurmError(f"{source} = {name!r}: there is no such {kind}{hint} ({there})")
    profile = read_profile(path)
    if profile.executor == "slurm" and shutil.which("sbatch") is None:
        raise SlurmError(
            f"profile {profile.name} needs SLURM, but there is no sbatch on this machine: "
            f"log in to a node that has it, or set {PROFILE}=local"
        )
    if profile.executor != "in_place" and importlib.util.find_spec("submitit") is None:
        raise SlurmError(
            f"profile {profile.name} needs submitit, which is not installed: "
            f"make setup, or pip install -e '.[suite]', or set {PROFILE}=local"
        )
    return profile
