"""The order of an epoch, and which part of each of its batches a process takes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ofq_core.errors import DataError
from ofq_core.seeds import derive_seed, generator
from ofq_core.settings import RecipeSettings

# timm's RepeatAugSampler shortens an epoch to a multiple of it, as DeiT's code does.
REPEAT_ROUND = 256


@dataclass(frozen=True)
class Share:
    """The part of every batch that this process takes: number `rank` of `world` processes."""

    rank: int = 0
    world: int = 1


def positions(
    batch_size: int, share: Share, mix_group: int | None = None, key: str = "recipe"
) -> Tensor:
    """Which positions 0 .. batch_size - 1 of a batch a process takes, int64.

    Without mixing: a contiguous part; parts differ by at most one image. With mixing, position i of
    a group of `mix_group` images is mixed with position mix_group - 1 - i, so a process takes whole
    pairs, in an order in which flipping its part of each group brings partners together.

    Args:
        mix_group: an even divisor of batch_size; null without mixing.
        key: where the settings have the recipe, for the message.

    Raises:
        DataError: fewer images (or pairs) than processes.
    """
    units = batch_size if mix_group is None else batch_size // 2
    if units < share.world:
        what = "images" if mix_group is None else "pairs of images to mix"
        raise DataError(
            f"{key}.batch_size = {batch_size}: {units} {what} cannot be split over {share.world} "
            f"processes, expected at least {share.world}"
        )
    mine = torch.tensor_split(torch.arange(units), share.world)[share.rank]
    if mix_group is None:
        return mine
    pairs = mix_group // 2
    parts: list[int] = []
    for group, members in itertools.groupby(mine.tolist(), lambda pair: pair // pairs):
        first = [group * mix_group + pair - group * pairs for pair in members]
        # Position i of a group belongs to position mix_group - 1 - i of it.
        last = (2 * group + 1) * mix_group - 1
        parts += first + [last - position for position in reversed(first)]
    return torch.tensor(parts)


def mix_group(recipe: RecipeSettings) -> int | None:
    """Images that are mixed by one draw: recipe.mix_group or all of a batch; None: no mixing."""
    return (recipe.mix_group or recipe.batch_size) if recipe.mixes else None


def epoch_images(train_size: int, recipe: RecipeSettings) -> int:
    """Images in the order of an epoch, views of the same image counted each."""
    if recipe.repeated_augmentation > 1 and train_size >= REPEAT_ROUND:
        return train_size // REPEAT_ROUND * REPEAT_ROUND
    return train_size


def epoch_steps(train_size: int, recipe: RecipeSettings, key: str = "recipe") -> int:
    """Optimizer steps in an epoch; an incomplete last batch is left out.

    Args:
        key: where the settings have the recipe, for the message.

    Raises:
        DataError: a batch is larger than an epoch.
    """
    images = epoch_images(train_size, recipe)
    if recipe.batch_size > images:
        raise DataError(
            f"{key}.batch_size = {recipe.batch_size}, but there are only {images} training "
            "images in an epoch: expected at most as many"
        )
    return images // recipe.batch_size


def epoch_order(train_size: int, recipe: RecipeSettings, seed: int, epoch: int) -> Tensor:
    """Indices of the training images in the order of an epoch, int64 (epoch_images(...),).

    With repeated augmentation this is timm's RepeatAugSampler for a single process: the views of an
    image follow each other. In a launch of R processes timm gives process r every R-th entry from
    r on, so what all see in a step together is the same contiguous piece.
    """
    if recipe.repeated_augmentation == 1:
        return torch.randperm(train_size, generator=generator(seed, "order", epoch))
    from ofq_core.models.torchvision_compat import import_torchvision

    import_torchvision()
    from timm.data.distributed_sampler import RepeatAugSampler

    sampler = RepeatAugSampler(
        range(train_size),
        num_replicas=1,
        rank=0,
        num_repeats=recipe.repeated_augmentation,
        selected_round=REPEAT_ROUND,
    )
    sampler.set_epoch(derive_seed(seed, "order", epoch))
    return torch.tensor(list(sampler))
