"""Confidence-guided annealing as a wrapper round the optimizer's step (OFQ 3.3, spec 5.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ofq_core.models import is_swin
from ofq_core.nn import QKRAttention, WeightQuantizer
from ofq_core.quant import free_mask
from ofq_core.settings import FidelitySettings
from ofq_core.training.groups import WeightGroup, grouped
from ofq_core.training.lowbit import LowBitWeight, low_bit_weights


def held_weights(model: nn.Module, fidelity: FidelitySettings) -> list[LowBitWeight]:
    """The low-bit weights that CGA holds, by `fidelity.cga_targets` (spec 5.3).

    Without `all`, the QKR product is left out. The released code looks for names, and without QKR
    Swin's do not match.
    """
    weights = low_bit_weights(model)
    if fidelity.cga_targets == "all":
        return weights
    qkr = any(isinstance(module, QKRAttention) for module in model.modules())
    if fidelity.cga_targets == "released" and is_swin(model) and not qkr:
        return []
    return [weight for weight in weights if weight.parameter is not None]


class ConfidenceGuidedAnnealing:
    """Step an optimizer so that weights far from every threshold stay bit-identical.

    `frozen` counts the weights that the last step froze, `total` those that any step could.

    For each matrix: a mask from the weights before the step; no gradient for frozen entries; the
    optimizer's step (which decay and momentum would still apply to frozen entries); frozen
    entries put back. The mask is recomputed at every step.

    The QKR product is no parameter and cannot be put back: there the mask is applied to the
    gradient of the product before it reaches W_q and W_k. That removes the gradient of confident
    entries, but they still move when W_q and W_k move for the sake of others. (In the released
    code this path has no effect at all.)
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Sequence[LowBitWeight],
        boundary_range: float,
    ) -> None:
        self.optimizer = optimizer
        self.weights = [w for w in weights if w.parameter is not None]
        self.groups = grouped(self.weights)
        self.products = [w for w in weights if w.parameter is None]
        self.boundary_range = boundary_range
        self.frozen = torch.zeros((), dtype=torch.int64)
        self.total = sum(w.parameter.numel() for w in weights if w.parameter is not None)

    def start(self) -> None:
        """Begin to mask the gradient of the QKR products."""
        for product in self.products:
            product.quantizer.gradient_band = self.boundary_range

    def stop(self) -> None:
        """Stop masking the gradient of the QKR products."""
        for product in self.products:
            product.quantizer.gradient_band = None

    def free_share(self, frozen: int, steps: int) -> float:
        """Share of the weights that were free over steps in which so many were frozen in all."""
        return 1.0 - frozen / (self.total * steps) if self.total else 1.0

    @torch.no_grad()
    def step(self) -> None:
        """One optimizer step; gradients must be there. Updates the counts of frozen weights.

        What the optimizer does before its step (gradient clipping) sees the masked gradients.
        """
        held = []
        frozen: list[Tensor] = []
        for group in self.groups:
            parameters = [w.parameter for w in group.weights if w.parameter is not None]
            free = self._free(group)
            frozen.append(free.numel() - free.sum())
            masks = group.parts(free)
            before = [parameter.clone() for parameter in parameters]
            for parameter, mask in zip(parameters, masks, strict=True):
                if parameter.grad is not None:
                    parameter.grad.mul_(mask)
            held.append((parameters, masks, before))
        if frozen:
            self.frozen = torch.stack(frozen).sum()
        self.optimizer.step()
        for found in held:
            for parameter, mask, earlier in zip(*found, strict=True):
                torch.where(mask, parameter, earlier, out=parameter)

    def _free(self, group: WeightGroup) -> Tensor:
        """Which weights of a group may move, flat."""
        pairs = [(weight.quantizer, weight.latent()) for weight in group.weights]
        # The range that occurs is each matrix's own, and so is a rule of a method's own.
        own = WeightQuantizer.free
        if any(q.observed_range or type(q).free is not own for q, _ in pairs):
            return group.flat(q.free(latent, self.boundary_range) for q, latent in pairs)
        position = group.flat(quantizer.position(latent) for quantizer, latent in pairs)
        return free_mask(position, self.boundary_range, group.low, group.high)
