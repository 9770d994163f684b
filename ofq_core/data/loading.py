"""Read batches in worker processes and hand them to the device one ahead."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ofq_core.data.deaths import worker_deaths
from ofq_core.data.samples import Collated, collate
from ofq_core.errors import DataError


class Batches:
    """A data loader over given keys. Its workers, if it keeps them, outlive an epoch.

    Args:
        keep: leave the workers running between two runs.
        pin: put batches into pinned memory, from which the copy to a GPU does not wait.
    """

    def __init__(self, samples: Dataset[Any], workers: int, keep: bool, pin: bool) -> None:
        self._keys = _Keys()
        self._make = partial(
            DataLoader,
            samples,
            batch_sampler=self._keys,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin,
            persistent_workers=keep and workers > 0,
        )
        self._loader: DataLoader[Any] | None = None

    def run(self, keys: Iterable[list[Any]]) -> Generator[Collated, None, None]:
        """The batches of these keys, in order.

        Raises:
            DataError: a worker process died.
        """
        self._keys.current = keys
        if self._loader is None:
            # A generator of its own, else every run would take a number from torch's global one.
            self._loader = self._make(generator=torch.Generator())
        try:
            with worker_deaths():
                for batch in self._loader:
                    if self._keys.current is not keys:
                        raise RuntimeError("these batches were overtaken by a later run of them")
                    yield batch
        except DataError:
            self.stop()
            raise

    def stop(self) -> None:
        """Let the workers go; the next run starts others."""
        self._loader = None


class _Keys:
    """The sampler of a loader whose keys change from run to run.

    An object of its own: were `Batches` the sampler of its own loader, only the garbage collector
    could end the workers, and from there their queues cannot be told; it takes 5 s a worker.
    """

    current: Iterable[list[Any]] = ()

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.current)


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
