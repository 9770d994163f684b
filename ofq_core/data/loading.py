"""Read batches in worker processes and hand them to the device one ahead."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ofq_core.data.deaths import is_silence, not_started, worker_deaths
from ofq_core.data.samples import Collated, collate
from ofq_core.errors import DataError

# Seconds between two looks whether silent readers are alive, and until they are given up.
LOOK, PATIENCE = 5.0, 1200.0
# What readers need; without these they would import torch and timm one by one.
PRELOADED = ["ofq_core.data.samples", "ofq_core.data.folder"]


class Batches:
    """A data loader over given keys. Its workers, if it keeps them, outlive an epoch.

    Args:
        keep: leave the workers running between two runs.
        pin: put batches into pinned memory, from which the copy to a GPU does not wait.
    """

    def __init__(self, samples: Dataset[Any], workers: int, keep: bool, pin: bool) -> None:
        self._keys, self._workers = _Keys(), workers
        self._make = partial(
            DataLoader,
            samples,
            batch_sampler=self._keys,
            num_workers=workers,
            timeout=LOOK if workers else 0,
            collate_fn=collate,
            pin_memory=pin,
            persistent_workers=keep and workers > 0,
        )
        self._loader: DataLoader[Any] | None = None

    def run(self, keys: Iterable[list[Any]]) -> Generator[Collated, None, None]:
        """The batches of these keys, in order.

        Raises:
            DataError: a worker process died, or gave nothing for too long.
        """
        self._keys.current = keys
        batches = None
        try:
            with worker_deaths():
                batches = self._start()
                while (batch := _next(batches)) is not None:
                    if self._keys.current is not keys:
                        raise RuntimeError("these batches were overtaken by a later run of them")
                    yield batch
        except DataError:
            self.stop()
            _end(batches)
            raise

    def stop(self) -> None:
        """Let the workers go; the next run starts others."""
        self._loader = None

    def _start(self) -> Iterator[Collated]:
        """Ask the workers for the current keys; those of before that do not answer are replaced.

        Raises:
            DataError: a worker cannot be started, as when the fork server is dead.
        """
        for kept in (self._loader is not None, False):
            if self._loader is None:
                # A generator of its own, else every run would take a number from torch's own.
                context = self._context()
                self._loader = self._make(
                    generator=torch.Generator(),
                    multiprocessing_context=context,
                    worker_init_fn=None if context is None else _end_with_parent,
                )
            try:
                return iter(self._loader)
            except (EOFError, OSError) as error:
                raise DataError(not_started(error)) from error
            except RuntimeError as error:
                if not kept or not is_silence(error):
                    raise
                _end(self._loader._iterator)
                self.stop()
        raise AssertionError("unreachable")

    def _context(self) -> BaseContext | None:
        """How to start workers; None: fork.

        Not where there is a process group: a fork while one of its threads holds a lock of
        Python's leaves a worker that waits for that lock for ever.
        """
        if self._workers == 0 or not (distributed.is_available() and distributed.is_initialized()):
            return None
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        # The suite leaves without taking torch apart; what is left over is tidied up all the same,
        # and nobody needs to hear of it.
        sys.warnoptions.append("ignore:resource_tracker")
        resource_tracker.ensure_running()
        sys.warnoptions.pop()
        return context


class _Keys:
    """The sampler of a loader whose keys change from run to run.

    An object of its own: were `Batches` the sampler of its own loader, only the garbage collector
    could end the workers, and from there their queues cannot be told; it takes 5 s a worker.
    """

    current: Iterable[list[Any]] = ()

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.current)


def _end_with_parent(worker: int) -> None:
    """Let a reader end when the process that it reads for does; PyTorch looks at the fork server.

    That lives as long as its children do, and so they would all live for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _next(batches: Iterator[Collated]) -> Collated | None:
    """The next batch, or None at the end. Raises RuntimeError for readers that are given up."""
    waited = 0.0
    while True:
        try:
            return next(batches, None)
        except RuntimeError as error:
            # The loader has just looked that all of its readers are alive.
            waited += LOOK
            if not is_silence(error) or waited >= PATIENCE:
                raise


def _end(batches: Any) -> None:
    """End readers that may not listen: Python would wait for them when it exits."""
    if isinstance(batches, _MultiProcessingDataLoaderIter):
        batches._shutdown_workers()
        for reader in batches._workers:
            reader.kill()


def to_device(
    batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on the device. For CUDA, the next one is copied while the current one is used."""
    if device.type != "cuda":
        for images, labels in batches:
            yield images.to(device), labels.to(device)
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[tuple[Tensor, Tensor], torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            images, labels = (part.to(device, non_blocking=True) for part in batch)
        following = (images, labels), side.record_event()
        if ahead is not None:
            yield _arrived(*ahead, device)
        ahead = following
    if ahead is not None:
        yield _arrived(*ahead, device)


def _arrived(
    batch: tuple[Tensor, Tensor], copied: torch.cuda.Event, device: torch.device
) -> tuple[Tensor, Tensor]:
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)
    for part in batch:
        # Its memory belongs to the side stream, which must not take it back too early.
        part.record_stream(stream)
    return batch
