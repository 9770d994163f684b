"""What is known of a job, in files below .slurm/ of the workspace.

    .slurm/jobs/<stage>/<key>/     one job: one stage with certain inputs
        job.json                   what is to be done, and the cluster's job id
        inputs.json                what it was given, once it has started
        attempts.json              every start of it: job, node, how it ended
        progress.json              where training stands, written by the stage
        log.txt                    all that the stage printed, over all attempts
        done.json | failed.json    how it ended
        work/                      the private folder it runs in
    .slurm/snapshots/<hash>/       tracked files as they were when jobs were submitted
    .slurm/store/                  inputs by content
    .slurm/launches/<id>/          submitit's files, a new folder for every submission
All of it must be on a file system that the nodes share.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from slurm.contents import Store, hash_of, within
from slurm.errors import SlurmError

FOLDER = ".slurm"
TAIL_LINES = 40
TAIL_BYTES = 64 * 1024


def write_json(path: Path, value: Any) -> None:
    """Write JSON that appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    draft.replace(path)


def read_json(path: Path) -> Any:
    """The content, or None where there is no readable file."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class Input:
    """A dependency of a stage that other stages make.

    files: contents that are known (workspace path -> MD5). late: outputs that jobs will make
    (output -> folder of the job, relative to .slurm/jobs).
    """

    path: str
    files: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One stage with certain inputs.

    code: dependencies that no stage makes, with DVC's hashes. params: values by file. inputs:
    dependencies that stages make. For the key it is all one which of both a hash stands in.
    """

    stage: str
    command: list[str]
    code: dict[str, str]
    params: dict[str, Any]
    inputs: list[Input]
    outs: list[str]

    @property
    def late(self) -> dict[str, str]:
        """All outputs of other jobs that this task waits for, with the jobs' folders."""
        return {out: job for item in self.inputs for out, job in item.late.items()}

    def hash_of(self, path: str) -> str | None:
        """DVC's hash of a dependency; None where jobs still have to make it."""
        if path in self.code:
            return self.code[path]
        for item in self.inputs:
            if item.path == path and not item.late:
                return hash_of(item.files, path)
        return None

    def key(self) -> str:
        """Hash of all that decides the result: what DVC's own run cache goes by."""
        inputs = {
            item.path: [item.files, item.late] if item.late else hash_of(item.files, item.path)
            for item in self.inputs
        }
        content = {
            "stage": self.stage,
            "command": self.command,
            "dependencies": {**self.code, **inputs},
            "params": self.params,
            "outs": self.outs,
        }
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass
class Record:
    """job.json: a task and how it was sent off. times: Unix seconds.

    seen: fingerprints of the code and of what defines the stage; cache: DVC's cache. See
    slurm.collect.
    """

    task: Task
    workspace: str
    snapshot: str
    git: dict[str, Any]
    environment: dict[str, str]
    tasks: int = 1
    executor: str = "slurm"
    grace_seconds: float = 60.0
    requeue: bool = True
    launch: str = ""
    job_id: str = ""
    submitted: float = 0.0
    seen: dict[str, str] = field(default_factory=dict)
    cache: str = ""


class Job:
    """The folder of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def stage(self) -> str:
        """The stage's address in DVC."""
        return self.path.parent.name

    @property
    def name(self) -> str:
        """The folder relative to .slurm/jobs."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def work(self) -> Path:
        """The private folder that the stage runs in."""
        return self.path / "work"

    @property
    def log(self) -> Path:
        """All that the stage printed."""
        return self.path / "log.txt"

    def exists(self) -> bool:
        """Whether it has been asked for and still has, or will have, its outputs."""
        return (self.path / "job.json").exists() and not self.retired()

    def retired(self) -> bool:
        """Whether DVC has its outputs and this folder no longer has."""
        return (self.path / "retired.json").exists()

    def record(self) -> Record | None:
        """What is to be done; None where the folder is no job's."""
        raw = read_json(self.path / "job.json")
        try:
            task = raw.pop("task")
            inputs = [Input(**item) for item in task.pop("inputs")]
            return Record(task=Task(**task, inputs=inputs), **raw)
        except (AttributeError, KeyError, TypeError):
            # Of another version of this package.
            return None

    def write(self, record: Record) -> None:
        """Write job.json."""
        write_json(self.path / "job.json", asdict(record))

    def done(self) -> dict[str, str] | None:
        """Every file of the outputs with its MD5 once the job has succeeded, else None."""
        value = read_json(self.path / "done.json")
        return value["files"] if isinstance(value, dict) else None

    def made(self) -> dict[str, str] | None:
        """As `done`, but also of a job that was retired since."""
        value = read_json(self.path / "retired.json")
        return value["files"] if isinstance(value, dict) else self.done()

    def failed(self) -> dict[str, Any] | None:
        """How the job itself says it failed: `status`, `message`, `log`, `attempt`."""
        value = read_json(self.path / "failed.json")
        return value if isinstance(value, dict) else None

    def inputs(self) -> dict[str, str] | None:
        """What was laid out for the stage: workspace path -> MD5; None before it first started."""
        value = read_json(self.path / "inputs.json")
        return value if isinstance(value, dict) else None

    def attempts(self) -> list[dict[str, Any]]:
        """Every start so far."""
        value = read_json(self.path / "attempts.json")
        return value if isinstance(value, list) else []

    def progress(self) -> dict[str, Any] | None:
        """Where training stands."""
        value = read_json(self.path / "progress.json")
        return value if isinstance(value, dict) else None

    def clear(self) -> None:
        """Forget how it ended, before it is sent off again; its private folder stays."""
        for name in (
            "failed.json",
            "reported",
            "done.json",
            "retired.json",
            "damaged.json",
            "ready",
        ):
            (self.path / name).unlink(missing_ok=True)

    def forget_files(self) -> None:
        """Remove the private folder of a job whose outputs DVC has."""
        shutil.rmtree(self.work, ignore_errors=True)
        (self.path / "progress.json").unlink(missing_ok=True)


class Jobs:
    """All jobs of a workspace."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.root = workspace / FOLDER
        self.folder = self.root / "jobs"
        self.store = Store(self.root / "store")

    def job(self, stage: str, key: str) -> Job:
        """The job of a task, asked for or not."""
        return Job(self.folder / stage / key)

    def named(self, name: str) -> Job:
        """A job by its folder relative to .slurm/jobs."""
        return Job(self.folder / name)

    def of_stage(self, stage: str) -> list[Job]:
        """All jobs of a stage, the latest first, retired ones included."""
        found = [Job(path.parent) for path in (self.folder / stage).glob("*/job.json")]
        return sorted(found, key=_written, reverse=True)

    def __iter__(self) -> Iterator[Job]:
        for path in sorted(self.folder.glob("*/*/job.json")):
            yield Job(path.parent)

    def find(self, task: Task) -> Job | None:
        """The job that does, or has done, just this, or None.

        A job whose inputs were to come from other jobs is this one when what they made is what
        the task takes.
        """
        exact, key = self.job(task.stage, task.key()), task.key()
        candidates = self.of_stage(task.stage)
        if exact.exists():
            candidates.insert(0, exact)
        for job in candidates:
            record = job.record()
            if not job.exists() or record is None:
                continue
            if record.task.key() == key and (not record.task.late or self._took(job, task)):
                return job
            settled = self.settle(job, record.task) if record.task.late else None
            if settled is not None and settled.key() == key:
                return job
        return None

    def _took(self, job: Job, task: Task) -> bool:
        """Whether a finished job took what the jobs that it waited for hold now."""
        now, then = self.settle(None, task), self.settle(job, task)
        return now is None or then is None or now.key() == then.key()

    def place(self, task: Task) -> Job:
        """The job of a task: the one there is, with its checkpoints, or a new one."""
        return self.find(task) or self.job(task.stage, task.key())

    def settle(self, job: Job | None, task: Task) -> Task | None:
        """A task with the contents of its late inputs; None while they are not made.

        Args:
            job: whose task it is. If it has run it knows what it took: what an upstream job holds
                may be another by now. None: what they hold now.
        """
        taken = job.inputs() if job is not None and job.done() is not None else None
        inputs = []
        for item in task.inputs:
            files = dict(item.files)
            for out, name in item.late.items():
                made = taken if taken is not None else self.named(name).made()
                if made is None:
                    return None
                files.update(within(made, out))
            inputs.append(Input(item.path, within(files, item.path)))
        return replace(task, inputs=inputs)


def make_private(folder: Path) -> None:
    """Make sure that nobody else can write, or read, what jobs will run.

    Jobs unpickle and execute what lies there, and records hold the profile's environment.

    Raises:
        SlurmError: the folder is another user's, or cannot be closed to others.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid == os.geteuid() and found.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise SlurmError(f"cannot make {folder} private: {error.strerror}") from error
    if found.st_uid != os.geteuid():
        raise SlurmError(
            f"{folder} belongs to user {found.st_uid}, and jobs run what lies there: expected a "
            f"folder of your own (user {os.geteuid()}); use a clone of your own, or remove it"
        )


@contextmanager
def exclusive(path: Path, seconds: float = -1) -> Iterator[bool]:
    """Hold a lock among processes; the value says whether it is held.

    Args:
        seconds: how long to wait for it; below 0: until it is free.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _written(job: Job) -> float:
    try:
        return (job.path / "job.json").stat().st_mtime
    except OSError:
        # Removed meanwhile as garbage.
        return 0.0


def tail(job: Job, rank: int = 0) -> list[str]:
    """The last lines that the stage printed in its last attempt."""
    path = job.log if rank == 0 else job.path / f"log-{rank}.txt"
    attempts = job.attempts()
    offset = attempts[-1].get("log_offset", 0) if attempts and rank == 0 else 0
    try:
        with path.open("rb") as file:
            # A stage may have printed more than memory holds, and run out of it.
            file.seek(max(offset, file.seek(0, 2) - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-TAIL_LINES:]
