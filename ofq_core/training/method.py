"""What a method does beside the forward pass: penalties on the loss, work after each step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ofq_core.nn import ActivationRule, LSQActivation, WeightQuantizer
from ofq_core.training.lowbit import LowBitWeight


class MethodHooks:
    """Calls `penalty` and `after_step` of the quantizers that have them; nothing else costs time.

    The penalty depends on the parameters alone, which are the same in every process, so it is
    differentiated once per step and process, beside the backward of the batch.
    """

    def __init__(self, model: nn.Module, weights: list[LowBitWeight]) -> None:
        self.penalised = [w for w in weights if _has(w.quantizer, WeightQuantizer, "penalty")]
        self.looking = [w for w in weights if _has(w.quantizer, WeightQuantizer, "after_step")]
        self.activations = [
            module
            for module in model.modules()
            if isinstance(module, LSQActivation) and _has(module.rule, ActivationRule, "penalty")
        ]
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def add_penalties(self, progress: float) -> None:
        """Add the gradient of all penalties to the parameters' gradients."""
        if not self.penalised and not self.activations:
            return
        terms: list[Tensor | None] = [
            weight.quantizer.penalty(weight.differentiable(), progress) for weight in self.penalised
        ]
        terms += [module.rule.penalty(module) for module in self.activations]
        given = [term for term in terms if term is not None and term.requires_grad]
        if not given:
            return
        total = torch.stack([term.double() for term in given]).sum()
        # Not total.backward(): the hooks that add gradients over processes must not see it.
        gradients = torch.autograd.grad(total, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad += gradient

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Let the quantizers look at the new weights."""
        for weight in self.looking:
            latent = weight.latent() if weight.parameter is None else weight.parameter
            weight.quantizer.after_step(latent, progress)


def _has(thing: object, base: type, name: str) -> bool:
    return getattr(type(thing), name) is not getattr(base, name)
