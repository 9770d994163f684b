"""What only two states of a weight can tell, taken from a sample of the steps.

Every so many optimizer steps the low-bit weights are looked at right before and right after the
step: why codes changed, how far weights moved and how far their quantized values did, how evenly
codes are used, how many weights are clipped or get no gradient. On the step after it the signs of
the gradients are compared with those before, by distance to the nearest threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ofq_core.quant import boundary_distance, code_entropy, flip_causes
from ofq_core.training.lowbit import LowBitWeight

GRADIENT_BANDS = (0.003, 0.005, 0.007, 0.01, 0.05, 0.1, 0.25, 0.5)
# TetraJet calls a weight oscillating when its quantized value moves so much more than it does.
PATH_RATIO_LIMIT = 16.0
_CAUSES = ("flips_weight", "flips_scale", "flips_both")
_COUNTS = ("entries", *_CAUSES, "clipped", "dead", "entropy", "path_quantized", "path_latent")
_PAIRS = len(_COUNTS)
_FLIPS = _PAIRS + len(GRADIENT_BANDS)
COLUMNS = _FLIPS + len(GRADIENT_BANDS)


@dataclass
class _Before:
    """One matrix right before a step."""

    latent: Tensor
    scales: Tensor
    codes: Tensor
    quantized: Tensor
    zero_gradients: Tensor


class StepSamples:
    """Sums over sampled steps, per matrix: since `restart`, and since `start_epoch`.

    Args:
        every: take every so many steps; 0: none.
        total: adds a tensor over all processes (the gradient of a product is each process's own).

    Attributes:
        phase, epoch: FP64 sums, (matrices, COLUMNS).
    """

    def __init__(
        self,
        weights: list[LowBitWeight],
        every: int,
        total: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.weights, self.every, self.total = weights, every, total
        device = weights[0].latent().device if weights else torch.device("cpu")
        self.phase = torch.zeros(len(weights), COLUMNS, dtype=torch.float64, device=device)
        self.epoch = torch.zeros_like(self.phase)
        self._bounds = torch.tensor(GRADIENT_BANDS, device=device)
        shapes = [weight.latent() for weight in weights] if every else []
        # Per weight, sums of moves since `restart`: quantized and latent.
        self.paths = [torch.zeros(2, *latent.shape, device=device) for latent in shapes]
        self.signs: list[Tensor] | None = None
        self._before: list[_Before] | None = None

    def due(self, step: int) -> bool:
        """Whether this step is in the sample."""
        return bool(self.every and self.weights) and step % self.every == 0

    def begin(self, step: int) -> None:
        """Before the forward of a step: gradients of products must be asked for."""
        wanted = self.due(step) or self.signs is not None
        for weight in self.weights:
            weight.quantizer.keep_gradient = wanted and weight.parameter is None

    @torch.no_grad()
    def before(self, step: int) -> None:
        """After the backward, before the optimizer."""
        due = self.due(step)
        if not due and self.signs is None:
            return
        signs = [self._gradient(weight).sign().to(torch.int8) for weight in self.weights]
        if self.signs is not None:
            rows = [
                self._compare(weight, old, new)
                for weight, old, new in zip(self.weights, self.signs, signs, strict=True)
            ]
            self._add(torch.stack(rows), _PAIRS)
        self.signs = signs if due else None
        if due:
            self._before = [
                self._look(weight, sign) for weight, sign in zip(self.weights, signs, strict=True)
            ]

    @torch.no_grad()
    def after(self) -> None:
        """After the optimizer, on a step that `before` has looked at."""
        if self._before is None:
            return
        rows = [
            self._moved(weight, old, path)
            for weight, old, path in zip(self.weights, self._before, self.paths, strict=True)
        ]
        self._add(torch.stack(rows), 0)
        self._before = None

    def restart(self) -> None:
        """Forget what was summed; a new phase begins."""
        self.phase.zero_()
        for path in self.paths:
            path.zero_()

    def start_epoch(self) -> None:
        """Forget the epoch's sums."""
        self.epoch.zero_()

    def _gradient(self, weight: LowBitWeight) -> Tensor:
        if weight.parameter is not None:
            gradient = weight.parameter.grad
            return torch.zeros_like(weight.parameter) if gradient is None else gradient
        gradient = weight.quantizer.gradient
        assert gradient is not None, f"{weight.name}: no forward since `begin`"
        weight.quantizer.gradient = None
        return gradient if self.total is None else self.total(gradient)

    def _look(self, weight: LowBitWeight, signs: Tensor) -> _Before:
        latent, quantizer = weight.latent().clone(), weight.quantizer
        return _Before(
            latent=latent,
            scales=quantizer.scales(latent).clone(),
            codes=quantizer.codes(latent).clone(),
            quantized=quantizer.quantized(latent),
            zero_gradients=(signs == 0).sum(),
        )

    def _moved(self, weight: LowBitWeight, old: _Before, path: Tensor) -> Tensor:
        latent, quantizer = weight.latent(), weight.quantizer
        codes = quantizer.codes(latent)
        causes = flip_causes(
            old.codes,
            codes,
            quantizer.codes(latent, old.scales),
            quantizer.codes(old.latent, quantizer.scales(latent)),
        )
        moves = torch.stack(
            [(quantizer.quantized(latent) - old.quantized).abs(), (latent - old.latent).abs()]
        ).to(path.dtype)
        path += moves
        entropy = code_entropy(codes, quantizer.low, quantizer.high) * codes.numel()
        values = [
            codes.new_tensor(codes.numel(), dtype=torch.float64),
            *(cause.sum() for cause in causes),
            quantizer.clipped(latent).sum(),
            old.zero_gradients,
            entropy,
            *moves.flatten(1).sum(1),
        ]
        return torch.stack([value.double() for value in values])

    def _compare(self, weight: LowBitWeight, old: Tensor, new: Tensor) -> Tensor:
        """Pairs of gradients within each band, then those whose sign changed."""
        product = (old * new).flatten()
        position = weight.quantizer.position(weight.latent())
        distance = boundary_distance(position, weight.quantizer.low, weight.quantizer.high)
        band = torch.bucketize(distance.flatten(), self._bounds.to(distance.dtype))
        found = [
            torch.bincount(band, chosen.double(), minlength=len(GRADIENT_BANDS) + 1)
            for chosen in (product != 0, product < 0)
        ]
        return torch.stack(found)[:, : len(GRADIENT_BANDS)].cumsum(1).flatten()

    def _add(self, rows: Tensor, column: int) -> None:
        for sums in (self.phase, self.epoch):
            sums[:, column : column + rows.shape[1]] += rows

    def above_limit(self, index: int) -> float:
        """Share of one matrix's weights with a path ratio above 16 since `restart`.

        Weights that did not move at all (frozen by CGA) do not count, though a scale that moves
        takes their quantized values along.
        """
        quantized, latent = self.paths[index]
        return float(((latent > 0) & (quantized > PATH_RATIO_LIMIT * latent)).float().mean())

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "phase": self.phase,
            "epoch": self.epoch,
            "paths": self.paths,
            "signs": self.signs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; tensors go to the device of the weights."""
        device = self.phase.device
        self.phase, self.epoch = state["phase"].to(device), state["epoch"].to(device)
        self.paths = [path.to(device) for path in state["paths"]]
        signs = state["signs"]
        self.signs = None if signs is None else [sign.to(device) for sign in signs]


def sample_figures(sums: Tensor) -> dict[str, Any]:
    """What a row of sums says; None for all figures where nothing was sampled.

    flips_*: per weight and step, by cause. clipped_share, dead_share (gradient exactly zero), and
    code_entropy (bits): means over weights and sampled steps. path_ratio: sum of moves of quantized
    values over that of latent weights. gradient_flips: per boundary range, the share of weights in
    it whose gradient changed its sign from one step to the next; zero gradients do not count.
    """
    values = dict(zip(_COUNTS, sums[:_PAIRS].tolist(), strict=True))
    entries, path = values["entries"], values["path_latent"]

    def share(key: str) -> float | None:
        return values[key] / entries if entries else None

    pairs, flips = sums[_PAIRS:_FLIPS].tolist(), sums[_FLIPS:].tolist()
    return {
        **{cause: share(cause) for cause in _CAUSES},
        "code_entropy": share("entropy"),
        "dead_share": share("dead"),
        "clipped_share": share("clipped"),
        "path_ratio": values["path_quantized"] / path if path else None,
        "gradient_flips": {
            str(band): flip / pair if pair else None
            for band, pair, flip in zip(GRADIENT_BANDS, pairs, flips, strict=True)
        },
    }
