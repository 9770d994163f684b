"""What a step costs that does not depend on the machine: operators, saved bytes, peak of bytes.

Counted below autograd, by a dispatch mode: every call of an aten operator, and the storage of every
tensor such a call returns, until it is freed. What operators allocate for themselves is not seen.
Where `ofq_core.quant.kernels` would be used torch's operators are: they can be counted everywhere.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.subjects import Step


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators, and bytes of live storages that were made while it was on.

    Attributes:
        operators: calls of aten operators, views included.
        live: bytes of storages made by them that still exist. peak: the most there were at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = self.live = self.peak = 0
        self._known: set[int] = set()

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these tensors' storages, which were there before."""
        for tensor in tensors:
            if _key(tensor) not in self._known:
                self._watch(tensor, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator and look at what it returns."""
        self.operators += 1
        # What it is given was made before the mode was on, or is known.
        self.ignore(leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor))
        results = func(*args, **(kwargs or {}))
        for leaf in tree_iter(results):
            if isinstance(leaf, Tensor) and _key(leaf) not in self._known:
                self._watch(leaf, leaf.untyped_storage().nbytes())
        return results

    def _watch(self, tensor: Tensor, size: int) -> None:
        key = _key(tensor)
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        # Its place may be taken again when it is freed.
        weakref.finalize(tensor.untyped_storage(), self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _key(tensor: Tensor) -> int:
    """The identity of a tensor's storage as long as that exists."""
    return int(tensor.untyped_storage()._cdata)


class Saved:
    """Storages that autograd keeps for the backward.

    Parameters, images and labels are left out: they are there anyway. Each storage counts once, at
    its full size.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self._known = {_key(tensor) for tensor in known}
        self._storages: dict[int, torch.UntypedStorage] = {}

    @property
    def bytes(self) -> int:
        """Bytes kept so far."""
        return sum(storage.nbytes() for storage in self._storages.values())

    @contextmanager
    def watch(self) -> Iterator[None]:
        """A forward inside of this is watched."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpacked):
            yield

    def _pack(self, tensor: Tensor) -> Tensor:
        key = _key(tensor)
        if key not in self._known:
            self._storages[key] = tensor.untyped_storage()
        return tensor


def _unpacked(tensor: Tensor) -> Tensor:
    return tensor


def saved_bytes(step: Step) -> int:
    """Bytes that the forward of a step leaves for its backward, eager or compiled."""
    saved = Saved(step.lasting())
    with saved.watch():
        loss = step.forward()
    # Counted while the graph lives: the place of a storage that is freed is taken again.
    kept = saved.bytes
    del loss
    return kept


@dataclass(frozen=True)
class Counts:
    """A step in numbers. Operators of forward (teacher and loss included), backward and update;
    bytes saved for the backward; most bytes that were live at once, parameters not counted."""

    forward: int
    backward: int
    update: int
    saved_bytes: int
    peak_bytes: int

    def as_dict(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)


def count(step: Step, warm_up: int = 1) -> Counts:
    """Count a step after another, which sets up what lasts, such as the optimizer's state.

    The gradients of the parameters are made in a step, so they are in the peak.
    """
    with _torch_operators():
        return _count(step, warm_up)


def _count(step: Step, warm_up: int) -> Counts:
    for _ in range(warm_up):
        step()
    step.clear()
    kept = saved_bytes(step)
    operators = []
    with _no_collection(), Counter() as counter:
        counter.ignore(step.lasting())
        loss = step.forward()
        operators.append(counter.operators)
        loss.backward()  # type: ignore[no-untyped-call]
        operators.append(counter.operators)
        step.update()
        operators.append(counter.operators)
    forward, backward, update = operators
    return Counts(forward, backward - forward, update - backward, kept, counter.peak)


def _torch_operators() -> AbstractContextManager[None]:
    try:
        from ofq_core.quant.kernels import torch_operators
    except ImportError:  # a commit before there were kernels, in `benchmarks.against`
        return nullcontext()
    return torch_operators()


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: when it comes depends on what the process did before."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
