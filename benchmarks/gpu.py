"""QAT on a GPU against compiled bf16 full precision, where a GPU is at hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.interleave import Ratio, interleaved, paired
from benchmarks.steps import METHODS, Options
from benchmarks.subjects import FULL_PRECISION, SIZES, Step, make_model
from ofq_core.compiling import compile_blocks

SIZE, BATCH, STEPS = "deit_small", 128, 10


def measure_gpu(options: Options) -> dict[str, Any]:
    """Whole training steps under bf16 autocast with compiled blocks, by method.

    Returns:
        Images per second, peak bytes of GPU memory, and the ratio to full precision; `missing`
        alone where there is no GPU.
    """
    if not torch.cuda.is_available():
        return {"missing": "no GPU at hand"}
    device = torch.device("cuda")
    runs: dict[str, Callable[[], object]] = {}
    peaks = {}
    for method in (FULL_PRECISION, *METHODS):
        run = partial(_step, _on(device, method))
        run()  # compiles
        torch.cuda.reset_peak_memory_stats()
        resting = torch.cuda.memory_allocated()
        run()
        # Of this model alone: the others rest on the GPU meanwhile.
        peaks[method] = torch.cuda.max_memory_allocated() - resting + _resting_bytes(run.args[0])
        runs[method] = run
    times = interleaved(runs, options.rounds, repeats=STEPS, warm_up=2, wall=True)
    return {
        "batch": BATCH,
        **{
            method: {
                "images_per_second": BATCH / Ratio.of(seconds).median,
                "peak_bytes": peaks[method],
                "ratio": paired(times, method, FULL_PRECISION).as_dict(),
            }
            for method, seconds in times.items()
        },
    }


def _on(device: torch.device, method: str) -> Step:
    model = make_model(SIZES[SIZE], method).to(device)
    compile_blocks(model)
    step = Step(model, SIZES[SIZE], BATCH)
    step.images, step.labels = step.images.to(device), step.labels.to(device)
    return step


def _step(step: Step) -> None:
    step.clear()
    with torch.autocast("cuda", torch.bfloat16):
        loss = step.forward()
    loss.backward()  # type: ignore[no-untyped-call]
    step.update()


def _resting_bytes(step: Step) -> int:
    """What a model holds between two steps: parameters, their gradients, the optimizer's state."""
    kept = [*step.lasting(), *(p.grad for p in step.model.parameters() if p.grad is not None)]
    for state in step.optimizer.state.values():
        kept += [value for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.nbytes for tensor in kept if tensor.is_cuda)
