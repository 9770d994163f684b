"""The contract of weight quantizers: modules with one interface and the little state they need.

Layers, CGA, the oscillation tracker and the training loop need not know which is in use. The
quantizers themselves are in `ofq_core.methods`, one file each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ofq_core.quant import free_mask, observed_code_range, straight_through


class WeightQuantizer(nn.Module):
    """Base: latent weights in, quantized weights out, and where each weight stands on its grid.

    A method defines `position`, `scales` and `forward`; `codes` where a code is not the rounded
    position. Its constructor takes the weights (rows, ...) that it starts from, `bits`, and its
    options by name. State that a resumed run needs is a parameter or a buffer.

    What a method does beside the forward pass:

    - `penalty` returns a term that is added to the loss of each step;
    - `after_step` is called after each optimizer step, and may change the weights.

    Attributes:
        bits: 2 to 8, or 32 when nothing is quantized.
        low, high: smallest and largest code.
        record: keep the codes of the last training forward in `last_codes` (for the tracker).
        gradient_band: when set, only weights within this many steps of a threshold pass a
            gradient back (CGA on a product of parameters, where no weight can be restored).
        observed_range: CGA counts only thresholds between codes that occur (released behaviour).
        keep_gradient: add the gradient of the latent weights to `gradient` in each backward (for
            the tracker; needed for a product, which is no parameter). CGA's mask is not in it.
    """

    bits: int
    low: int
    high: int

    def __init__(self) -> None:
        super().__init__()
        self.record = False
        self.last_codes: Tensor | None = None
        self.gradient_band: float | None = None
        self.observed_range = False
        self.keep_gradient = False
        self.gradient: Tensor | None = None

    def position(self, weight: Tensor, scales: Tensor | None = None) -> Tensor:
        """Unrounded codes, at least FP32, detached; thresholds lie at t + 1/2, t = low .. high - 1.

        Args:
            weight: latent weights (rows, ...).
            scales: as `scales` returns them, for the same weights or others; by default those in
                use. With the scales of another step it tells whether a code changed because the
                weight moved or because the scale did.
        """
        raise NotImplementedError

    def codes(self, weight: Tensor, scales: Tensor | None = None) -> Tensor:
        """Integer codes as int8 (int16 where they do not fit), shape of the weights."""
        kind = torch.int8 if self.low >= -128 and self.high <= 127 else torch.int16
        return self.position(weight, scales).round_().clamp_(self.low, self.high).to(kind)

    def scales(self, weight: Tensor) -> Tensor:
        """The scales in use, a vector with one entry per row or one in all, detached."""
        raise NotImplementedError

    def clipped(self, weight: Tensor) -> Tensor:
        """Boolean, True where a weight lies beyond the outermost bins, shape of the weights."""
        raise NotImplementedError

    def free(self, weight: Tensor, boundary_range: float) -> Tensor:
        """CGA: True where a weight lies within `boundary_range` steps of a threshold."""
        position = self.position(weight)
        low, high = self.low, self.high
        if self.observed_range:
            low, high = observed_code_range(self.codes(weight))
        return free_mask(position, boundary_range, low, high)

    @torch.no_grad()
    def quantized(self, weight: Tensor) -> Tensor:
        """The quantized weights in the weights' dtype, without a graph or a record."""
        record, self.record = self.record, False
        values: Tensor = self.forward(weight.detach())
        self.record = record
        return values

    def penalty(self, weight: Tensor, progress: float) -> Tensor | None:
        """A scalar added to the loss of a step, or None.

        Args:
            weight: latent weights, with a graph to the parameters.
            progress: share of the run's steps that are done, 0 at the first.
        """
        return None

    def after_step(self, weight: Tensor, progress: float) -> None:
        """Look at the weights after an optimizer step, without a graph.

        Args:
            weight: latent weights. Writing into them in place changes the parameter, except under
                QKR, where they are a product that is computed anew from its two factors.
            progress: share of the run's steps that are done, 1 after the last.
        """

    @property
    def records(self) -> bool:
        """Whether somebody wants the codes of this forward."""
        return self.record and self.training

    def _record(self, codes: Callable[[], Tensor]) -> None:
        """Keep the codes of a training forward when somebody wants them."""
        if self.records:
            self.last_codes = codes()

    def _held(self, weight: Tensor) -> Tensor:
        """What a forward must quantize instead of `weight`: the same values, with CGA's mask on the
        gradient when `gradient_band` is set."""
        if self.gradient_band is not None and self.training:
            free = self.free(weight, self.gradient_band)
            weight = straight_through(weight, weight.detach(), free)
        if self.keep_gradient and weight.requires_grad:
            weight = weight.view_as(weight)
            weight.register_hook(self._add_gradient)  # type: ignore[no-untyped-call]
        return weight

    def _add_gradient(self, gradient: Tensor) -> None:
        self.gradient = gradient if self.gradient is None else self.gradient + gradient

    def extra_repr(self) -> str:
        """Show the bit width when the module is printed."""
        return f"bits={self.bits}"


class FullPrecisionWeight(WeightQuantizer):
    """The quantizer that is switched off (32 bits)."""

    bits = 32

    def __init__(self, weight: Tensor) -> None:
        super().__init__()

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weights themselves."""
        return weight


MakeWeightQuantizer = Callable[[Tensor], WeightQuantizer]


class HeldWeight(nn.Module):
    """A layer whose quantized weight can be held, so that several forwards quantize it once.

    Attributes:
        held: taken for the quantized weight while it is set; see `quantized_once`, `HeldWeights`.
    """

    held: Tensor | None = None

    def _latent(self) -> tuple[WeightQuantizer, Tensor]:
        """The quantizer, and the weights that it quantizes, with a graph."""
        raise NotImplementedError

    def quantized_weight(self) -> Tensor:
        """What is held, else the weights quantized now."""
        if self.held is not None:
            return self.held
        quantizer, weight = self._latent()
        quantized: Tensor = quantizer(weight)
        return quantized


class _AddHeldGradient(torch.autograd.Function):
    """The quantized weight; its gradient is joined by what its detached copy has gathered."""

    @staticmethod
    def forward(ctx: Any, quantized: Tensor, copy: Tensor) -> Tensor:
        ctx.copy = copy
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        gathered = ctx.copy.grad
        return (grad if gathered is None else grad + gathered), None


class HeldWeights:
    """Quantizes the weights of a model once for several forwards and backwards of one step.

    All but the last forward use detached copies, which gather their gradient; the last one's
    backward takes it along through the quantizers to the latent weights. So each quantizer, and
    each QKR product, runs once per step, forward and backward.

        weights.hold();  forward, backward, ...;  weights.release();  forward, backward
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = list(_holders(model))
        self._pairs: list[tuple[HeldWeight, Tensor, Tensor]] = []

    def hold(self) -> None:
        """Quantize all weights anew; the next forwards use detached copies."""
        self.clear()
        for layer in self._layers:
            quantized = layer.quantized_weight()
            copy = quantized.detach().requires_grad_(quantized.requires_grad)
            self._pairs.append((layer, quantized, copy))
            layer.held = copy

    def release(self) -> None:
        """The next forward is the last: its backward reaches the latent weights."""
        for layer, quantized, copy in self._pairs:
            layer.held = _AddHeldGradient.apply(quantized, copy)  # type: ignore[no-untyped-call]
        self._pairs = []

    def clear(self) -> None:
        """Forget everything; forwards quantize for themselves."""
        self._pairs = []
        for layer in self._layers:
            layer.held = None


@contextmanager
def quantized_once(model: nn.Module) -> Iterator[None]:
    """Quantize all weights once for the forwards of this block, in which no weight may change."""
    layers = list(_holders(model))
    try:
        with torch.no_grad():
            for layer in layers:
                # At 32 bits this is the parameter itself, which torch would register once more.
                layer.held = layer.quantized_weight().detach()
        yield
    finally:
        for layer in layers:
            layer.held = None


def _holders(model: nn.Module) -> Iterator[HeldWeight]:
    return (m for m in model.modules() if isinstance(m, HeldWeight))
