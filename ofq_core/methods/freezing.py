"""Iterative weight freezing (Nagel et al., ICML 2022, section 4.3) on LSQ.

    f: oscillation frequency of each weight, see `ofq_core.quant.oscillation`, m = 0.001
    f > threshold(t): the weight is frozen for good at the rounded running mean of its code
    threshold(t): none for the first 25 % of the run, then cosine from `first_threshold` to
        `last_threshold`
    a frozen weight: q = s code,  dq/dw = 0,  dq/ds = g code,  g as in LSQ

f takes the codes that each step's forward has used, and what a step freezes is frozen from the next
forward on; its jump to the frozen code counts as a change of the code. The mean has the same m and
begins with the thresholds. After each optimizer step the latent weight is set to s code, so that it
follows the scale and neither momentum nor weight decay moves it. Under QKR the weights are a
product and cannot be set; the forward takes the frozen codes all the same. m, the 25 % and the
thresholds 0.1 and 0.01 (0.011 at 3 bits) are the authors' defaults and their scripts for
MobileNetV2 at 3 and 4 bits (repository oscillations-qat).

Deviations: those of LSQ; the authors start scales at least squared error and train them by Adam
with a rate of 1e-5, here they start as LSQ's and have the recipe's rate. The first and last layer
are not frozen. Bit widths above 4 are frozen too, which the authors' code leaves alone; there the
forwards of validation count as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ofq_core.methods.lsq import LSQWeight
from ofq_core.quant import IterativeFreezing, OscillationState
from ofq_core.quant.annealing import cosine_anneal
from ofq_core.quant.gradient import row_scale

MOMENTUM = 0.001
START = 0.25


class FreezingWeight(LSQWeight):
    """LSQ that freezes weights which oscillate.

    Buffers, all of the weights' shape: previous_code, frozen_code and direction (int8), frequency
    and mean_code (FP32), frozen (bool).
    """

    previous_code: Tensor
    direction: Tensor
    frequency: Tensor
    mean_code: Tensor
    frozen: Tensor
    frozen_code: Tensor

    def __init__(
        self, weight: Tensor, bits: int, first_threshold: float, last_threshold: float
    ) -> None:
        super().__init__(weight, bits)
        self.thresholds = (first_threshold, last_threshold)
        codes = super().codes(weight)
        self.register_buffer("previous_code", codes)
        self.register_buffer("direction", torch.zeros_like(codes))
        self.register_buffer("frequency", torch.zeros_like(codes, dtype=torch.float32))
        self.register_buffer("mean_code", codes.float())
        self.register_buffer("frozen", torch.zeros_like(codes, dtype=torch.bool))
        self.register_buffer("frozen_code", codes.clone())

    def position(self, weight: Tensor, scales: Tensor | None = None) -> Tensor:
        """See `WeightQuantizer.position`; a frozen weight is in the middle of its bin."""
        position = super().position(weight, scales)
        return torch.where(self.frozen, self.frozen_code.to(position.dtype), position)

    def codes(self, weight: Tensor, scales: Tensor | None = None) -> Tensor:
        """See `WeightQuantizer.codes`; those of frozen weights depend on nothing."""
        return torch.where(self.frozen, self.frozen_code, super().codes(weight, scales))

    def clipped(self, weight: Tensor) -> Tensor:
        """Beyond the outermost codes; a frozen weight is not."""
        return super().clipped(weight) & ~self.frozen

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize (rows, ...): LSQ, and the frozen codes where there are any."""
        held = (row_scale(self.scale, weight, self.high) * self.frozen_code).to(weight.dtype)
        quantized = super().forward(weight)
        self._record(lambda: self.codes(weight))
        return torch.where(self.frozen, held, quantized)

    @torch.no_grad()
    def after_step(self, weight: Tensor, progress: float) -> None:
        """Freeze by the codes up to this step's, set frozen weights (in place) to their values, and
        count the codes of the next step.
        """
        state = IterativeFreezing(
            oscillation=OscillationState(
                codes=self.previous_code.reshape(-1),
                direction=self.direction.reshape(-1),
                frequency=self.frequency.reshape(-1),
                reversals=torch.zeros_like(self.previous_code, dtype=torch.int32).reshape(-1),
                flips=torch.zeros((), dtype=torch.int64, device=weight.device),
            ),
            mean_code=self.mean_code.reshape(-1),
            frozen=self.frozen.reshape(-1),
            frozen_code=self.frozen_code.reshape(-1),
        )
        threshold = 0.0 if progress < START else cosine_anneal(*self.thresholds, progress, START)
        state.freeze(threshold, MOMENTUM)
        for name in ("mean_code", "frozen", "frozen_code"):
            getattr(self, name).copy_(getattr(state, name).view_as(weight))
        values = row_scale(self.scale, weight, self.high) * self.frozen_code
        weight.copy_(torch.where(self.frozen, values.to(weight.dtype), weight))
        state.look(super().codes(weight), MOMENTUM)
        self.previous_code.copy_(state.oscillation.codes.view_as(weight))
        self.direction.copy_(state.oscillation.direction.view_as(weight))
        self.frequency.copy_(state.oscillation.frequency.view_as(weight))
        if threshold == 0.0:
            # The mean begins with the first step that has a threshold, perhaps the next one.
            self.mean_code.copy_(self.previous_code)
