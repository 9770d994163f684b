"""Paths of the most oscillating weights, and of every scale, through the end of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ofq_core.training.lowbit import LowBitWeight

WEIGHTS = 8
MOST_POINTS = 1000


class TrajectoryRecorder:
    """Records from as long before the last phase as that phase takes, to the end.

    The weights followed are those with the highest oscillation frequency when recording begins
    (lowest index first among equals). At most `MOST_POINTS` steps are recorded, evenly spaced.

    Args:
        last_phase: the step at which the last phase begins.
        steps: steps of the whole run.
    """

    def __init__(self, weights: list[LowBitWeight], last_phase: int, steps: int) -> None:
        self.weights, self.last_phase = weights, last_phase
        self.first = max(0, last_phase - (steps - last_phase))
        self.stride = max(1, -(-(steps - self.first) // MOST_POINTS))
        self.chosen: list[tuple[int, int, float]] = []
        self.steps: list[int] = []
        self.scales: list[list[float]] = []
        # Per point and chosen weight: latent, position, code.
        self.points: list[list[list[float]]] = []

    @torch.no_grad()
    def after_step(self, step: int, frequency: Tensor) -> None:
        """Record the weights after a step, if it is one to be recorded.

        Args:
            frequency: of all low-bit weights, in order, as one vector.
        """
        if step < self.first or (step - self.first) % self.stride or not self.weights:
            return
        if not self.steps:
            self.chosen = self._choose(frequency)
        self.steps.append(step)
        latents = [weight.latent() for weight in self.weights]
        scales = [
            weight.quantizer.scales(latent)
            for weight, latent in zip(self.weights, latents, strict=True)
        ]
        self.scales.append(torch.stack([scale.mean() for scale in scales]).tolist())
        self.points.append(self._now(latents, scales))

    def _now(self, latents: list[Tensor], scales: list[Tensor]) -> list[list[float]]:
        """Latent value, position and code of each chosen weight."""
        # One matrix at a time: several of the chosen weights may be in the same one.
        numbers: dict[int, list[int]] = {}
        for number, (layer, _, _) in enumerate(self.chosen):
            numbers.setdefault(layer, []).append(number)
        found = []
        for layer, here in numbers.items():
            latent, scale, quantizer = latents[layer], scales[layer], self.weights[layer].quantizer
            places = torch.tensor([self.chosen[n][1] for n in here], device=latent.device)
            rows = (latent, quantizer.position(latent, scale), quantizer.codes(latent, scale))
            found.append(torch.stack([row.take(places).double() for row in rows], 1))
        order = [number for here in numbers.values() for number in here]
        values = dict(zip(order, torch.cat(found).tolist(), strict=True))
        return [values[number] for number in range(len(order))]

    def _choose(self, frequency: Tensor) -> list[tuple[int, int, float]]:
        order = torch.sort(frequency, descending=True, stable=True)
        chosen = []
        for place, value in zip(
            order.indices[:WEIGHTS].tolist(), order.values[:WEIGHTS].tolist(), strict=True
        ):
            layer = 0
            while place >= (size := self.weights[layer].latent().numel()):
                place -= size
                layer += 1
            chosen.append((layer, place, value))
        return chosen

    def report(self) -> dict[str, Any]:
        """What trajectories.json holds: numbers with six significant digits, scales with nine."""
        names = [weight.name for weight in self.weights]
        return {
            "steps": self.steps,
            "last_phase": self.last_phase,
            "scales": {
                name: [_rounded(row[index], 9) for row in self.scales]
                for index, name in enumerate(names)
            },
            "weights": [
                {
                    "layer": names[layer],
                    "index": index,
                    "frequency": _rounded(frequency),
                    "latent": [_rounded(point[number][0]) for point in self.points],
                    "position": [_rounded(point[number][1]) for point in self.points],
                    "code": [int(point[number][2]) for point in self.points],
                }
                for number, (layer, index, frequency) in enumerate(self.chosen)
            ],
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {key: getattr(self, key) for key in ("chosen", "steps", "scales", "points")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for key, value in state.items():
            setattr(self, key, value)


def _rounded(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")
