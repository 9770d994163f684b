"""Run the tests of arithmetic as processors with other instruction sets compute: `make numeric`.

    python -m tests.instruction_sets               each set of this machine but the one it uses
    python -m tests.instruction_sets default       this set
    python -m tests.instruction_sets avx2 -- -x    with words for pytest

torch, oneDNN and MKL choose by the processor in which order they add up, so their last bits differ
from one machine to the next. Environment variables let a processor compute as a lesser one does,
and show here what a test would say there. A set that the processor lacks cannot be had.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# MKL reads the third on Intel's processors alone. Its mode for results that are the same on all of
# them is the lowest set on the others as well.
SETS = {
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "DNNL_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "MKL_CBWR": "COMPATIBLE",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
}
NAMES = tuple(SETS)
VARIABLES = {name for environment in SETS.values() for name in environment}
# What compares numbers with a tolerance, or says what a trained model does.
NUMERIC = (
    "tests/quant",
    "tests/nn",
    "tests/models",
    "tests/fidelity",
    "tests/methods",
    "tests/training",
    "tests/checkpoints/test_released_round_trip.py",
    "tests/pipelines/test_golden_losses.py",
    "tests/test_noise.py",
    "tests/test_plain.py",
    "tests/test_toy.py",
)
# In these rooms, but as long as all the others together: they compare a run with itself to the bit,
# start processes, compile. `make test` runs them.
LEFT_OUT = (
    "tests/methods/test_adding_a_method.py",
    "tests/models/test_backbone_cost.py",
    "tests/models/test_pretrained.py",
    "tests/models/test_torchvision_compat.py",
    "tests/training/test_compiling.py",
    "tests/training/test_determinism.py",
    "tests/training/test_mid_epoch.py",
    "tests/training/test_resume.py",
    "tests/training/test_resume_figures.py",
    "tests/training/test_stopping.py",
    "tests/training/test_teacher_cache.py",
)


def own_set() -> str:
    """The set that torch uses here when nothing is said."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=clean, capture_output=True, text=True, check=True)
    return done.stdout.strip().lower()


def run(name: str, words: list[str]) -> int:
    """pytest's exit status under a set."""
    told = " ".join(f"{key}={value}" for key, value in SETS[name].items())
    print(f"\n{name}: {told}", flush=True)
    clean = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--maxprocesses", "8"]
    command += ["--dist", "loadfile", *NUMERIC, *(f"--ignore={file}" for file in LEFT_OUT), *words]
    root = Path(__file__).parents[1]
    return subprocess.run(command, cwd=root, env=clean | SETS[name], check=False).returncode


def main(argv: list[str]) -> int:
    """Run the sets asked for; the exit status is that of the first that failed."""
    cut = argv.index("--") if "--" in argv else len(argv)
    asked, words = argv[:cut], argv[cut + 1 :]
    if unknown := [name for name in asked if name not in SETS]:
        print(f"error: {unknown[0]}: expected {', '.join(NAMES)}", file=sys.stderr)
        return 2
    own = own_set()
    # A torch that knows none of them computes as `default` does.
    most = NAMES.index(own) if own in SETS else 0
    for name in asked:
        if NAMES.index(name) > most:
            print(f"error: {name}: this machine has {NAMES[most]} at most", file=sys.stderr)
            return 2
    chosen = asked or NAMES[:most]
    if not asked:
        print(f"this machine computes with {NAMES[most]}, as `make test` does; besides: ", end="")
        print(", ".join(chosen) or "nothing")
    statuses = [run(name, words) for name in chosen]
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
