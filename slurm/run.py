"""Run the command of a DVC stage: `python -m slurm.run -- python -m pipelines.<stage> ...`.

Every stage goes through here, so that where it runs is no concern of dvc.yaml. The profile
(OFQ_PROFILE, slurm/profiles) decides:

- without a cluster the command takes the place of this process, with this interpreter for `python`.
  With OFQ_PROCESSES=N in the environment a stage that trains runs in N processes on this machine,
  one per GPU; the result does not depend on it;
- with one, this finds the job that `python -m slurm.submit` sent for just this stage, command,
  inputs and parameters, or sends it, waits for it and puts its outputs in place. DVC stays the
  only writer of dvc.lock and of its cache.
"""

from __future__ import annotations

import os
import re
import sys

from ofq_core.output import any_output

USAGE = "usage: python -m slurm.run -- COMMAND [ARGUMENT ...]"
PROCESSES = "OFQ_PROCESSES"
TRAINING = frozenset(f"pipelines.{stage}" for stage in ("teacher", "full_precision", "grid", "qat"))


def main(argv: list[str]) -> int:
    """Run the command after `--`, here or on a cluster; the exit status is the command's."""
    if argv[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if not argv or argv[0] != "--" or len(argv) < 2:
        print(USAGE, file=sys.stderr)
        return 2
    command = argv[1:]
    # By hand, outside DVC, there is no stage to find a job by; and importing the rest takes time.
    stage = os.environ.get("DVC_STAGE")
    if stage and os.environ.get("OFQ_PROFILE") != "local":
        from slurm.collect import collect_finished, workspace_of_stage

        if collect_finished(workspace_of_stage(), stage, command):
            return 0
        from slurm.errors import SlurmError
        from slurm.profile import load_profile

        try:
            profile = load_profile()
            if profile.executor != "in_place" and not profile.runs_here(stage):
                from slurm.follow import follow

                return follow(stage, command, profile)
        except SlurmError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return run_here(command)


def run_here(command: list[str]) -> int:
    """Replace this process by the command; returns only when that cannot be."""
    processes = os.environ.get(PROCESSES, "1")
    if re.fullmatch(r"0*[1-9]\d{0,2}", processes, re.ASCII) is None:
        print(
            f"error: {PROCESSES} = {processes!r}: expected a whole number of processes, 1 to 999",
            file=sys.stderr,
        )
        return 2
    command = spread(command, int(processes))
    program = sys.executable if command[0] == "python" else command[0]
    sys.stdout.flush()
    try:
        os.execvp(program, [program, *command[1:]])
    except OSError as error:
        print(f"error: cannot run {program}: {error.strerror}", file=sys.stderr)
    return 127


def spread(command: list[str], processes: int) -> list[str]:
    """The command that runs `python -m <stage that trains>` in several processes, else itself."""
    trains = command[:2] == ["python", "-m"] and len(command) > 2 and command[2] in TRAINING
    if processes == 1 or not trains:
        return command
    return ["python", "-m", "pipelines.processes", str(processes), *command[2:]]


if __name__ == "__main__":
    with any_output():
        status = main(sys.argv[1:])
    sys.exit(status)
