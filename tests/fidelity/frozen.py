"""CGA's mask by its definition (spec 5.1), and a witness of what each step leaves unchanged."""

from __future__ import annotations

import torch

# At 2 bits positions are below 2, and their scale is a mean over at most 64 weights: as many units
# in the last place of FP32, 1.2e-7, are 1.5e-5.
ROUNDING = 2e-5


def frozen_by_definition(weight, bits, boundary_range):
    """True where |u - (t + 1/2)| > boundary_range for every threshold t = -n .. n - 2.

    u = clamp(W / s, -1, 1 - 1e-6) n - 1/2 with s = 2 mean|W| per row and n = 2^(bits - 1).

    Returns also where that is sure: not within rounding of the end of a band.
    """
    weight = weight.detach()
    n = 2 ** (bits - 1)
    scale = 2 * weight.abs().mean(dim=1, keepdim=True)
    position = (weight / scale).clamp(-1, 1 - 1e-6) * n - 0.5
    thresholds = torch.arange(-n, n - 1) + 0.5
    distance = (position[..., None] - thresholds).abs().amin(dim=-1)
    return distance > boundary_range, (distance - boundary_range).abs() > ROUNDING


class Witness:
    """Looks on while a trainer's annealing steps, without touching anything.

    steps: how many. frozen, free: entries, summed over steps. frozen_moved: frozen entries with
    another bit pattern after the step. free_moved: free entries that did change. unsure: entries
    within rounding of the end of a band, which count nowhere else.
    """

    def __init__(self, trainer):
        self.annealing, self.step = trainer.annealing, trainer.annealing.step
        self.steps = self.unsure = 0
        self.frozen = self.free = self.frozen_moved = self.free_moved = 0
        trainer.annealing.step = self._watched

    def _watched(self):
        before = []
        for weight in self.annealing.weights:
            values = weight.parameter.detach().clone()
            band = self.annealing.boundary_range
            before.append((values, *frozen_by_definition(values, weight.quantizer.bits, band)))
        self.step()
        self.steps += 1
        for weight, (values, far, sure) in zip(self.annealing.weights, before, strict=True):
            moved = values.view(torch.int32) != weight.parameter.detach().view(torch.int32)
            frozen, free = far & sure, ~far & sure
            self.unsure += int((~sure).sum())
            self.frozen += int(frozen.sum())
            self.free += int(free.sum())
            self.frozen_moved += int((moved & frozen).sum())
            self.free_moved += int((moved & free).sum())

    def counts(self):
        return {
            key: getattr(self, key)
            for key in ("steps", "frozen", "free", "frozen_moved", "free_moved")
        }
