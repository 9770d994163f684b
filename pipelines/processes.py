"""Run a stage in several processes of this machine by torch.distributed.run (torchrun):

    python -m pipelines.processes N MODULE [ARGUMENT ...]

Its exit status is that of the first process that failed; what went wrong that process has said.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys

MOST = 999


def main(argv: list[str]) -> int:
    """Run and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.processes")
    parser.add_argument("processes", type=_count, metavar="N")
    parser.add_argument("module", metavar="MODULE")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    given = parser.parse_args(argv)
    # torchrun gives each process one thread where nothing is said.
    cores = max(1, len(os.sched_getaffinity(0)) // max(1, given.processes))
    for name in ("OMP_NUM_THREADS", "OFQ_WORKERS"):
        os.environ.setdefault(name, str(cores))

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # The processes report themselves; the launcher would repeat it with a page of traceback.
    logging.disable(logging.CRITICAL)
    words = ["--standalone", "--nproc-per-node", str(given.processes)]
    words += ["--module", given.module, *given.arguments]
    try:
        run.run(run.parse_args(words))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        status: int = failure.exitcode
        if status >= 0:
            return status
        # A process that was killed, for example for want of memory, could say nothing itself.
        name = signal.Signals(-status).name
        print(
            f"error: process {rank} was killed ({name}): run the same command again to go on",
            file=sys.stderr,
        )
        return 128 - status
    except SignalException as error:
        return 128 + error.sigval.value
    return 0


def _count(text: str) -> int:
    """So many processes; more than any machine has would only fill it."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MOST):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to {MOST}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
