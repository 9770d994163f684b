"""One process per device: which one this is, and the little that processes do together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ofq_core.data import Share
from ofq_core.errors import SettingsError

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """Number `rank` of `size` processes, its device, and the most images of one forward.

    Only the main process (rank 0) writes files, logs and tracks. micro_batch None: all of the
    process's part of a batch in one forward.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    micro_batch: int | None = None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This process's part of every batch."""
        return Share(self.rank, self.size)

    def total(self, value: Tensor) -> Tensor:
        """Sum over all processes, in place; the tensor must be on this process's device."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def gathered(self, value: T) -> list[T]:
        """The plain values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def told(self, value: T) -> T:
        """What the main process says, for example about the clock."""
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world() -> Iterator[World]:
    """Join the processes that a launcher such as torchrun started; without one, be alone.

    Read from the environment: RANK, WORLD_SIZE, LOCAL_RANK (as torchrun sets them), OFQ_DEVICE
    (cpu or cuda; default: cuda where there is one) and OFQ_MICRO_BATCH (most images per forward of
    a process; no influence on results).

    Raises:
        SettingsError: one of them has a value that cannot be.
    """
    size, rank = _number("WORLD_SIZE", 1, 1), _number("RANK", 0, 0)
    if rank >= size:
        raise SettingsError(f"RANK = {rank}: expected a number below WORLD_SIZE = {size}")
    micro_batch = _number("OFQ_MICRO_BATCH", 0, 1) or None
    device = _device(_number("LOCAL_RANK", 0, 0))
    world = World(rank, size, device, micro_batch)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield world
        return
    cuda = device if device.type == "cuda" else None
    dist.init_process_group("gloo" if cuda is None else "nccl", device_id=cuda)
    yield world
    # Not after an error: taking the group apart would wait for processes that wait for this one.
    dist.destroy_process_group()


def _number(name: str, default: int, smallest: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < smallest:
        raise SettingsError(f"{name} = {text!r}: expected a whole number, at least {smallest}")
    return int(text)


def _device(local_rank: int) -> torch.device:
    found = torch.cuda.is_available()
    name = os.environ.get("OFQ_DEVICE", "cuda" if found else "cpu")
    if name not in ("cpu", "cuda"):
        raise SettingsError(f"OFQ_DEVICE = {name!r}: expected cpu or cuda")
    if name == "cpu":
        return torch.device("cpu")
    if not found:
        raise SettingsError("OFQ_DEVICE = 'cuda', but torch finds no CUDA device here: set cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise SettingsError(
            f"process {local_rank} of this machine has no CUDA device of its own, there are "
            f"{count}: start at most {count} processes (OFQ_PROCESSES)"
        )
    return torch.device("cuda", local_rank)
