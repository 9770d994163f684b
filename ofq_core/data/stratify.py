"""Choose images so that every class keeps its share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


def stratified(
    labels: NDArray[np.int64], count: int, generator: torch.Generator
) -> NDArray[np.bool_]:
    """Choose `count` images by chance, each class in proportion to its size.

    The classes get the whole part of their share, and what is left over goes to those with the
    largest remainders (of equal ones, to the class that comes first).

    Args:
        labels: class indices (n,).
        count: 0 .. n.

    Returns:
        A mask (n,), true for the chosen ones.
    """
    sizes = np.bincount(labels)
    # Whole numbers throughout: the same quotas on every machine.
    quotas, remainders = np.divmod(sizes * count, len(labels))
    most = np.argsort(-remainders, kind="stable")[: count - int(quotas.sum())]
    quotas[most] += 1
    chosen = np.zeros(len(labels), dtype=np.bool_)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    for members, quota in zip(by_class, quotas.tolist(), strict=True):
        order = torch.randperm(len(members), generator=generator).numpy()
        chosen[members[order[:quota]]] = True
    return chosen
