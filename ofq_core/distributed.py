"""One process per device: which one this is, and the little that processes do together."""

from __future__ import annotations

import datetime
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from ofq_core.data import Share
from ofq_core.errors import LeftAloneError, SettingsError

T = TypeVar("T")
# What a launcher sets for each process; and what says that one did, and starts all processes.
LAUNCHED = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
# So long the first waits for the others: on a cluster until all nodes have read their libraries.
PATIENCE_SECONDS, BY_HAND_SECONDS = 600, 60
CPU = torch.device("cpu")
# How gloo and NCCL say that another process is gone.
_GONE = re.compile("(closed|reset) by peer|Broken pipe|remote process exited", re.IGNORECASE)


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

    Read from the environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT (as torchrun
    sets them), OFQ_DEVICE (cpu or cuda; default: cuda where there is one) and OFQ_MICRO_BATCH (most
    images per forward of a process; no influence on results).

    Raises:
        SettingsError: one of them has a value that cannot be, some are missing, as where one was
            left over and no launcher started this process, or the other processes do not come.
        LeftAloneError: in the block, where another process ended and this one waited for it.
    """
    size, rank = _number("WORLD_SIZE", 1, 1), _number("RANK", 0, 0)
    missing = [name for name in LAUNCHED if size > 1 and not os.environ.get(name)]
    if missing:
        raise SettingsError(
            f"WORLD_SIZE = {size}, but there is no {' and no '.join(missing)}: no launcher such as "
            "torchrun started this process; unset WORLD_SIZE"
        )
    if rank >= size:
        unset = "; without a launcher such as torchrun unset RANK" if size == 1 else ""
        raise SettingsError(f"RANK = {rank}: expected a number below WORLD_SIZE = {size}{unset}")
    port = _number("MASTER_PORT", 1, 1)
    if port > 65535:
        raise SettingsError(f"MASTER_PORT = '{port}': expected a whole number, at most 65535")
    micro_batch = _number("OFQ_MICRO_BATCH", 0, 1) or None
    device = _device(_number("LOCAL_RANK", 0, 0))
    world = World(rank, size, device, micro_batch)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield world
        return
    cuda = device if device.type == "cuda" else None
    dist.init_process_group(
        "gloo" if cuda is None else "nccl",
        store=_meeting(rank, size),
        rank=rank,
        world_size=size,
        device_id=cuda,
    )
    try:
        yield world
    except RuntimeError as error:
        if not _GONE.search(str(error)):
            raise
        raise LeftAloneError("another process of this command ended before its time") from error
    # Not after an error: taking the group apart would wait for processes that wait for this one.
    dist.destroy_process_group()


def _meeting(rank: int, size: int) -> Any:
    """Where all processes of the launcher have met."""
    launched = any(name in os.environ for name in LAUNCHERS)
    seconds = PATIENCE_SECONDS if launched else BY_HAND_SECONDS
    patience = datetime.timedelta(seconds=seconds)
    try:
        with _silent():
            store = next(rendezvous("env://", rank, size, timeout=patience))[0]
            store.set_timeout(patience)
            here = [f"here/{each}" for each in range(size)]
            store.set(here[rank], "")
            store.wait(here)
    except (dist.DistError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise SettingsError(
            f"WORLD_SIZE = {size}, RANK = {rank}: the {size} processes did not meet at {where} "
            f"within {seconds} s ({reason}); without a launcher such as torchrun unset "
            "WORLD_SIZE and RANK"
        ) from error
    store.set_timeout(dist.default_pg_timeout)
    return store


@contextmanager
def _silent() -> Iterator[None]:
    """torch writes a stack trace to stderr for every connection that fails, past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


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
