"""Mixup and CutMix by timm, drawn so that the processes of a batch agree without talking."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ofq_core.data.order import mix_group
from ofq_core.data.random_state import seeded
from ofq_core.models.torchvision_compat import import_torchvision
from ofq_core.seeds import derive_seed
from ofq_core.settings import RecipeSettings

import_torchvision()
from timm.data.mixup import Mixup  # noqa: E402


def mix(
    images: Tensor,
    labels: Tensor,
    mine: Tensor,
    recipe: RecipeSettings,
    classes: int,
    seed: int,
    epoch: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    """Mix this process's part of a batch, in place (spec 7.1).

    Every group of the whole batch has a draw of its own from (seed, epoch, step, group). A process
    that holds whole pairs of a group, in the order of `positions`, computes for them bit by bit
    what one process computes for the whole batch.

    Args:
        images: (n, channels, height, width), FP32.
        labels: class indices (n,), int64.
        mine: positions of these images in the whole batch, from `positions`.

    Returns:
        The images, and probabilities (n, classes), FP32.
    """
    group_size = mix_group(recipe)
    assert group_size is not None
    mixup = Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mix_prob,
        switch_prob=recipe.mix_switch_prob,
        mode="batch",
        label_smoothing=recipe.mix_smoothing,
        num_classes=classes,
    )
    targets = []
    first = 0
    for group, members in itertools.groupby(mine.tolist(), lambda p: p // group_size):
        last = first + len(list(members))
        with seeded(derive_seed(seed, "mix", epoch, step, group)):
            # In place: a slice is a view of `images`.
            _, mixed = mixup(images[first:last], labels[first:last])
        targets.append(mixed)
        first = last
    return images, torch.cat(targets)
