"""The stages of dvc.yaml: which have changed, what they need, what would make them anew.

DVC itself decides (`dvc repro` asks it again); here its answers are foreseen for stages whose
inputs do not exist yet, so that all of them can be sent to a cluster at once.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo

from slurm.cached import listing_of, run_cached
from slurm.contents import list_path, overlap, within
from slurm.errors import SlurmError
from slurm.fingerprints import fingerprint, fingerprints
from slurm.jobs import Input, Job, Jobs, Task
from slurm.outputs import Made, Outputs

RUNNER = ["python", "-m", "slurm.run", "--"]


@dataclass
class Plan:
    """What there is to do for some targets.

    tasks: stages that need a job, upstream first; jobs: theirs, sent or not. cached: changed, but
    DVC's run cache has the result. blocked: changed, but they depend on stages that no job makes.
    """

    tasks: list[Task] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)


class Pipeline:
    """The DVC repository of a workspace.

    Raises:
        SlurmError: there is none, or dvc.yaml is wrong.
    """

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        try:
            self.repo = Repo(str(workspace))
        except DvcException as error:
            raise SlurmError(f"{workspace}: {error}") from error
        except (RuntimeError, KeyError) as error:
            # A user id without a name or a home, as in a container: DVC keeps files by both.
            raise SlurmError(
                f"{workspace}: DVC cannot start here ({error}): set HOME to a folder that can be "
                "written, and USER to a name"
            ) from error
        self.jobs = Jobs(workspace)
        # What the stages were read from: whoever takes a snapshot later sees whether it changed.
        self.seen = fingerprints(workspace, (), ())
        self._code: dict[str, Any] = {}
        self._params: dict[str, Any] = {}

    @cached_property
    def cache(self) -> Path:
        """Folder of DVC's cache of files."""
        return Path(self.repo.cache.local.path)

    def cached(self, md5: str) -> Path:
        """Where DVC's cache has a content, or would."""
        return self.cache / md5[:2] / md5[2:]

    def _list(self, path: str) -> dict[str, str]:
        """The files at a path of the workspace that count for DVC, with their hashes."""
        ignored, root = self.repo.dvcignore.is_ignored_file, self.workspace
        files = list_path(root, path)
        return {name: md5 for name, md5 in files.items() if not ignored(str(root / name))}

    def stages(self, targets: Iterable[str] = ()) -> list[Any]:
        """The stages that `dvc repro` would look at, upstream first.

        Raises:
            SlurmError: a target is unknown, or dvc.yaml is wrong.
        """
        from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

        try:
            wanted = collect_stages(self.repo, list(targets) or ["dvc.yaml"])
            steps = plan_repro(get_active_graph(self.repo.index.graph), wanted)
        except DvcException as error:
            raise SlurmError(str(error)) from error
        return [stage for stage in steps if stage.cmd]

    def stage(self, address: str) -> Any:
        """One stage by its address."""
        try:
            return self.repo.stage.load_one(name=address)
        except DvcException as error:
            raise SlurmError(str(error)) from error

    # What a stage takes

    def code_hash(self, dependency: Any) -> str:
        """DVC's hash of a dependency that no stage makes."""
        if dependency.def_path not in self._code:
            if not dependency.exists:
                raise SlurmError(f"{dependency.stage.addressing} needs {dependency}, not found")
            self.seen[dependency.def_path] = fingerprint(self.workspace / dependency.def_path)
            self._code[dependency.def_path] = dependency.get_hash()
        return str(self._code[dependency.def_path].value)

    def param_values(self, dependency: Any) -> dict[str, Any]:
        """The values a stage reads of a parameter file."""
        from dvc.utils.serialize import load_path

        path = dependency.fs_path
        if path not in self._params:
            self._params[path] = load_path(path, self.repo.fs)
        everything = self._params[path]
        if not dependency.params:
            return dict(plain(everything))
        values = {}
        for key in dependency.params:
            value: Any = everything
            for word in key.split("."):
                if not isinstance(value, dict) or word not in value:
                    raise SlurmError(
                        f"{dependency.def_path} has no {key}, which stage "
                        f"{dependency.stage.addressing} reads"
                    )
                value = value[word]
            values[key] = value
        return dict(plain(values))

    def task_now(self, stage: Any) -> Task | None:
        """The task of a stage whose dependencies are all there, by its key alone: without the
        files behind the hashes. None where the stage does not go through slurm.run."""
        command = inner_command(stage)
        if command is None:
            return None
        code, params = {}, {}
        for dependency in stage.deps:
            if isinstance(dependency, ParamsDependency):
                params[dependency.def_path] = self.param_values(dependency)
            else:
                code[dependency.def_path] = self.code_hash(dependency)
        return Task(stage.addressing, command, code, params, [], _outs(stage))

    def with_inputs(self, task: Task) -> Task:
        """The same task with the files of what other stages make, as they are now."""
        index = Outputs()
        for stage in self.repo.index.stages:
            for out in stage.outs:
                index.add(out.def_path, Made())
        made = [path for path in task.code if index.sources(path)]
        code = {path: md5 for path, md5 in task.code.items() if path not in made}
        inputs = [Input(path, self._list(path)) for path in made]
        return replace(task, code=code, inputs=inputs)

    # What has changed

    def plan(self, targets: Iterable[str] = ()) -> Plan:
        """What `dvc repro` of the targets would run, with inputs foreseen."""
        plan = Plan()
        made = Outputs()
        for stage in self.repo.index.stages:
            # Data that DVC tracks by itself (`dvc add`), and what it is told to leave alone.
            if not stage.cmd or stage.frozen:
                made.add_all(_outs(stage), Made(listing_of(stage.outs, self.cache)))
        for stage in self.stages(targets):
            if stage.frozen:
                continue
            task, blocked = self._foresee(stage, made)
            outs = _outs(stage)
            if blocked or task is None:
                if blocked or self._changed(stage, None):
                    plan.blocked.append(stage.addressing)
                known = None if blocked else listing_of(stage.outs, self.cache)
                made.add_all(outs, Made(known))
                continue
            files = None if task.late else self._finished(stage, task)
            if files is not None:
                if self._changed(stage, task):
                    plan.cached.append(task.stage)
                made.add_all(outs, Made(files))
                continue
            job = self.jobs.place(task)
            plan.tasks.append(task)
            plan.jobs[task.stage] = job
            done = job.done()
            made.add_all(outs, Made(done, None if done else job.name))
        return plan

    def _foresee(self, stage: Any, made: Outputs) -> tuple[Task | None, bool]:
        """The task of a stage after everything before it; whether that cannot be known."""
        command = inner_command(stage)
        code: dict[str, str] = {}
        params: dict[str, Any] = {}
        inputs: list[Input] = []
        for dependency in stage.deps:
            path = dependency.def_path
            if isinstance(dependency, ParamsDependency):
                params[path] = self.param_values(dependency)
                continue
            sources = made.sources(path)
            if not sources:
                code[path] = self.code_hash(dependency)
                continue
            if any(source.files is None and source.job is None for source in sources.values()):
                return None, True
            inputs.append(self._input(path, sources))
        if command is None:
            return None, False
        return Task(stage.addressing, command, code, params, inputs, _outs(stage)), False

    def _input(self, path: str, sources: dict[str, Made]) -> Input:
        # In a folder that several stages fill, what none of them makes counts for DVC, too.
        files = {
            name: md5
            for name, md5 in self._leftovers(path, tuple(sources)).items()
            if not any(within({name: md5}, out) for out in sources)
        }
        late = {}
        for out, source in sources.items():
            if source.files is not None:
                files.update(within(within(source.files, out), path))
            elif source.job is not None:
                late[out] = source.job
        return Input(path, files, late)

    def _leftovers(self, path: str, outs: tuple[str, ...]) -> dict[str, str]:
        """Files at `path` in the workspace that no stage makes."""
        if any(path == out or path.startswith(out + "/") for out in outs):
            return {}
        found: dict[str, str] = {}
        for entry in sorted((self.workspace / path).glob("*")):
            name = entry.relative_to(self.workspace).as_posix()
            if not any(overlap(name, out) for out in outs):
                found.update(self._list(name))
        return found

    def _changed(self, stage: Any, task: Task | None) -> bool:
        """Whether `dvc repro` would run or restore the stage."""
        if stage.cmd_changed or stage.always_changed:
            return True
        for dependency in stage.deps:
            recorded = dependency.hash_info.value
            if isinstance(dependency, ParamsDependency):
                if plain(recorded) != self.param_values(dependency):
                    return True
            elif task is None:
                if dependency.changed_checksum():
                    return True
            elif recorded != task.hash_of(dependency.def_path):
                return True
        return any(out.changed_checksum() if out.exists else True for out in stage.outs)

    def _finished(self, stage: Any, task: Task) -> dict[str, str] | None:
        """Contents of the outputs where DVC need not run the stage: as recorded, or cached."""
        if self._changed(stage, task):
            return run_cached(self.repo, stage, task, self.cache)
        listing = listing_of(stage.outs, self.cache)
        if listing is None:
            # Never committed to the cache, or removed from it.
            listing = {}
            for out in stage.outs:
                listing.update(self._list(out.def_path))
        return listing

    def keep(self, task: Task) -> None:
        """Put the known inputs of a task into the store of .slurm.

        Raises:
            SlurmError: neither DVC's cache nor the workspace nor a job has one of them.
        """
        for item in task.inputs:
            for name, md5 in item.files.items():
                if not self.jobs.store.keep(md5, self._sources(name, md5)):
                    raise SlurmError(
                        f"{task.stage} needs {name} as {md5}, which neither DVC's cache nor the "
                        "workspace has: run `dvc repro` of the stage that makes it"
                    )

    def _sources(self, name: str, md5: str) -> Iterator[Path]:
        """Where a content may be, the most likely place first."""
        yield self.cached(md5)
        yield self.workspace / name
        for stage in self.repo.index.stages:
            if any(within({name: md5}, out.def_path) for out in stage.outs):
                for job in self.jobs.of_stage(stage.addressing):
                    if (job.done() or {}).get(name) == md5:
                        yield job.work / name


def plain(value: Any) -> Any:
    """A value as JSON has it: keys become words, so that what is read back is equal."""
    return json.loads(json.dumps(value, default=str, sort_keys=False))


def inner_command(stage: Any) -> list[str] | None:
    """What stands behind `python -m slurm.run --` in a stage's command; None without that."""
    if not isinstance(stage.cmd, str):
        return None
    words = shlex.split(stage.cmd)
    return words[len(RUNNER) :] if words[: len(RUNNER)] == RUNNER else None


def _outs(stage: Any) -> list[str]:
    return sorted(out.def_path for out in stage.outs)
