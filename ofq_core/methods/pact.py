"""PACT activations (Choi et al., 2018) with DoReFa weights (Zhou et al., 2016).

    weights: t = tanh(w), M = max|t| of the tensor, L = 2^b - 1,
        k = round(L t / (2 M) - 1/2) in {-2^(b-1), ..., 2^(b-1) - 1},  q = M (2 k + 1) / L
        dq/dw = 1 - t^2
    activations, unsigned: y = clip(x, 0, alpha), q = s round(y / s), s = alpha / L
    activations, signed: y = clip(x, -alpha, alpha), q = s round((y + alpha) / s) - alpha,
        s = 2 alpha / L
    dq/dx = 1 where x is not clipped, else 0;  dq/dalpha = 1 where x >= alpha, -1 where x <= -alpha
    (signed), else 0;  penalty: alpha_decay * sum alpha^2

Deviations: DoReFa's weights lie in [-1, 1], and its networks undo that with batch normalisation,
which a transformer does not have, so they are multiplied by M; M has no gradient. PACT is for ReLU;
the signed form has the same 2^b - 1 steps between its two clipping levels, so it uses all codes and
has no zero, like DoReFa's weights. An alpha per group of activations instead of one per layer,
started at the largest magnitude of the calibration batch (PACT: a large constant, which the penalty
brings down). The default alpha_decay of 1e-4 is a usual weight decay, not taken from the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ofq_core.nn import ActivationRule, LSQActivation, WeightQuantizer
from ofq_core.nn.activation import without_zeros
from ofq_core.quant import at_least_float32, code_range, straight_through
from ofq_core.quant.gradient import floored
from ofq_core.quant.lsq import broadcast_scale
from ofq_core.quant.ranges import group_extremes


class DoReFaWeight(WeightQuantizer):
    """DoReFa, one scale M = max|tanh w| for the whole tensor (rows, ...). No parameters."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.low, self.high = code_range(bits, signed=True)
        self.levels = self.high - self.low

    def position(self, weight: Tensor, scales: Tensor | None = None) -> Tensor:
        """See `WeightQuantizer.position`; thresholds are evenly spaced in tanh w."""
        largest = self.scales(weight) if scales is None else scales
        divisor = torch.where(largest > 0, largest, torch.ones_like(largest))
        t = at_least_float32(weight.detach()).tanh() / broadcast_scale(
            divisor, weight.ndim, None if divisor.numel() == 1 else 0
        )
        return t.mul_(self.levels / 2).sub_(0.5).clamp_(self.low - 0.5, self.high + 0.5)

    def scales(self, weight: Tensor) -> Tensor:
        """M, one entry; see `WeightQuantizer.scales`."""
        return at_least_float32(weight.detach()).abs().amax().tanh().reshape(1)

    def clipped(self, weight: Tensor) -> Tensor:
        """Nothing is: the grid ends at the largest weight."""
        return torch.zeros_like(weight, dtype=torch.bool)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize (rows, ...); the gradient passes through tanh, not through its maximum."""
        codes = self.position(weight).round_().clamp_(self.low, self.high)
        self._record(lambda: codes)
        values = (codes * 2.0 + 1.0).mul_(self.scales(weight) / self.levels)
        t = at_least_float32(self._held(weight)).tanh()
        return straight_through(t, values).to(weight.dtype)


class PACTActivation(ActivationRule):
    """Clipping at a learned alpha, which is `module.scale`: one entry per group, not a step."""

    def __init__(self, alpha_decay: float) -> None:
        self.alpha_decay = alpha_decay

    def start(self, module: LSQActivation, x: Tensor) -> None:
        """Alpha: the largest value of each group (signed: magnitude), so nothing is clipped yet."""
        low, high = group_extremes(x, module.axis)
        module.scale.copy_(
            without_zeros(torch.maximum(-low, high) if module.signed else high.clamp(min=0.0))
        )

    def quantize(self, module: LSQActivation, x: Tensor) -> Tensor:
        """x, at least FP32, with PACT's gradients; same shape and dtype."""
        alpha = broadcast_scale(floored(module.scale), x.ndim, module.axis).to(x.dtype)
        levels = module.high - module.low
        lower = -alpha if module.signed else torch.zeros_like(alpha)
        y = torch.where(x >= alpha, alpha, torch.where(x <= lower, lower, x))
        with torch.no_grad():
            step = (alpha - lower) / levels
            values = ((y - lower) / step).round_().mul_(step).add_(lower)
        return straight_through(y, values)

    def penalty(self, module: LSQActivation) -> Tensor | None:
        """The L2 penalty on alpha, a sum over groups."""
        return self.alpha_decay * module.scale.square().sum() if self.alpha_decay else None
