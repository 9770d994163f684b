"""Images on disk behind the interface of `Data`, with timm's transforms and mixing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from ofq_core.data.environment import worker_count
from ofq_core.data.loading import Batches, to_device
from ofq_core.data.manifest import PreparedImages, check_share
from ofq_core.data.mixing import mix
from ofq_core.data.order import Share, epoch_order, mix_group, positions
from ofq_core.data.samples import EvalSamples, Images, TrainSamples, View
from ofq_core.data.source import Batch, Data, SplitName
from ofq_core.data.transforms import eval_transform, train_transform
from ofq_core.errors import DataError
from ofq_core.seeds import generator
from ofq_core.settings import ImageSettings, RecipeSettings


class ImageData(Data):
    """Prepared images, read by $OFQ_WORKERS worker processes (0: by this one).

    The augmentation of an image is drawn from the seed, the epoch and the position in the epoch's
    order, so the stream is the same bit by bit for any number of workers or processes and from any
    first step on.
    """

    def __init__(self, prepared: PreparedImages, settings: ImageSettings) -> None:
        self.prepared, self.settings = prepared, settings
        self.classes = len(prepared.classes)
        # Shards have numbers instead.
        self.class_names = None if settings.source.startswith("wds/") else prepared.classes
        self.shape = (settings.channels, settings.size, settings.size)
        self.train_size = len(prepared.splits["train"])
        self.manifest_sha256 = prepared.manifest_sha256
        self._workers = worker_count()
        self._images = {
            name: Images(prepared.origin, rows, settings.channels)
            for name, rows in prepared.splits.items()
        }
        # One image more than may be unreadable: then work stops anyway.
        tries = int(settings.max_unreadable * self.train_size) + 1
        self._train = TrainSamples(self._images["train"], train_transform(settings), tries)
        self._eval_transform = eval_transform(settings)
        self._failed: dict[str, dict[int, str]] = {name: {} for name in prepared.splits}
        self._batches: dict[bool, Batches] = {}

    def train_batches(
        self,
        recipe: RecipeSettings,
        seed: int,
        epoch: int,
        first_step: int,
        share: Share,
        device: torch.device,
    ) -> Iterator[Batch]:
        """See `Data.train_batches`.

        Raises:
            DataError: a worker died, too many images are unreadable, or the batch is too small for
                its processes.
        """
        mine = positions(recipe.batch_size, share, mix_group(recipe))
        steps = range(first_step, self.steps(recipe))
        order = epoch_order(self.train_size, recipe, seed, epoch)
        keys = (
            [
                View(seed, epoch, p, int(order[p]))
                for p in (step * recipe.batch_size + mine).tolist()
            ]
            for step in steps
        )
        read = self._read(self._loader(device), "train", keys)
        for step, (images, labels) in zip(steps, to_device(read, device), strict=True):
            if recipe.mixes:
                images, labels = mix(images, labels, mine, recipe, self.classes, seed, epoch, step)
            yield Batch(images, labels)

    def eval_batches(
        self, split: SplitName, batch_size: int, share: Share, device: torch.device
    ) -> Iterator[Batch]:
        """See `Data.eval_batches`. Unreadable images are left out."""
        mine = range(share.rank, self.split_size(split), share.world)
        keys = [list(mine[i : i + batch_size]) for i in range(0, len(mine), batch_size)]
        samples = EvalSamples(self._images[split], self._eval_transform)
        workers = min(self._workers, len(keys))
        batches = Batches(samples, workers, keep=False, pin=device.type == "cuda")
        for images, labels in to_device(self._read(batches, split, keys), device):
            yield Batch(images, labels)

    def split_size(self, split: SplitName) -> int:
        """See `Data.split_size`; unreadable images count."""
        return len(self.prepared.splits[split])

    def calibration_images(self, seed: int, count: int) -> Tensor:
        """See `Data.calibration_images`. Unreadable images are passed over."""
        order = torch.randperm(self.train_size, generator=generator(seed, "calibration"))
        samples = EvalSamples(self._images["train"], self._eval_transform)
        found: list[Tensor] = []
        for index in order.tolist():
            if len(found) == count:
                break
            sample = samples[index]
            self._note("train", sample.failed)
            if sample.image is not None:
                found.append(sample.image)
        return torch.stack(found)

    def unreadable(self) -> list[str]:
        """See `Data.unreadable`."""
        return sorted(self._faults())

    def left_out(self) -> dict[str, str]:
        """See `Data.left_out`."""
        return {**self.prepared.others, **self._faults()}

    def _faults(self) -> dict[str, str]:
        return {
            self.prepared.splits[split].name(index): reason
            for split, failed in self._failed.items()
            for index, reason in failed.items()
        }

    def _loader(self, device: torch.device) -> Batches:
        pin = device.type == "cuda"
        if pin not in self._batches:
            self._batches[pin] = Batches(self._train, self._workers, keep=True, pin=pin)
        return self._batches[pin]

    def _read(
        self, batches: Batches, split: str, keys: Iterable[list[Any]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        with closing(batches.run(keys)) as run:
            for batch in run:
                try:
                    self._note(split, batch.failed)
                except DataError:
                    batches.stop()
                    raise
                if batch.images is not None:
                    yield batch.images, batch.labels

    def _note(self, split: str, failed: dict[int, str]) -> None:
        """Remember what could not be read; raises DataError when that is too much."""
        known = self._failed[split]
        if known.keys() >= failed.keys():
            return
        known.update(failed)
        rows = self.prepared.splits[split]
        faults = {rows.name(i): reason for i, reason in known.items()}
        check_share(self.settings, split, faults, len(rows))
