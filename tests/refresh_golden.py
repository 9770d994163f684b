"""Losses and accuracies of a tiny pipeline, so that no change moves a result unseen.

    python -m tests.refresh_golden        or: make golden

runs the pipeline, prints what differs from tests/golden/tiny_losses.json and rewrites it. The
test beside it is tests/pipelines/test_golden_losses.py.

The pipeline runs in double precision. Training at 2 bits is chaotic: in FP32 the last bits, which
depend on the CPU's vector width and on torch's kernels, flip a code within a few steps, and then
losses part by up to several percent (measured: AVX2 kernels against plain ones). No tolerance
would tell that from a mistake. In FP64 the same two agree to 1e-13, so a relative 1e-6 leaves room
for other machines, and is far below what switching CGA on for one epoch does (1e-3). The students'
learning rate is low for the same reason: larger ones drive LSQ scales through zero, where any
difference grows tenfold a step.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import tempfile
from contextlib import chdir, contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden" / "tiny_losses.json"
METHODS = ("lsq", "statsq", "statsq_qkr", "ofq")
COLUMNS = ("train_loss", "train_hard_loss", "train_soft_loss", "val_loss", "val_top1")
RTOL = 1e-6

# Everything is stated here and nothing taken from conf/, so that a preset may change.
RECIPE = {
    "batch_size": 32,
    "min_lr": 3e-4,
    "weight_decay": 0.05,
    "checkpoint_seconds": 3600.0,
    "threads": 1,
}
STUDY: dict[str, Any] = {
    "study": "golden",
    "seed": 0,
    "quant": {"weight": "statsq", "qkr": True, "cga": True, "wbits": 2, "abits": 2},
    "grid": {
        "methods": list(METHODS),
        "bits": [2],
        "seeds": [0],
        "quant": {"boundary_range": 0.05},
    },
    "methods": {
        "lsq": {"weight": "lsq", "qkr": False, "cga": False},
        "statsq": {"weight": "statsq", "qkr": False, "cga": False},
        "statsq_qkr": {"weight": "statsq", "qkr": True, "cga": False},
        "ofq": {"weight": "statsq", "qkr": True, "cga": True},
    },
    "model": {
        "name": "deit_tiny_distilled_patch16_224",
        "num_classes": 10,
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "mlp_ratio": 2.0,
    },
    "data": {
        "name": "digits",
        "subset": 300,
        "shift_pixels": 0.5,
        "scale_range": 0.05,
        "rotate_degrees": 5.0,
        "noise": 0.05,
    },
    "recipe": {**RECIPE, "epochs": 2, "cga_epochs": 1, "lr": 5e-4},
    "distill": {},
    "teacher": {"seed": 1000, "recipe": {**RECIPE, "epochs": 20, "cga_epochs": 0, "lr": 1e-2}},
}


def tiny_losses(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Prepare, train the teacher and every method in a folder: {run: {column: one an epoch}}."""
    from ofq_core.data import prepare_digits
    from ofq_core.explain import validated
    from ofq_core.settings import StudySettings
    from pipelines import training

    study = validated(StudySettings, STUDY, "tests/refresh_golden.py")
    losses = {}
    teacher = Path("teacher.pt")
    runs = [("teacher", study.full_precision(study.teacher.seed), None)]
    runs += [(method, study.cell(method, 2, 0), teacher) for method in METHODS]
    with chdir(folder), redirect_stderr(io.StringIO()), _double_precision(training):
        prepare_digits(study.data, Path("digits"))
        for name, settings, given in runs:
            inputs = training.Inputs(Path("digits"), given)
            result = training.train_run(settings, inputs, "golden", lambda message: None)
            losses[name] = _columns(result / "history.csv")
            if given is None:
                (result / "student.pt").replace(teacher)
    return losses


def _columns(history: Path) -> dict[str, list[float]]:
    with history.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {column: [float(row[column]) for row in rows] for column in COLUMNS}


@contextmanager
def _double_precision(training: Any):
    """Models, data and draws in FP64; what `make_deterministic` sets is undone."""
    import torch

    from ofq_core.data import ArrayData, load_prepared

    def open_double(settings: Any, folder: Path) -> Any:
        data = load_prepared(folder)
        splits = {
            name: replace(split, images=split.images.double())
            for name in ("train", "val", "test")
            for split in (getattr(data, name),)
        }
        return ArrayData(replace(data, **splits), settings)

    open_single = training.open_data
    before = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    training.open_data = open_double
    try:
        yield
    finally:
        training.open_data = open_single
        torch.set_default_dtype(before[0])
        torch.set_num_threads(before[1])
        torch.use_deterministic_algorithms(False)


def differences(golden: Any, measured: Any, rtol: float, where: str = "") -> list[str]:
    """One line for every number that is missing, new, or off by more than rtol."""
    if isinstance(golden, dict) and isinstance(measured, dict):
        lines = []
        for key in dict.fromkeys([*golden, *measured]):
            inner = f"{where}.{key}".lstrip(".")
            if key not in golden or key not in measured:
                lines.append(f"{inner}: only in {'golden' if key in golden else 'measured'}")
            else:
                lines += differences(golden[key], measured[key], rtol, inner)
        return lines
    if isinstance(golden, list) and isinstance(measured, list) and len(golden) == len(measured):
        pairs = zip(golden, measured, strict=True)
        return [
            line
            for index, (a, b) in enumerate(pairs)
            for line in differences(a, b, rtol, f"{where}[{index}]")
        ]
    if isinstance(golden, float) and isinstance(measured, float):
        if math.isclose(golden, measured, rel_tol=rtol):
            return []
        change = (measured - golden) / abs(golden) if golden else math.inf
        return [f"{where}: {golden:.8g} -> {measured:.8g} ({change:+.2e})"]
    return [f"{where}: {golden} -> {measured}"]


def main() -> int:
    """Rewrite the golden file and say what is different in it."""
    with tempfile.TemporaryDirectory() as folder:
        measured = tiny_losses(Path(folder))
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    changed = differences(golden, measured, rtol=0.0)
    beyond = differences(golden, measured, RTOL)
    print("\n".join(changed) or "nothing changed")
    print(f"{len(changed)} numbers differ, {len(beyond)} by more than {RTOL:g}")
    GOLDEN.write_text(json.dumps(measured, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
