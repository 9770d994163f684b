"""Small data in memory: scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ofq_core.data.augment import augment
from ofq_core.data.order import Share, epoch_order, mix_group, positions
from ofq_core.data.source import Batch, Data, SplitName
from ofq_core.data.splits import PreparedData, Split
from ofq_core.seeds import generator
from ofq_core.settings import DigitsSettings, RecipeSettings


class ArrayData(Data):
    """Prepared arrays behind the interface of `Data`."""

    def __init__(self, prepared: PreparedData, settings: DigitsSettings) -> None:
        self.prepared, self.settings = prepared, settings
        self.classes = prepared.classes
        self.class_names = [str(digit) for digit in range(prepared.classes)]
        channels, height, width = prepared.train.images.shape[1:]
        self.shape = (channels, height, width)
        self.train_size = len(prepared.train)
        self.manifest_sha256 = prepared.manifest_sha256

    def train_batches(
        self,
        recipe: RecipeSettings,
        seed: int,
        epoch: int,
        first_step: int,
        share: Share,
        device: torch.device,
    ) -> Iterator[Batch]:
        """See `Data.train_batches`."""
        size = recipe.batch_size
        order = epoch_order(self.train_size, recipe, seed, epoch)
        mine = positions(size, share, mix_group(recipe))
        for step in range(first_step, self.steps(recipe)):
            index = order[step * size : (step + 1) * size]
            # All of the batch is drawn, so that the views do not depend on how it is split.
            draws = generator(seed, "augment", epoch, step)
            views = augment(self.prepared.train.images[index], self.settings, draws)[mine]
            images = self.prepared.normalise(views).to(device)
            targets = self.prepared.train.labels[index][mine].to(device)
            if recipe.mixes:
                # Imported here: timm takes seconds, and most studies of digits do not mix.
                from ofq_core.data.mixing import mix

                images, targets = mix(
                    images, targets, mine, recipe, self.classes, seed, epoch, step
                )
            yield Batch(images, targets)

    def eval_batches(
        self, split: SplitName, batch_size: int, share: Share, device: torch.device
    ) -> Iterator[Batch]:
        """See `Data.eval_batches`."""
        part = self._split(split)
        mine = torch.arange(len(part))[share.rank :: share.world]
        for index in torch.split(mine, batch_size):
            images = self.prepared.normalise(part.images[index])
            yield Batch(images.to(device), part.labels[index].to(device))

    def split_size(self, split: SplitName) -> int:
        """See `Data.split_size`."""
        return len(self._split(split))

    def calibration_images(self, seed: int, count: int) -> Tensor:
        """See `Data.calibration_images`."""
        order = torch.randperm(self.train_size, generator=generator(seed, "calibration"))
        return self.prepared.normalise(self.prepared.train.images[order[:count]])

    def _split(self, name: SplitName) -> Split:
        return self.prepared.val if name == "val" else self.prepared.test
