"""Measure what watching oscillation costs, and write benchmarks/oscillation.md:

    python -m benchmarks.oscillation [--size micro|deit_tiny ...]

Training steps with the tracker off, with the frequency alone, and with the default sampling are
interleaved in one process on one thread; a round is as many steps as a sample is apart, so each
holds one. What counts is the median over rounds of the ratio to the same round without a tracker,
in processor time, which other work on the machine moves less than wall time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ofq_core.models import QuantPlan, build_model, convert
from ofq_core.nn import calibrate
from ofq_core.settings import FidelitySettings, ModelSettings, QuantSettings, RecipeSettings
from ofq_core.training import OscillationTracker, distillation_loss
from ofq_core.training.optimizer import make_optimizer

RESULTS = Path(__file__).with_suffix(".json")
METHODS = {"lsq": ("lsq", False), "statsq": ("statsq", False), "statsq_qkr": ("statsq", True)}
SIZES: dict[str, tuple[dict[str, Any], int, int]] = {
    # Model, batch, rounds. A small batch makes the tracker look dear: its cost is the same for all.
    "micro": (
        {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 32, "depth": 3}
        | {"num_heads": 2, "mlp_ratio": 2.0, "num_classes": 10},
        64,
        12,
    ),
    "deit_tiny": ({"num_classes": 1000}, 4, 1),
}
MODES = ("off", "frequency", "sampled")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oscillation", description=__doc__)
    parser.add_argument("--size", nargs="*", choices=SIZES, default=list(SIZES))
    sizes = parser.parse_args().size
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for size in sizes:
        found[size] = {method: measure(size, method) for method in METHODS}
    found["machine"] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": 1,
    }
    RESULTS.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    RESULTS.with_suffix(".md").write_text(page(found))
    print(page(found))


def measure(size: str, method: str) -> dict[str, Any]:
    """Milliseconds per step and ratios to no tracker, for each mode."""
    every = RecipeSettings.model_fields["oscillation_every"].default
    rounds = SIZES[size][2]
    steps = {mode: _stepper(size, method, mode, every) for mode in MODES}
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(rounds + 1):
        for mode, step in steps.items():
            began = time.process_time()
            for _ in range(every):
                step()
            if number:  # the first round warms up
                times[mode].append((time.process_time() - began) / every)
    return {
        mode: {
            "milliseconds": 1e3 * statistics.median(times[mode]),
            "ratio": statistics.median(
                a / b for a, b in zip(times[mode], times["off"], strict=True)
            ),
        }
        for mode in MODES
    }


def _stepper(size: str, method: str, mode: str, every: int) -> Callable[[], None]:
    sizes, batch, _ = SIZES[size]
    settings = ModelSettings(name="deit_tiny_distilled_patch16_224", **sizes)
    weight, qkr = METHODS[method]
    model: Any = build_model(settings, 0)
    quant = QuantSettings(weight=weight, qkr=qkr, cga=False, wbits=2, abits=2)
    convert(model, QuantPlan.from_settings(quant, FidelitySettings()))
    side, channels = sizes.get("img_size", 224), sizes.get("in_chans", 3)
    images = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0))
    calibrate(model, images)
    model.train()
    recipe = RecipeSettings(epochs=1, cga_epochs=0, batch_size=batch, lr=1e-4)
    optimizer = make_optimizer(model, recipe)
    labels = torch.arange(batch) % sizes["num_classes"]
    tracker = None
    if mode != "off":
        tracker = OscillationTracker(model, every=every if mode == "sampled" else 0)
    return partial(_step, model, optimizer, tracker, images, labels)


def _step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    tracker: OscillationTracker | None,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    if tracker is not None:
        tracker.begin_step()
    optimizer.zero_grad()
    loss = distillation_loss(model(images), labels, None).total
    loss.backward()  # type: ignore[no-untyped-call]
    if tracker is not None:
        tracker.before_update()
    optimizer.step()
    if tracker is not None:
        tracker.update()


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    every = RecipeSettings.model_fields["oscillation_every"].default
    lines = [
        "# What watching oscillation costs",
        "",
        "Processor time of a training step relative to the same step without a tracker (median "
        f"over interleaved rounds of {every} steps, one thread, W2A2, no teacher). Frequency: "
        f"Nagel's, every step. Sampled: all figures, the default, every {every}th step.",
        "",
        "| model | method | step without | frequency | sampled (default) |",
        "|---|---|---:|---:|---:|",
    ]
    for size, (_, batch, _) in SIZES.items():
        for method, row in found.get(size, {}).items():
            lines.append(
                f"| {size}, batch {batch} | {method} | {row['off']['milliseconds']:.1f} ms | "
                f"{row['frequency']['ratio']:.3f} | {row['sampled']['ratio']:.3f} |"
            )
    machine = found["machine"]
    lines += ["", f"torch {machine['torch']}, Python {machine['python']}, {machine['processor']}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
