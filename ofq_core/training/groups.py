"""Low-bit weights of neighbouring matrices as one vector, so that a step costs fewer calls."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ofq_core.training.lowbit import LowBitWeight

# Matrices are looked at together up to so many entries: small ones cost calls, large ones memory.
_GROUP_ENTRIES = 1 << 16


class WeightGroup:
    """Neighbouring matrices with the same codes and dtype, seen as one flat vector."""

    def __init__(self, weights: list[LowBitWeight], first: int, start: int) -> None:
        self.weights = weights
        self.low, self.high = weights[0].quantizer.low, weights[0].quantizer.high
        self.shapes = [weight.latent().shape for weight in weights]
        self.sizes = [shape.numel() for shape in self.shapes]
        # Which of all matrices, and which of all their entries.
        self.rows = slice(first, first + len(weights))
        self.entries = slice(start, start + sum(self.sizes))

    def flat(self, values: Iterable[Tensor]) -> Tensor:
        """One tensor per matrix, behind one another; of one matrix alone it may be a view."""
        rows = [value.reshape(-1) for value in values]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def parts(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector, one per matrix, in its shape."""
        pieces = zip(torch.split(flat, self.sizes), self.shapes, strict=True)
        return [piece.view(shape) for piece, shape in pieces]

    def codes(self, latents: list[Tensor], scales: list[Tensor]) -> Tensor:
        """Codes of all matrices, given their latent weights and scales."""
        given = zip(self.weights, latents, scales, strict=True)
        return self.flat(weight.quantizer.codes(latent, scale) for weight, latent, scale in given)

    def sums(self, rows: Tensor) -> Tensor:
        """Sums over each matrix of flat vectors (rows, entries): FP64, (matrices, rows)."""
        parts = torch.split(rows, self.sizes, 1)
        return torch.stack([part.sum(1) for part in parts]).double()

    def occurrences(self, numbers: Tensor, kinds: int) -> Tensor:
        """How often each of 0 .. kinds - 1 occurs among an int64 vector: (matrices, kinds)."""
        counts = [
            torch.bincount(part, minlength=kinds) for part in torch.split(numbers, self.sizes)
        ]
        return torch.stack(counts)


def grouped(weights: list[LowBitWeight]) -> list[WeightGroup]:
    """All matrices in order, in as few groups as their codes, dtypes and sizes allow."""
    groups: list[WeightGroup] = []
    first = start = size = 0
    chosen: list[LowBitWeight] = []
    kind: object = None
    for weight in weights:
        latent, quantizer = weight.latent(), weight.quantizer
        same = kind == (kind := (latent.dtype, quantizer.low, quantizer.high))
        if chosen and (not same or size + latent.numel() > _GROUP_ENTRIES):
            groups.append(WeightGroup(chosen, first, start))
            first, start = groups[-1].rows.stop, groups[-1].entries.stop
            chosen, size = [], 0
        chosen.append(weight)
        size += latent.numel()
    return [*groups, WeightGroup(chosen, first, start)] if chosen else groups
