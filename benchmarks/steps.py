"""Ratios of training steps, measured side by side in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.counting import saved_bytes
from benchmarks.interleave import Ratio, interleaved, paired
from benchmarks.subjects import (
    FULL_PRECISION,
    SIZES,
    Step,
    make_model,
    threads,
)
from ofq_core.compiling import compile_blocks
from ofq_core.nn import HeldWeights
from tests.plain import plain

COMPILED = "_compiled"
METHODS = ("statsq", "statsq_qkr")
# As many steps as a sample of the tracker is apart, so that each round holds one.
SAMPLE_EVERY = 16


@dataclass(frozen=True)
class Options:
    """How much is measured.

    sizes: of `SIZES`, for the ratios to full precision. batch: images. rounds: of each comparison;
    where a round is long, fewer. threads: of torch; processor time on one, the wall's on more.
    compiled: measure compiled blocks too.
    """

    sizes: tuple[str, ...] = ("deit_tiny", "deit_small")
    batch: int = 8
    rounds: int = 7
    threads: int = 1
    compiled: bool = True

    @property
    def wall(self) -> bool:
        """Whether the wall's time is taken."""
        return self.threads > 1


def _variants(options: Options, size: str) -> dict[str, Step]:
    """Full precision and methods, eager and compiled."""
    steps = {}
    for method in (FULL_PRECISION, *METHODS):
        for suffix in ("", COMPILED) if options.compiled else ("",):
            step = Step(make_model(SIZES[size], method), SIZES[size], options.batch)
            if suffix:
                _compile(step)
            steps[method + suffix] = step
    return steps


def _compile(step: Step) -> None:
    """As training does."""
    compile_blocks(step.model)
    step.weights = HeldWeights(step.model)


def measure_steps(options: Options) -> dict[str, Any]:
    """Forward and backward without an update, and the bytes saved in between, by size.

    The plain form, which keeps what the released code keeps, is not timed here.
    """
    result = {}
    with threads(options.threads):
        for size in options.sizes:
            steps = _variants(options, size)
            runs = {name: step.forward_backward for name, step in steps.items()}
            times = interleaved(runs, options.rounds, wall=options.wall)
            compared = _compared(times, FULL_PRECISION)
            if options.compiled:
                base = FULL_PRECISION + COMPILED
                for method in METHODS:
                    name = method + COMPILED
                    compared[name]["to_compiled"] = paired(times, name, base).as_dict()
            for name, step in steps.items():
                compared[name]["saved_bytes_per_image"] = saved_bytes(step) / options.batch
            for method in METHODS:
                step = Step(plain(make_model(SIZES[size], method)), SIZES[size], options.batch)
                compared[method]["plain_saved_bytes_per_image"] = saved_bytes(step) / options.batch
            result[size] = compared
    return result


def _compared(times: Mapping[str, list[float]], base: str) -> dict[str, dict[str, Any]]:
    """Median seconds, and ratios to the base, of every variant."""
    return {
        name: {
            "seconds": Ratio.of(values).median,
            "ratio": paired(times, name, base).as_dict(),
        }
        for name, values in times.items()
    }


def measure_distillation(options: Options) -> dict[str, Any]:
    """Whole steps with a teacher, against the released behaviour in our own plain code.

    Released: the teacher's graph is kept and back-propagated through; the student is the plain
    form, piles of elementwise operations that save what they compute.
    """
    size = SIZES["deit_tiny"]
    result = {}
    with threads(options.threads):
        for method in METHODS:
            model = make_model(size, method)
            steps = {
                "released": Step(plain(model), size, options.batch, teacher="graph"),
                "ours": Step(model, size, options.batch, teacher="forward"),
                "ours_cached": Step(
                    make_model(size, method), size, options.batch, teacher="cached"
                ),
            }
            if options.compiled:
                compiled = Step(make_model(size, method), size, options.batch, teacher="forward")
                _compile(compiled)
                assert compiled.teacher is not None
                compile_blocks(compiled.teacher.model)
                steps["ours" + COMPILED] = compiled
            times = interleaved(dict(steps), options.rounds, wall=options.wall)
            result[method] = _compared(times, "released")
    return result


def measure_annealing(options: Options) -> dict[str, Any]:
    """Whole steps with CGA against the same without, by size and method."""

    def variants(size: str, method: str, batch: int) -> dict[str, Callable[[], object]]:
        return {
            "without": Step(make_model(SIZES[size], method), SIZES[size], batch),
            "with": Step(make_model(SIZES[size], method), SIZES[size], batch, annealing=True),
        }

    return _with_and_without(options, variants, micro_repeats=8, repeats=1)


def measure_tracker(options: Options) -> dict[str, Any]:
    """Whole steps with the default oscillation tracker against none, by size and method."""

    def variants(size: str, method: str, batch: int) -> dict[str, Callable[[], object]]:
        return {
            "without": Step(make_model(SIZES[size], method), SIZES[size], batch),
            "with": Step(make_model(SIZES[size], method), SIZES[size], batch, track=SAMPLE_EVERY),
        }

    return _with_and_without(options, variants, SAMPLE_EVERY, SAMPLE_EVERY, only=("statsq_qkr",))


def _with_and_without(
    options: Options,
    variants: Callable[[str, str, int], dict[str, Callable[[], object]]],
    micro_repeats: int,
    repeats: int,
    only: tuple[str, ...] = METHODS,
) -> dict[str, Any]:
    """The digits' model at its batch of 64, and DeiT-T, there with `only` some methods.

    Where a value of DeiT-T takes many steps, a third of the rounds is enough.
    """
    result: dict[str, Any] = {}
    fewer = max(3, options.rounds // 3) if repeats > 1 else options.rounds
    kinds = (
        ("micro", 64, METHODS, micro_repeats, options.rounds),
        ("deit_tiny", options.batch, only, repeats, fewer),
    )
    with threads(options.threads):
        for size, batch, methods, calls, rounds in kinds:
            result[size] = {"batch": batch}
            for method in methods:
                times = interleaved(variants(size, method, batch), rounds, calls, wall=options.wall)
                result[size][method] = _compared(times, "without")["with"]
    return result
