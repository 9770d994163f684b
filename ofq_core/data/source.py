"""What training and evaluation need of data, whatever its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ofq_core.data.order import Share, epoch_steps, positions
from ofq_core.settings import RecipeSettings

__all__ = ["Batch", "Data", "Share", "SplitName", "positions"]

SplitName = Literal["val", "test"]


@dataclass(frozen=True)
class Batch:
    """Normalised images (n, channels, height, width), FP32, and what they should be.

    targets: class indices (n,), int64, or probabilities (n, classes), FP32, of mixed images.
    """

    images: Tensor
    targets: Tensor


class Data(ABC):
    """Training images with their augmentation, and the two splits that are evaluated.

    Attributes:
        classes: number of classes.
        class_names: their names by index; None where the data only number them.
        shape: (channels, height, width) of the images.
        train_size: number of training images.
        manifest_sha256: hash of the manifest that the prepare stage wrote.

    Every draw depends on the seed, the epoch and the position in the epoch alone: neither on the
    number of processes nor of workers, nor on where an earlier attempt was cut off.
    """

    classes: int
    class_names: list[str] | None = None
    shape: tuple[int, int, int]
    train_size: int
    manifest_sha256: str

    def steps(self, recipe: RecipeSettings) -> int:
        """Optimizer steps in an epoch; an incomplete last batch is left out.

        Raises:
            DataError: a batch is larger than the training split.
        """
        return epoch_steps(self.train_size, recipe)

    @abstractmethod
    def train_batches(
        self,
        recipe: RecipeSettings,
        seed: int,
        epoch: int,
        first_step: int,
        share: Share,
        device: torch.device,
    ) -> Iterator[Batch]:
        """This process's part of every batch from `first_step` of an epoch on, on the device."""

    @abstractmethod
    def eval_batches(
        self, split: SplitName, batch_size: int, share: Share, device: torch.device
    ) -> Iterator[Batch]:
        """This process's images of a split, each image of the split in exactly one process."""

    @abstractmethod
    def split_size(self, split: SplitName) -> int:
        """Number of images of a split; 0 when nothing is held out for validation."""

    @abstractmethod
    def calibration_images(self, seed: int, count: int) -> Tensor:
        """At most `count` training images without augmentation, on the CPU, by the seed alone."""

    def unreadable(self) -> list[str]:
        """Names of the images that this process could not read so far, sorted."""
        return []

    def left_out(self) -> dict[str, str]:
        """What this process could not read so far, and files that are no images, and why."""
        return {}
