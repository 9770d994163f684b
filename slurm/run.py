"""Run the command of a DVC stage: `python -m slurm.run -- python -m pipelines.<stage> ...`.

Every stage goes through here, so that where it runs is no concern of dvc.yaml. Without a cluster
the command takes the place of this process, with this interpreter for `python`.

With OFQ_PROCESSES=N in the environment a stage that trains runs in N processes on this machine,
one per GPU; the result does not depend on it.
"""

from __future__ import annotations

import os
import sys

PROCESSES = "OFQ_PROCESSES"
TRAINING = frozenset(f"pipelines.{stage}" for stage in ("teacher", "full_precision", "grid", "qat"))


def main(argv: list[str]) -> int:
    """Replace this process by the command after `--`; returns only when there is none."""
    if not argv or argv[0] != "--" or len(argv) < 2:
        print("usage: python -m slurm.run -- COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    processes = os.environ.get(PROCESSES, "1")
    if not processes.isascii() or not processes.isdigit() or int(processes) < 1:
        print(
            f"error: {PROCESSES} = {processes!r}: expected a whole number of processes, at least 1",
            file=sys.stderr,
        )
        return 2
    command = spread(argv[1:], int(processes))
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
    sys.exit(main(sys.argv[1:]))
