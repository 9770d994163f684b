"""Oscillation of integer codes (Nagel et al., ICML 2022).

With the code k^t of one weight after step t:

    delta^t = k^t - k^(t-1);   a flip when delta^t != 0
    o^t = 1  iff  a flip at t goes against the direction of the flip before it
    f^t = m o^t + (1 - m) f^(t-1),  f^0 = 0

The first flip of a weight never counts. A weight oscillates when f is above a threshold (0.005).

What else is measured: why a code changed (`flip_causes`), how close weights are to a threshold
(`boundary_distance`), and how evenly codes are used (`code_entropy`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

OSCILLATION_THRESHOLD = 0.005


def boundary_distance(position: Tensor, low: int, high: int) -> Tensor:
    """Distance of each weight to the nearest decision threshold, in quantization steps.

    Args:
        position: unrounded codes, FP32 or FP64; thresholds lie at t + 1/2, t = low .. high - 1.

    Returns:
        Shape and dtype of `position`; 0 to 0.5 between two thresholds, more beyond the outermost.
        A weight is inside the boundary range r when its distance is at most r (r <= 0.5), up to the
        last bits at the ends of the band.
    """
    below = position.floor().clamp_(low, high - 1)
    return position.sub(below).sub_(0.5).abs_()


def flip_causes(
    before: Tensor, after: Tensor, weight_alone: Tensor, scale_alone: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Split code changes of one step by what caused them.

    Args:
        before, after: codes before and after the step, integers, any one shape.
        weight_alone: codes of the new weights on the old scales.
        scale_alone: codes of the old weights on the new scales.

    Returns:
        Three boolean masks, which together are the flips: the weight's move alone changes the code
        and the scale's alone does not; the other way round; and the rest, where either of them
        would have, or only both together do.
    """
    flipped = before != after
    by_weight, by_scale = weight_alone != before, scale_alone != before
    weight = flipped & by_weight & ~by_scale
    scale = flipped & by_scale & ~by_weight
    return weight, scale, flipped & ~weight & ~scale


def code_entropy(codes: Tensor, low: int, high: int) -> Tensor:
    """Shannon entropy of how often each code occurs, in bits: a scalar FP32 tensor.

    0 where one code takes all, log2(high - low + 1) where all occur alike.
    """
    counts = torch.bincount(codes.reshape(-1).long() - low, minlength=high - low + 1)
    share = counts.to(torch.float32) / codes.numel()
    entropy: Tensor = -torch.special.xlogy(share, share).sum() / math.log(2.0)
    return entropy


@dataclass
class OscillationState:
    """State of a flat set of weights; every tensor has their number as length.

    codes: int8, the codes after the last step. direction: int8 in {-1, 0, 1}, of the last flip.
    frequency: FP32 f. reversals: int32, how often each weight oscillated. flips: number of code
    changes so far, over all weights. steps: number of updates.
    """

    codes: Tensor
    direction: Tensor
    frequency: Tensor
    reversals: Tensor
    flips: Tensor
    steps: int = 0

    @classmethod
    def start(cls, codes: Tensor) -> OscillationState:
        """State before the first step; `codes` are k^0."""
        flat = codes.detach().reshape(-1).to(torch.int8)
        return cls(
            codes=flat.clone(),
            direction=torch.zeros_like(flat),
            frequency=torch.zeros_like(flat, dtype=torch.float32),
            reversals=torch.zeros_like(flat, dtype=torch.int32),
            flips=torch.zeros((), dtype=torch.int64, device=flat.device),
        )

    def update(self, codes: Tensor, momentum: float = 0.01) -> Tensor:
        """Take the codes after one more step; return a mask, True where a weight oscillated."""
        flat = codes.detach().reshape(-1).to(torch.int8)
        flipped = flat != self.codes
        take = self._take_some if flat.device.type == "cpu" else self._take_all
        oscillated = take(flat, flipped, momentum)
        self.codes = flat
        self.steps += 1
        return oscillated

    def _take_some(self, flat: Tensor, flipped: Tensor, momentum: float) -> Tensor:
        """Few weights flip in a step; all but the decay concerns those alone."""
        places = flipped.nonzero().squeeze(1)
        # Not the sign of a difference: in int8 it overflows at 8 bits.
        direction = (flat[places] > self.codes[places]).to(torch.int8).mul_(2).sub_(1)
        reversed_now = direction * self.direction[places] < 0
        self.frequency.mul_(1.0 - momentum)
        self.frequency[places] += momentum * reversed_now
        self.reversals[places] += reversed_now
        self.direction[places] = direction
        self.flips += len(places)
        oscillated = torch.zeros_like(flipped)
        oscillated[places] = reversed_now
        return oscillated

    def _take_all(self, flat: Tensor, flipped: Tensor, momentum: float) -> Tensor:
        """The same numbers by passes over all weights: a GPU need not tell how many flipped."""
        direction = (flat > self.codes).to(torch.int8).mul_(2).sub_(1).mul_(flipped)
        oscillated = direction * self.direction < 0
        self.frequency.mul_(1.0 - momentum).add_(momentum * oscillated)
        self.reversals.add_(oscillated)
        torch.where(flipped, direction, self.direction, out=self.direction)
        self.flips.add_(flipped.sum())
        return oscillated

    def state_dict(self) -> dict[str, Tensor | int]:
        """Everything that a resumed run needs."""
        return dict(vars(self))

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor | int]) -> OscillationState:
        """Inverse of `state_dict`."""
        return cls(**state)  # type: ignore[arg-type]


@dataclass
class IterativeFreezing:
    """Iterative weight freezing (Nagel et al., section 4.3) on top of the oscillation state.

    A weight whose frequency exceeds the threshold is frozen for good at the rounded running mean of
    its code, from the step after; while its frequency stays above, that value is refreshed.
    mean_code: FP32. frozen: bool. frozen_code: int8.
    """

    oscillation: OscillationState
    mean_code: Tensor
    frozen: Tensor
    frozen_code: Tensor

    @classmethod
    def start(cls, codes: Tensor) -> IterativeFreezing:
        """State before the first step."""
        oscillation = OscillationState.start(codes)
        return cls(
            oscillation=oscillation,
            mean_code=oscillation.codes.float(),
            frozen=torch.zeros_like(oscillation.codes, dtype=torch.bool),
            frozen_code=oscillation.codes.clone(),
        )

    def update(self, codes: Tensor, threshold: float, momentum: float = 0.01) -> Tensor:
        """`look`, then `freeze`; return the codes that the step uses."""
        used = self.look(codes, momentum)
        self.freeze(threshold, momentum)
        return used

    def look(self, codes: Tensor, momentum: float) -> Tensor:
        """Count the codes of one more step; return those that it uses (frozen ones replaced).

        The jump of a weight to its frozen code counts like any other change.
        """
        flat = codes.detach().reshape(-1).to(torch.int8)
        used = torch.where(self.frozen, self.frozen_code, flat)
        self.oscillation.update(used, momentum)
        return used

    def freeze(self, threshold: float, momentum: float) -> None:
        """Choose what is frozen from the next step on; 0 freezes nothing, and the mean waits."""
        if threshold == 0.0:
            return
        above = self.oscillation.frequency > threshold
        # The running mean does not know the current code yet: the weight is frozen where it was.
        mean_rounded = self.mean_code.round().to(torch.int8)
        self.frozen_code = torch.where(above, mean_rounded, self.frozen_code)
        self.frozen |= above
        self.mean_code.lerp_(self.oscillation.codes.float(), momentum)

    def state_dict(self) -> dict[str, object]:
        """Everything that a resumed run needs."""
        return {**vars(self), "oscillation": self.oscillation.state_dict()}

    @classmethod
    def from_state_dict(cls, state: dict[str, object]) -> IterativeFreezing:
        """Inverse of `state_dict`."""
        oscillation = OscillationState.from_state_dict(state["oscillation"])  # type: ignore[arg-type]
        return cls(**{**state, "oscillation": oscillation})  # type: ignore[arg-type]
