"""LSQ and StatsQ on a CPU in one pass over memory instead of one per operator, the same to the bit.

`kernels.c` is compiled once a machine by the C compiler at hand, in a second, into the user's
cache (`$XDG_CACHE_HOME/ofq`, else `~/.cache/ofq`). Every operation in it rounds as torch's operator
does, and sums stay torch's, so whether it is used changes no bit of a result. It is used for FP32
on a CPU outside of compiled blocks. Without a compiler, or with OFQ_KERNELS=off in the environment,
torch's operators do the same more slowly.

What is in the cache is executed, so it is taken only if folder and file are the user's and nobody
else may write them, and if the content has the hash that the file's name says: a damaged file is
compiled again. Where there is no such folder each process compiles for itself.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ofq_core.files import is_private_file, private_folder, sha256_file

SOURCE = Path(__file__).with_name("kernels.c")
# Contracting a product and a sum into one operation would round once instead of twice.
FLAGS = ("-O3", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
# Tried in turn: not every compiler knows each.
EXTRAS = (("-march=native", "-fopenmp"), ("-fopenmp",), ())
COMPILERS = ("cc", "gcc", "clang")
# It takes a second, on a busy machine a minute; a compiler that hangs is given up.
COMPILE_SECONDS = 300
# Shorter runs are not worth a loop of their own, nor smaller tensors other threads.
SHORTEST_RUN = 8
PARALLEL_ENTRIES = 1 << 15

_off = False


class Layout(ctypes.Structure):
    """How the loops go through a tensor; see `kernels.c`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("runs", "run", "width", "stride", "inner")),
        *((name, ctypes.c_int64) for name in ("scales", "columns", "threads")),
        *((name, ctypes.c_float) for name in ("qmin", "qmax", "floor")),
    )


@contextmanager
def torch_operators() -> Iterator[None]:
    """Within the block torch's operators are used, as where there is no compiler."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


class _Found(NamedTuple):
    """The library, or None; and what a user should know, if anything."""

    library: ctypes.CDLL | None
    note: str = ""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where there is no compiler, or where they are switched off."""
    return _found().library


def note() -> str:
    """Why there are no kernels though nobody switched them off, or none for the next process."""
    return _found().note


@functools.cache
def _found() -> _Found:
    if os.environ.get("OFQ_KERNELS", "").lower() == "off":
        return _Found(None)
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), *COMPILERS))), None)
    if compiler is None:
        return _Found(None, "no C compiler was found, so torch's operators do it more slowly")
    reason: Exception | None = None
    for extra in EXTRAS:
        try:
            return _load(compiler, (*FLAGS, *extra))
        except (OSError, subprocess.SubprocessError) as error:
            reason = error
    return _Found(
        None, f"torch's operators do it more slowly: {compiler} made no kernels ({reason})"
    )


def _load(compiler: str, flags: tuple[str, ...]) -> _Found:
    """Take what is in the cache, else compile: into the cache, or for this process alone.

    Raises:
        OSError: nothing can be written, or what was compiled not loaded.
        subprocess.SubprocessError: the compiler fails.
    """
    name = f"kernels-{_key(compiler, flags)}"
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = Path(home) / "ofq"
        private_folder(cache)
        path = _whole(cache, name) or _compiled(cache, name, compiler, flags)
        return _Found(_declared(path))
    except (OSError, RuntimeError) as error:  # Path.home() raises RuntimeError
        with tempfile.TemporaryDirectory(prefix="ofq-") as folder:
            loaded = _declared(_compiled(Path(folder), name, compiler, flags))
        return _Found(loaded, f"compiled for this process alone: there is no cache ({error})")


def _whole(cache: Path, name: str) -> Path | None:
    """What is there and is what it says; anything else of this name is removed."""
    for path in cache.glob(f"{name}-*.so"):
        if is_private_file(path) and path.stem == f"{name}-{sha256_file(path)}":
            return path
        path.unlink()
    return None


def _compiled(folder: Path, name: str, compiler: str, flags: tuple[str, ...]) -> Path:
    """Compile into a folder, under the name with the hash of the content."""
    # Processes that start together may all compile; each puts a whole file in place.
    with tempfile.TemporaryDirectory(dir=folder) as private:
        made = Path(private) / "kernels.so"
        command = [compiler, *flags, "-o", str(made), str(SOURCE), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
        made.chmod(0o700)
        return made.replace(folder / f"{name}-{sha256_file(made)}.so")


def _declared(path: Path) -> ctypes.CDLL:
    """The library with the types of its functions."""
    loaded = ctypes.CDLL(str(path))
    for function in (loaded.ofq_lsq_forward, loaded.ofq_lsq_backward):
        function.argtypes = [*[ctypes.c_void_p] * 5, ctypes.POINTER(Layout)]
        function.restype = None
    loaded.ofq_statsq.argtypes = (
        *[ctypes.c_void_p] * 5, ctypes.c_int64, ctypes.c_int64, ctypes.c_float, ctypes.c_float
    )  # fmt: skip
    loaded.ofq_statsq.restype = None
    return loaded


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    """What the compiled file depends on: machines with other processors may share the cache."""
    info = Path("/proc/cpuinfo")
    features = ""
    if info.is_file():
        lines = info.read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    told = "\n".join((SOURCE.read_text(), compiler, *flags, platform.machine(), features))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def usable(x: Tensor, scale: Tensor) -> bool:
    """Whether the kernels do this tensor: FP32 on a CPU, real data, not in a compiled block."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, nn.Parameter)
        and x.dtype is scale.dtype is torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not _off
        and library() is not None
    )


@functools.lru_cache(maxsize=1024)
def layout(
    shape: tuple[int, ...],
    row: int | None,
    view: tuple[int, ...],
    scale: tuple[int, ...],
    columns: int,
    bounds: tuple[int, int, float],
    threads: int,
) -> Layout | None:
    """How to go through x of this shape; None where no loop fits.

    Args:
        row: its `row_distance`.
        view, scale: of `biased_lsq.Grid`. columns: entries of a bias, 0 without biases.
        bounds: qmin, qmax and the least scale.
    """
    if row is None:
        return None
    count, width, scales = math.prod(shape), shape[-1], math.prod(scale)
    # One axis of the view at most has scales of its own.
    axis = next((axis for axis, size in enumerate(scale) if size > 1), -1)
    inner = math.prod(view[axis + 1 :])
    if inner == 1 and scales > 1:
        run, inner = scales, 0
        fits = columns in (0, scales) and (row == width or width % scales == 0)
    else:
        run = math.gcd(inner, columns, 0 if row == width else width)
        fits = run >= min(SHORTEST_RUN, count)
    if not fits:
        return None
    return Layout(
        count // run, run, width, row, inner, scales, columns,
        threads if count >= PARALLEL_ENTRIES else 1, *bounds,
    )  # fmt: skip


def row_distance(x: Tensor) -> int | None:
    """Entries from one row of x to the next; None where x is not made of rows at one distance."""
    sizes, strides = x.shape, x.stride()
    if x.is_contiguous():
        return sizes[-1]
    even = all(
        strides[i] == strides[i + 1] * sizes[i + 1] or sizes[i] == 1 for i in range(x.ndim - 2)
    )
    fits = x.ndim > 1 and even and strides[-1] == 1 and strides[-2] >= sizes[-1]
    return strides[-2] if fits else None


def forward(
    x: Tensor, scale: Tensor, before: Tensor | None, after: Tensor | None, plan: Layout
) -> Tensor:
    """y, contiguous. x: FP32, as in `layout`; scales and biases are contiguous vectors."""
    found = library()
    assert found is not None
    y = torch.empty(x.shape, dtype=x.dtype)
    found.ofq_lsq_forward(
        x.data_ptr(), scale.data_ptr(), _pointer(before), _pointer(after), y.data_ptr(), plan
    )
    return y


def backward(
    x: Tensor, scale: Tensor, before: Tensor | None, grad: Tensor, into_scale: Tensor, plan: Layout
) -> None:
    """Turn grad from dL/dy to dL/dx, and fill into_scale with what is to be summed for dL/ds.

    grad, into_scale: contiguous, FP32, as many entries as x; the gain is left out.
    """
    found = library()
    assert found is not None
    found.ofq_lsq_backward(
        x.data_ptr(),
        scale.data_ptr(),
        _pointer(before),
        grad.data_ptr(),
        into_scale.data_ptr(),
        plan,
    )


def statsq(
    weight: Tensor, steps: Tensor, units: Tensor, bounds: tuple[float, float], with_codes: bool
) -> tuple[Tensor, Tensor | None]:
    """Values, and codes in FP32 if wanted. weight: (..., columns), contiguous, FP32.

    steps, units: see `kernels.c`, one per row, contiguous. bounds: of W / step.
    """
    found = library()
    assert found is not None
    y, columns = torch.empty_like(weight), weight.shape[-1]
    codes = torch.empty_like(weight) if with_codes else None
    found.ofq_statsq(
        weight.data_ptr(), steps.data_ptr(), units.data_ptr(), y.data_ptr(), _pointer(codes),
        weight.numel() // columns, columns, *bounds,
    )  # fmt: skip
    return y, codes


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
