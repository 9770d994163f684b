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
from ofq_core.training.groups import WeightGroup, grouped
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
    """A group of matrices right before a step; all but the scales are flat."""

    latents: Tensor
    scales: list[Tensor]
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
        paths: per matrix, sums of moves since `restart`: of quantized and of latent weights, FP32,
            (2, *shape). Empty without sampling.
        signs: of the gradients of a sampled step, int8, one tensor per matrix; None otherwise.
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
        self._groups = grouped(weights) if every else []
        entries = self._groups[-1].entries.stop if self._groups else 0
        self._paths = torch.zeros(2, entries, device=device)
        self.paths = [
            part.view(2, *shape)
            for group in self._groups
            for part, shape in zip(
                torch.split(self._paths[:, group.entries], group.sizes, 1),
                group.shapes,
                strict=True,
            )
        ]
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
        signs = [
            group.flat(map(self._gradient, group.weights)).sign().to(torch.int8)
            for group in self._groups
        ]
        if self.signs is not None:
            for group, new in zip(self._groups, signs, strict=True):
                pairs = self._compare(group, group.flat(self.signs[group.rows]), new)
                self._add(group, pairs, _PAIRS)
        self.signs = None
        if due:
            found = list(zip(self._groups, signs, strict=True))
            self.signs = [part for group, flat in found for part in group.parts(flat)]
            self._before = [self._look(group, flat) for group, flat in found]

    @torch.no_grad()
    def after(self) -> None:
        """After the optimizer, on a step that `before` has looked at."""
        if self._before is None:
            return
        for group, old in zip(self._groups, self._before, strict=True):
            self._add(group, self._moved(group, old), 0)
        self._before = None

    def restart(self) -> None:
        """Forget what was summed; a new phase begins."""
        self.phase.zero_()
        self._paths.zero_()

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

    def _look(self, group: WeightGroup, signs: Tensor) -> _Before:
        flat = group.flat(weight.latent().clone() for weight in group.weights)
        quantizers = [weight.quantizer for weight in group.weights]
        latents = list(zip(quantizers, group.parts(flat), strict=True))
        scales = [quantizer.scales(latent).clone() for quantizer, latent in latents]
        return _Before(
            latents=flat,
            scales=scales,
            codes=group.codes(group.parts(flat), scales),
            quantized=group.flat(quantizer.quantized(latent) for quantizer, latent in latents),
            zero_gradients=group.sums((signs == 0)[None]),
        )

    def _moved(self, group: WeightGroup, old: _Before) -> Tensor:
        latents = [weight.latent() for weight in group.weights]
        now = [(w.quantizer, latent) for w, latent in zip(group.weights, latents, strict=True)]
        scales = [quantizer.scales(latent) for quantizer, latent in now]
        codes = group.codes(latents, scales)
        weight_alone = group.codes(latents, old.scales)
        scale_alone = group.codes(group.parts(old.latents), scales)
        causes = flip_causes(old.codes, codes, weight_alone, scale_alone)
        clipped = group.flat(quantizer.clipped(latent) for quantizer, latent in now)
        quantized = group.flat(quantizer.quantized(latent) for quantizer, latent in now)
        moves = torch.stack([quantized - old.quantized, group.flat(latents) - old.latents]).abs_()
        moves = moves.to(self._paths.dtype)
        self._paths[:, group.entries] += moves
        sizes = codes.new_tensor(group.sizes, dtype=torch.float64)[:, None]
        parts = group.parts(codes)
        entropies = torch.stack([code_entropy(part, group.low, group.high) for part in parts])
        entropy = entropies[:, None] * sizes.to(entropies.dtype)
        counted = group.sums(torch.stack([*causes, clipped]))
        return torch.cat([sizes, counted, old.zero_gradients, entropy, group.sums(moves)], 1)

    def _compare(self, group: WeightGroup, old: Tensor, new: Tensor) -> Tensor:
        """Pairs of gradients within each band, then those whose sign changed."""
        product = old * new
        position = group.flat(w.quantizer.position(w.latent()) for w in group.weights)
        distance = boundary_distance(position, group.low, group.high)
        band = torch.bucketize(distance, self._bounds.to(distance.dtype))
        # Kinds: no pair of signs, the same sign twice, two signs.
        bands = len(GRADIENT_BANDS) + 1
        kind = (product > 0) + 2 * (product < 0)
        counts = group.occurrences(band + bands * kind, 3 * bands).view(-1, 3, bands)
        signs = counts[:, :, :-1].cumsum(2)
        return torch.cat([signs[:, 1] + signs[:, 2], signs[:, 2]], 1)

    def _add(self, group: WeightGroup, rows: Tensor, column: int) -> None:
        for sums in (self.phase, self.epoch):
            sums[group.rows, column : column + rows.shape[1]] += rows

    def above_limit(self, index: int) -> float:
        """Share of one matrix's weights with a path ratio above 16 since `restart`.

        Weights that did not move at all (frozen by CGA) count as not above it, though a scale that
        moves takes their quantized values along.
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
        """Inverse of `state_dict`; tensors go to the device of the weights.

        Raises:
            ValueError: the state is of other weights.
        """
        device = self.phase.device
        if any(state[key].shape != self.phase.shape for key in ("phase", "epoch")) or any(
            path.shape != saved.shape
            for path, saved in zip(self.paths, state["paths"], strict=True)
        ):
            raise ValueError("the tracker's samples are of other weights")
        self.phase, self.epoch = state["phase"].to(device), state["epoch"].to(device)
        for path, saved in zip(self.paths, state["paths"], strict=True):
            path.copy_(saved)
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
