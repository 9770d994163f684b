"""Run the command of a DVC stage: `python -m slurm.run -- python -m pipelines.<stage> ...`.

Every stage goes through here, so that where it runs is no concern of dvc.yaml. Without a cluster
the command takes the place of this process, with this interpreter for `python`.
"""

from __future__ import annotations

import os
import sys


def main(argv: list[str]) -> int:
    """Replace this process by the command after `--`; returns only when there is none."""
    if not argv or argv[0] != "--" or len(argv) < 2:
        print("usage: python -m slurm.run -- COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    command = argv[1:]
    program = sys.executable if command[0] == "python" else command[0]
    sys.stdout.flush()
    try:
        os.execvp(program, [program, *command[1:]])
    except OSError as error:
        print(f"error: cannot run {program}: {error.strerror}", file=sys.stderr)
    return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
