"""LSQ+: activations get a learned offset (Bhalgat et al., "LSQ+", CVPR workshops 2020).

    activations: q = s round(clip((x - beta) / s, qmin, qmax)) + beta
    dq/dx = 1 inside the range, else 0;  dq/dbeta = g (1 outside the range, 0 inside)
    dq/ds and g = 1 / sqrt(entries per scale * qmax) as in LSQ
    start: the range [l, h] of least squared error, s = (h - l) / (qmax - qmin), beta = l - s qmin
    weights: LSQ without an offset, start: s = max(|mu - 3 sigma|, |mu + 3 sigma|) / 2^(b-1)

Deviations: a scale (and beta) per row or group instead of one per layer; beta has LSQ's gradient
scale; the error is minimised over a grid of ranges on the calibration batch, instead of by gradient
steps on the first batches. sigma divides by the row's number of weights. OFQ's learnable biases
before and after each quantizer stay in place, as for all methods.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ofq_core.methods.lsq import LSQWeight
from ofq_core.nn import ActivationRule, LSQActivation
from ofq_core.nn.activation import without_zeros
from ofq_core.quant import at_least_float32, lsq, lsq_codes
from ofq_core.quant.gradient import lsq_gradient_scale, scale_gradient
from ofq_core.quant.lsq import broadcast_scale, shared_axes
from ofq_core.quant.ranges import group_extremes, squared_error

# Both ends of a range shrink toward the mean by each of these; 0.75^11 = 0.04 is for outliers.
SHRINK = tuple(0.75**k for k in range(12))


class LSQPlusWeight(LSQWeight):
    """LSQ whose scales start from mean and standard deviation of the rows of (rows, ...)."""

    def _first_scale(self, weight: Tensor) -> Tensor:
        rows = at_least_float32(weight.detach()).flatten(1)
        mean, spread = rows.mean(1), 3.0 * rows.std(1, correction=0)
        return torch.maximum((mean - spread).abs(), (mean + spread).abs()) / -self.low


class LSQPlusActivation(ActivationRule):
    """LSQ with a further parameter `offset`, one entry per group."""

    def extra(self, length: int) -> dict[str, Tensor]:
        """`offset`, FP32; zero until `start`."""
        return {"offset": torch.zeros(length)}

    @torch.no_grad()
    def start(self, module: LSQActivation, x: Tensor) -> None:
        """Scale and offset of least squared error over a grid of ranges, for all groups at once.

        One candidate at a time: needs a few times the memory of x.
        """
        axis, low, high = module.axis, module.low, module.high
        smallest, largest = group_extremes(x, axis)
        axes = shared_axes(x.ndim, axis)
        mean = (x.mean(dim=axes) if axes else x).reshape(-1)
        scale, offset = torch.zeros_like(mean), mean.clone()
        least = torch.full_like(mean, torch.inf)
        for below in SHRINK:
            bottom = mean + below * (smallest - mean)
            for above in SHRINK:
                s = (mean + above * (largest - mean) - bottom) / (high - low)
                beta = bottom - s * low
                step, shift = (broadcast_scale(v, x.ndim, axis) for v in (s, beta))
                quantized = lsq_codes(x - shift, s, low, high, axis).mul_(step).add_(shift)
                error = squared_error(x, quantized, axis)
                better = error < least
                scale, offset = torch.where(better, s, scale), torch.where(better, beta, offset)
                least = torch.where(better, error, least)
        module.scale.copy_(without_zeros(scale))
        _offset(module).copy_(offset)

    def quantize(self, module: LSQActivation, x: Tensor) -> Tensor:
        """x with the gradients of LSQ+; same shape and dtype."""
        entries = x.numel() / module.scale.numel() * module.whole_batch
        gain = lsq_gradient_scale(entries, module.high)
        beta = broadcast_scale(scale_gradient(_offset(module), gain), x.ndim, module.axis)
        # LSQ's mask acts on x - beta; what it stops is what is left of the + beta for beta.
        shifted = lsq(
            x - beta, module.scale, module.low, module.high, module.axis, module.whole_batch
        )
        return shifted + beta


def _offset(module: LSQActivation) -> Tensor:
    offset: Tensor = module.get_parameter("offset")
    return offset
