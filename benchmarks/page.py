"""benchmarks/README.md as a function of benchmarks/latest.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.plot import LABELS, UNITS

NAMES = {"deit_tiny": "DeiT-T", "deit_small": "DeiT-S", "micro": "digits model"}
NOT_MEASURED = "not measured"
HEAD = """\
# Benchmarks

Written by `make bench`, from `benchmarks/latest.json`. Do not edit.

    make bench                                 everything, about half an hour on two cores
    make bench ARGS="steps tracker --rounds 5" some parts, fewer rounds
    python -m benchmarks.loader --no-model     the loader alone, on your images too
    python -m benchmarks.budgets               what CI gates: operators, bytes; no times
    python -m benchmarks.against               this working tree beside the commit before

Ratios are taken side by side: variants run in turns in one process, and the ratio is that of one
round. Given are the median over n rounds, the quartiles and the extremes. Times are processor time
where torch has one thread, else wall time. Images are random, 224 pixels, 198 tokens; weights and
activations have 2 bits. "Released" is what the released code was measured at, or what it does,
re-created here; every other number is of this machine.
"""


@dataclass(frozen=True)
class Line:
    """A row of the table of targets. ratio: as `Ratio.as_dict`, or a number without spread."""

    what: str
    released: str
    target: float
    ratio: dict[str, float] | float | None
    reason: str = NOT_MEASURED

    def render(self) -> str:
        """Markdown."""
        target = f"<= {self.target:g}x"
        if self.ratio is None:
            return f"| {self.what} | {self.released} | {target} | {self.reason} | | |"
        if isinstance(self.ratio, float):
            median, spread = self.ratio, "exact"
        else:
            r = self.ratio
            median = r["median"]
            spread = (
                f"{r['quarter']:.3f} to {r['three_quarters']:.3f} "
                f"({r['low']:.3f} to {r['high']:.3f}), n = {r['n']:.0f}"
            )
        verdict = "met" if median <= self.target else "**missed**"
        return (
            f"| {self.what} | {self.released} | {target} | {median:.3f}x | {spread} | {verdict} |"
        )


def render(latest: dict[str, Any]) -> str:
    """The page.

    Args:
        latest: parts by name, each with `machine` and `result`; see `benchmarks.__main__`. A part
            that is not there shows as not measured.
    """
    results = {name: part["result"] for name, part in latest.items()}
    lines = [HEAD, "## Targets", ""]
    lines += ["| what | released code | target | here | quartiles (extremes) | |"]
    lines += ["|---|---:|---:|---:|---|---|"]
    lines += [line.render() for line in _targets(results)]
    lines += ["", *_times(results), *_growth(results), *_loader(results), *_pieces(results)]
    lines += _machines(latest)
    return "\n".join(lines).rstrip() + "\n"


def _targets(results: dict[str, Any]) -> Iterator[Line]:
    yield from _steps(results.get("steps", {}))
    yield from _distillation(results.get("distillation", {}))
    for part, what, released in (
        ("annealing", "CGA step / QAT step", "mask in Python loops"),
        ("tracker", "oscillation tracking on / off", "-"),
    ):
        yield from _with(results.get(part, {}), what, released)
    yield from _gpu(results.get("gpu", {}))
    cell = results.get("cell", {})
    yield Line(
        f"digits grid cell / the same at {cell.get('commit', '5dd2585')}",
        "-",
        0.5,
        cell.get("ratio"),
        cell.get("missing", NOT_MEASURED),
    )


def _steps(steps: dict[str, Any]) -> Iterator[Line]:
    kinds = (("statsq", "W2A2", "2.04x", 1.25), ("statsq_qkr", "W2A2 + QKR", "2.17x", 1.5))
    for size in ("deit_tiny", "deit_small"):
        rows = steps.get(size, {})
        for method, words, released, target in kinds:
            start = f"{NAMES[size]} {words}: QAT step / full-precision step"
            eager = rows.get(method, {}).get("ratio")
            compiled = rows.get(f"{method}_compiled", {})
            yield Line(f"{start}, both eager", released, target, eager)
            yield Line(
                f"{start}, QAT compiled per block, full precision eager",
                released,
                target,
                compiled.get("ratio"),
            )
            yield Line(f"{start}, both compiled", released, target, compiled.get("to_compiled"))
    rows = steps.get("deit_small", {})
    base = rows.get("full_precision", {}).get("saved_bytes_per_image")
    for method, words, released, target in (
        ("statsq", "W2A2", "3.0x", 1.0),
        ("statsq_qkr", "W2A2 + QKR", "3.9x", 1.5),
    ):
        for suffix, how in (("", "eager"), ("_compiled", "compiled per block")):
            kept = rows.get(method + suffix, {}).get("saved_bytes_per_image")
            ratio = None if kept is None or base is None else float(kept / base)
            what = f"DeiT-S {words}: bytes saved for the backward / full precision, {how}"
            yield Line(what, released, target, ratio)


def _distillation(rows: dict[str, Any]) -> Iterator[Line]:
    for method in ("statsq", "statsq_qkr"):
        for name, how in (
            ("ours", "eager"),
            ("ours_compiled", "compiled per block"),
            ("ours_cached", "eager, the teacher's outputs from the cache of an earlier run"),
        ):
            what = f"DeiT-T {LABELS[method]}: distillation step / released behaviour, {how}"
            yield Line(what, "1.0", 0.45, rows.get(method, {}).get(name, {}).get("ratio"))


def _with(sizes: dict[str, Any], what: str, released: str) -> Iterator[Line]:
    for size, rows in sizes.items():
        for method, row in rows.items():
            if method != "batch":
                words = f"{NAMES[size]}, batch {rows['batch']}, {LABELS[method]}: {what}"
                yield Line(words, released, 1.05, row["ratio"])
    if not sizes:
        yield Line(what, released, 1.05, None)


def _gpu(gpu: dict[str, Any]) -> Iterator[Line]:
    what = "GPU, DeiT-S, batch 128, bf16, compiled: QAT step / full-precision step"
    if "missing" in gpu or not gpu:
        yield Line(what, "-", 1.3, None, gpu.get("missing", NOT_MEASURED))
        return
    for method in ("statsq", "statsq_qkr"):
        yield Line(f"{what}, {LABELS[method]}", "-", 1.3, gpu[method]["ratio"])


def _times(results: dict[str, Any]) -> list[str]:
    """What is behind the ratios: seconds and bytes."""
    steps, gpu = results.get("steps", {}), results.get("gpu", {})
    lines = []
    if steps:
        lines += ["## Steps", "", "Forward and backward without an update. Bytes saved for the"]
        lines += ["backward: every storage once, without parameters, images and labels, divided by"]
        lines += ["the images of the batch.", ""]
        lines += ["| model | variant | ms | MiB saved an image | plain form's MiB |"]
        lines += ["|---|---|---:|---:|---:|"]
    for size, rows in steps.items():
        for name, row in rows.items():
            plain = row.get("plain_saved_bytes_per_image")
            lines.append(
                f"| {NAMES[size]} | {_label(name)} | {1e3 * row['seconds']:.0f} | "
                f"{row['saved_bytes_per_image'] / 2**20:.1f} | "
                f"{'' if plain is None else f'{plain / 2**20:.1f}'} |"
            )
    if steps:
        lines.append("")
    if gpu and "missing" not in gpu:
        lines += ["| GPU, batch 128 | images/s | peak memory (GiB) |", "|---|---:|---:|"]
        for name, row in gpu.items():
            if name != "batch":
                lines.append(
                    f"| {_label(name)} | {row['images_per_second']:.0f} | "
                    f"{row['peak_bytes'] / 2**30:.1f} |"
                )
        lines.append("")
    return lines


def _label(name: str) -> str:
    base = name.removesuffix("_compiled")
    return LABELS[base] + (", compiled" if base != name else "")


def _growth(results: dict[str, Any]) -> list[str]:
    growth = results.get("growth")
    if not growth:
        return []
    lines = ["## How cost grows", "", "![Cost against tokens, width and batch](growth.svg)", ""]
    lines += [
        "A step of DeiT-T with four blocks; the slope is the exponent on logarithmic axes.",
        "",
    ]
    lines += [f"| cost against | {' | '.join(LABELS.values())} |"]
    lines += ["|---|" + "---:|" * len(LABELS)]
    for axis, methods in growth.items():
        slopes = " | ".join(f"{methods[name]['slope']:.2f}" for name in LABELS)
        lines.append(f"| {UNITS[axis]} | {slopes} |")
    return [*lines, ""]


def _loader(results: dict[str, Any]) -> list[str]:
    loader = results.get("loader")
    if not loader:
        return []
    lines = ["## Data loading", "", "Images per second without a model, beside a bare loop in one"]
    lines += ["process that decodes and transforms the same files.", ""]
    lines += ["| data | reader | images/s | a worker | a worker / bare loop (quartiles), n |"]
    lines += ["|---|---|---:|---:|---:|"]
    for kind, rows in loader.items():
        for name, row in rows.items():
            more = " | "
            if "per_worker" in row:
                r = row["ratio_per_worker"]
                more = (
                    f"{row['per_worker']:.0f} | {r['median']:.2f} "
                    f"({r['quarter']:.2f} to {r['three_quarters']:.2f}), {r['n']:.0f}"
                )
            lines.append(f"| {kind} | {name} | {row['images_per_second']:.0f} | {more} |")
    return [*lines, ""]


def _pieces(results: dict[str, Any]) -> list[str]:
    pieces = results.get("pieces")
    if not pieces:
        return []
    lines = ["## Pieces", "", "Medians of pytest-benchmark; full precision, the plain form, ours."]
    lines += ["Times of one piece follow each other, so these ratios are rougher than those above."]
    lines += [
        "",
        "| piece | full precision (ms) | plain (ms) | ours (ms) | ours / full precision | ",
    ]
    lines[-1] += "ours / plain | rounds |"
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    others = []
    for group, forms in pieces.items():
        if "ours" not in forms:
            words = [f"{name} {1e3 * row['median']:.1f} ms" for name, row in forms.items()]
            others.append(f"- {group}: {', '.join(words)}")
            continue
        full, plain, ours = (forms[name]["median"] for name in ("full_precision", "plain", "ours"))
        lines.append(
            f"| {group} | {1e3 * full:.3f} | {1e3 * plain:.3f} | {1e3 * ours:.3f} | "
            f"{ours / full:.2f} | {ours / plain:.2f} | {forms['ours']['rounds']} |"
        )
    return [*lines, "", *others, ""]


def _machines(latest: dict[str, Any]) -> list[str]:
    """Where and when each part was measured."""
    lines = [
        "## Where",
        "",
        "| part | date | commit | batch | processor | cores | threads | GPU | versions |",
    ]
    lines += ["|---|---|---|---:|---|---:|---:|---|---|"]
    for name, part in latest.items():
        m = part["machine"]
        changed = " and changes" if m["uncommitted"] else ""
        kernels = "with" if m.get("kernels") else "without"
        lines.append(
            f"| {name} | {m['date']} | {m['commit']}{changed} | {m.get('batch') or ''} | "
            f"{m['processor']} | {m['cores']} | {m['threads']} | {m['gpu'] or 'none'} | "
            f"torch {m['torch']}, timm {m['timm']}, Python {m['python']}, {kernels} C kernels |"
        )
    return [*lines, ""]
