"""torch.compile, one block at a time: all blocks of one shape share one compiled graph.

What torch fuses in a block (norms, GELU, quantizers) costs a fraction of the passes over memory
that the same operations cost one by one. Compiling takes about a minute and needs a C++ compiler on
a CPU, Triton on a GPU, so it pays in long runs alone; on a CPU not even there, where the quantizers
have kernels of their own (benchmarks/README.md).
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ofq_core.cost import model_cost
from ofq_core.files import private_folder
from ofq_core.models import is_swin
from ofq_core.quant.kernels import library, note

# Forward multiply-accumulates of a run from which compiling is taken to pay: about a quarter of an
# hour on two CPU cores.
WORTHWHILE_MACS = 1e13
# Of what autograd would keep for the backward of a compiled block; the rest is computed anew. So a
# quantized block keeps no more than one in full precision (benchmarks/README.md).
KEPT_SHARE = 0.5
_TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"


class Choice(NamedTuple):
    """compile: whether to. reason: said in the log."""

    compile: bool
    reason: str


def choose(wanted: bool | Literal["auto"], macs: float, device: torch.device) -> Choice:
    """Whether to compile.

    Args:
        wanted: `recipe.compile`.
        macs: multiply-accumulates of all forwards of the run.
    """
    if wanted != "auto":
        wish = f"recipe.compile = {str(wanted).lower()}"
        missing = _missing_tool(device) if wanted else None
        return Choice(
            wanted and not missing, f"{wish}, but {missing} was not found" if missing else wish
        )
    if device.type == "cpu" and library() is not None:
        return Choice(False, "automatic: on a CPU the quantizers' own kernels are as fast")
    work = f"{macs:.0e} multiply-accumulates in the run's forwards"
    if macs < WORTHWHILE_MACS:
        return Choice(False, f"automatic: {work}, compiling pays from {WORTHWHILE_MACS:.0e} on")
    missing = _missing_tool(device)
    if missing:
        return Choice(False, f"automatic: {missing} was not found")
    return Choice(True, f"automatic: {work}")


def compile_where_it_pays(
    models: Sequence[nn.Module],
    wanted: bool | Literal["auto"],
    images: int,
    device: torch.device,
    log: Callable[[str], None],
) -> None:
    """Compile the blocks of models that have any, where it is wanted or pays, and say so.

    Args:
        models: the one to be trained first, which decides.
        wanted: `recipe.compile`.
        images: forwards of one image in the whole run.
    """
    if not any(True for _ in blocks_of(models[0])):
        return
    if device.type == "cpu" and note():
        log(f"kernels of the quantizers: {note()}")
    chosen = choose(wanted, float(model_cost(models[0]).macs) * images, device)
    if chosen.compile:
        failure = _failure(device)
        if failure is not None:
            chosen = Choice(False, f"{chosen.reason}, but compiling fails here ({failure})")
    log(f"torch.compile per block: {'yes' if chosen.compile else 'no'}, {chosen.reason}")
    if chosen.compile:
        for model in models:
            compile_blocks(model)


def _missing_tool(device: torch.device) -> str | None:
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "Triton"
    found = any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
    return None if found else "a C++ compiler"


def _failure(device: torch.device) -> str | None:
    """Why something tiny cannot be compiled; None where it can.

    A compiler may be there and not work, and the first step of training is no place to learn that.
    """
    try:
        _use_private_cache()
        torch.compile(torch.add)(torch.ones(1, device=device), 1)
    except Exception as error:  # torch, its backends and the tools they call raise what they like
        told = str(error).strip().splitlines() or [type(error).__name__]
        return told[0]
    return None


def _use_private_cache() -> None:
    """Keep what torch compiles, and will execute, where nobody else can put anything.

    By default that is in a folder of a known name below the one for temporary files of all users.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    folder = os.environ.get(_TORCH_CACHE) or default_cache_dir()
    try:
        private_folder(Path(folder))
    except OSError:
        folder = tempfile.mkdtemp(prefix="ofq-torch-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[_TORCH_CACHE] = folder


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a vision transformer, or of all stages of a Swin transformer."""
    part: Any = model
    if is_swin(model):
        for stage in part.layers:
            yield from stage.blocks
    else:
        yield from getattr(part, "blocks", ())


def compile_blocks(model: nn.Module) -> None:
    """Have every block compiled when it first runs, for each shape and mode that occurs.

    A compiled block keeps about `KEPT_SHARE` of what autograd would keep: torch solves for what is
    cheapest to compute anew.
    """
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor

    inductor.deterministic = torch.are_deterministic_algorithms_enabled()
    functorch.activation_memory_budget = KEPT_SHARE
    for block in blocks_of(model):
        block.compile(dynamic=False)


def not_compiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Context in which a model's compiled blocks run as they were written.

    For evaluation: its modes and batch sizes would each be compiled for themselves.
    """
    if all(block._compiled_call_impl is None for block in blocks_of(model)):
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
