"""Send jobs off through submitit: one array for jobs that want the same and wait for the same."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from slurm.errors import SlurmError
from slurm.ids import PREFIX
from slurm.job import StageJob
from slurm.jobs import Job, Jobs, Record, write_json
from slurm.profile import Profile, Resources

MARGIN_SECONDS = 15.0


def grace_seconds(profile: Profile) -> float:
    """How long a stage may take to save after the signal, before the job is requeued anyway."""
    return max(1.0, profile.signal_delay_seconds - MARGIN_SECONDS)


def send(
    jobs: Jobs,
    batch: Sequence[tuple[Job, Record]],
    profile: Profile,
    resources: Resources,
    after: Sequence[str] = (),
) -> list[str]:
    """Submit jobs of one kind as one array; their records, job ids included, are on disk then.

    Args:
        after: ids of jobs or arrays that must have succeeded before.

    Returns:
        The ids, in order.

    Raises:
        SlurmError: the cluster refuses. No record is left of the jobs then.
    """
    launch = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
    folder = jobs.root / "launches" / launch
    # Written before the cluster knows of the jobs: whoever is cut off now finds them by name.
    write_json(folder / "launch.json", {"jobs": [job.name for job, _ in batch]})
    now = time.time()
    for job, record in batch:
        record.launch, record.job_id, record.submitted = launch, "", now
        job.clear()
        job.write(record)
    try:
        snapshot = jobs.root / "snapshots" / batch[0][1].snapshot
        folders = [job.path for job, _ in batch]
        ids = submit_calls(StageJob(), folders, folder, snapshot, profile, resources, after)
    except SlurmError:
        for job, _ in batch:
            (job.path / "job.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    for (job, record), job_id in zip(batch, ids, strict=True):
        record.job_id = job_id
        job.write(record)
    return ids


def submit_calls(
    call: Callable[[str], str],
    folders: Sequence[Path],
    launch: Path,
    snapshot: Path,
    profile: Profile,
    resources: Resources,
    after: Sequence[str] = (),
) -> list[str]:
    """Have jobs call `call(folder)`, one per folder; the ids in order.

    Args:
        launch: a new folder for submitit's files; its name becomes the jobs'.
        snapshot: the code that they run.

    Raises:
        SlurmError: the cluster refuses.
    """
    try:
        return _submit(call, folders, launch, snapshot, profile, resources, after)
    except Exception as error:
        raise SlurmError(f"the cluster refuses the jobs: {_reason(error)}") from error


def _submit(
    call: Callable[[str], str],
    folders: Sequence[Path],
    launch: Path,
    snapshot: Path,
    profile: Profile,
    resources: Resources,
    after: Sequence[str],
) -> list[str]:
    executor = make_executor(launch, snapshot, profile, resources, after)
    paths = [str(folder) for folder in folders]
    with _inside(snapshot), outside():
        if profile.executor == "slurm":
            return [str(job.job_id) for job in executor.map_array(call, paths)]
        if profile.executor == "local":
            # Else whoever reads what this command prints waits for the jobs to end.
            with _printing_to(launch / "controller.log"):
                return [str(executor.submit(call, path).job_id) for path in paths]
        handles = [executor.submit(call, path) for path in paths]
        for handle in handles:
            # What fails has said so in its folder, as a job on a cluster does.
            with contextlib.suppress(Exception):
                handle.result()
    return [str(handle.job_id) for handle in handles]


def make_executor(
    folder: Path, snapshot: Path, profile: Profile, resources: Resources, after: Sequence[str] = ()
) -> Any:
    """submitit's executor for jobs that run the code of a snapshot."""
    setup = [*profile.setup, f"export PYTHONPATH={_quoted(snapshot)}"]
    if profile.executor == "debug":
        from submitit.local.debug import DebugExecutor

        return DebugExecutor(folder)
    if profile.executor == "local":
        from submitit.local.local import LocalExecutor

        local = LocalExecutor(folder, profile.max_timeouts, python=profile.python)
        local.update_parameters(
            timeout_min=resources.minutes,
            tasks_per_node=resources.tasks_on_node,
            gpus_per_node=resources.gpus_per_node,
            signal_delay_s=profile.signal_delay_seconds,
            stderr_to_stdout=True,
        )
        return local
    from submitit.slurm.slurm import SlurmExecutor

    executor = SlurmExecutor(folder, profile.max_timeouts, python=profile.python)
    words: dict[str, Any] = {"chdir": str(snapshot)}
    words["requeue" if profile.requeue else "no-requeue"] = True
    if after:
        words["dependency"] = "afterok:" + ":".join(after)
        words["kill-on-invalid-dep"] = "yes"
    # From 22.05 on srun does not take it over from sbatch.
    steps = [f"--cpus-per-task={resources.cpus}"]
    if resources.tasks > 1:
        steps.append("--kill-on-bad-exit=1")
    executor.update_parameters(
        **resources.submitit(),
        job_name=PREFIX + folder.name,
        signal_delay_s=profile.signal_delay_seconds,
        setup=setup,
        stderr_to_stdout=True,
        srun_args=steps,
        additional_parameters=words,
    )
    return executor


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Have processes that are started inside print to a file, not to what this one prints to."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with path.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Without the variables of the job this may be typed in: they would count for the new one."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    from submitit.helpers import clean_env

    with clean_env():
        yield


@contextlib.contextmanager
def _inside(snapshot: Path) -> Iterator[None]:
    """Jobs start here and inherit it: `python -m` looks for modules in the working directory."""
    before, path = Path.cwd(), os.environ.get("PYTHONPATH")
    os.chdir(snapshot)
    os.environ["PYTHONPATH"] = str(snapshot)
    try:
        yield
    finally:
        os.chdir(before)
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path


def check_accepted(profile: Profile, wanted: dict[str, Resources]) -> None:
    """Ask SLURM whether it would take jobs with these resources, by stage.

    Raises:
        SlurmError: it would not, or does not answer.
    """
    asked: set[str] = set()
    for stage, resources in wanted.items():
        flags = _flags(resources)
        if str(flags) in asked:
            continue
        asked.add(str(flags))
        done = _run(["sbatch", "--test-only", *flags, "--wrap=true"])
        if done.returncode:
            reason = _last_line(done.stderr) or f"exit status {done.returncode}"
            raise SlurmError(
                f"SLURM refuses what profile {profile.name} asks for stage {stage}: {reason} "
                f"({' '.join(flags)}). OFQ_PROFILE=local runs stages on this machine"
            )


def _flags(resources: Resources) -> list[str]:
    own = {"array_parallelism"}
    return [
        f"--{key.replace('_', '-')}={value}"
        for key, value in sorted(resources.submitit().items())
        if key not in own
    ]


def check_shared(jobs: Jobs, profile: Profile, resources: Resources) -> str | None:
    """Have a node read a file of the workspace, once per workspace and partition.

    Returns:
        A remark when it could not be found out: SLURM refuses the probe, or no node was free to
        tell in time. Else None.

    Raises:
        SlurmError: the node does not see it.
    """
    probe = jobs.root / "probe"
    passed = probe / f"{resources.partition or 'default'}.passed"
    if profile.probe_seconds <= 0 or passed.exists():
        return None
    probe.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    question, answer = probe / f"{token}.question", probe / f"{token}.answer"
    question.write_text(token)
    flags = [
        f"--{key}={value}"
        for key, value in (
            ("partition", resources.partition),
            ("account", resources.account),
            ("qos", resources.qos),
            ("constraint", resources.constraint),
            # Some partitions take no job without one.
            ("gpus-per-node", min(1, resources.gpus_per_node) or None),
        )
        if value is not None
    ]
    script = f"cp {_quoted(question)} {_quoted(answer)}"
    words = ["sbatch", "--parsable", *flags, "--time=1", "--ntasks=1", "--no-requeue"]
    words += [f"--job-name={PREFIX}probe", "--output=/dev/null", "--chdir=/", f"--wrap={script}"]
    done = _run(words)
    if done.returncode:
        reason = _last_line(done.stderr)
        return f"SLURM refuses a probe job ({reason}); going on without the check of the folder"
    job_id = done.stdout.strip().partition(";")[0]
    try:
        if _probed(job_id, answer, token, profile.probe_seconds):
            passed.touch()
            return None
    finally:
        question.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)
    _run(["scancel", job_id])
    return (
        f"no node was free within {profile.probe_seconds:g} s to check that nodes see "
        f"{jobs.workspace}; going on without the check"
    )


def _probed(job_id: str, answer: Path, token: str, seconds: float) -> bool:
    from slurm.states import states

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer.is_file() and answer.read_text() == token:
            return True
        state = states([job_id])[job_id]
        if state.ended:
            time.sleep(1.0)  # what a node writes may take a moment to be seen here
            if state.name not in {"FAILED", "COMPLETED"}:
                return False
            if answer.is_file() and answer.read_text() == token:
                return True
            where = f" on node {state.node}" if state.node else ""
            raise SlurmError(
                f"{answer.parents[2]} is not shared with the nodes: a probe job{where} could not "
                "copy a file there. Put the clone on a file system that all nodes mount"
            )
        time.sleep(0.5)
    return False


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        with outside():
            return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError as error:
        raise SlurmError(
            f"{words[0]} is not installed here: log in to a node that has it"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{words[0]} does not answer; is SLURM's controller up?") from error


def _reason(error: Exception) -> str:
    return _last_line(str(error)) or type(error).__name__


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("sbatch: ").removeprefix("error: ").strip() if lines else ""


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
