"""Noise injection: what it costs to flip weights near a threshold, and weights anywhere (Table 1).

A perturbed weight gets the code on the other side of its nearest decision threshold, as an
oscillation would give it; scales and all other weights stay. Weights inside the boundary range are
compared with as many weights drawn from all of them. The paper does not print how it perturbs;
this is the smallest change that quantized weights can make, and the same for both groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ofq_core.errors import ModelError
from ofq_core.nn import WeightQuantizer
from ofq_core.quant import boundary_distance
from ofq_core.training.lowbit import LowBitWeight, low_bit_weights


@dataclass
class _Matrix:
    """One low-bit matrix: quantized values as they are, and each with its neighbouring code."""

    weight: LowBitWeight
    values: Tensor
    neighbours: Tensor
    inside: Tensor
    movable: Tensor


@dataclass(frozen=True)
class NoiseResult:
    """Top-1 (%) of each trial, with so many of all low-bit weights perturbed.

    inside: weights within the boundary range; a trial perturbs a random half of them (`perturbed`).
    """

    weights: int
    inside: int
    perturbed: int
    boundary: list[float]
    random: list[float]


@torch.no_grad()
def inject_noise(
    model: nn.Module, top1: Callable[[], float], boundary_range: float, trials: int, seed: int
) -> NoiseResult:
    """Perturb the low-bit weights of a trained model and measure it, `trials` times each way.

    Args:
        model: converted, with its weights, in evaluation mode; left as it was.
        top1: measures the model as it is, in percent.
        boundary_range: half width of the band round a threshold, in quantization steps.

    A row whose weights all have one code has no step to move by; its weights are left out.

    Raises:
        ModelError: no weight of the model has a threshold.
    """
    matrices = [_matrix(weight, boundary_range) for weight in low_bit_weights(model)]
    if not matrices:
        raise ModelError("no low-bit weights to perturb: quant.wbits = 32, expected 2 to 8")
    inside = torch.cat([m.inside.flatten() for m in matrices]).nonzero().flatten()
    movable = torch.cat([m.movable.flatten() for m in matrices]).nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    half = -(-len(inside) // 2)

    def trial(places: Tensor) -> float:
        chosen = places[torch.randperm(len(places), generator=generator)[:half]]
        with _perturbed(matrices, chosen):
            return top1()

    return NoiseResult(
        weights=sum(m.values.numel() for m in matrices),
        inside=len(inside),
        perturbed=half,
        boundary=[trial(inside) for _ in range(trials)],
        random=[trial(movable) for _ in range(trials)],
    )


def _matrix(weight: LowBitWeight, boundary_range: float) -> _Matrix:
    quantizer, latent = weight.quantizer, weight.latent()
    values, position = quantizer.quantized(latent), quantizer.position(latent)
    codes = quantizer.codes(latent).to(values.dtype)
    rows = values.flatten(1), codes.flatten(1)
    width, span = (row.amax(1) - row.amin(1) for row in rows)
    step = torch.where(span > 0, width / span.clamp(min=1), torch.zeros_like(width))
    step = step.reshape(-1, *[1] * (latent.ndim - 1))
    target = _across(quantizer, position, codes)
    movable = (step > 0).expand_as(values)
    distance = boundary_distance(position, quantizer.low, quantizer.high)
    return _Matrix(
        weight,
        values,
        values + (target - codes) * step,
        (distance <= boundary_range) & movable,
        movable,
    )


def _across(quantizer: WeightQuantizer, position: Tensor, codes: Tensor) -> Tensor:
    """The code on the other side of each weight's nearest threshold."""
    below = position.floor().clamp_(quantizer.low, quantizer.high - 1)
    # The nearest threshold is below + 1/2; between it and the code there is none.
    return torch.where(codes <= below, below + 1, below).to(codes.dtype)


@contextmanager
def _perturbed(matrices: list[_Matrix], chosen: Tensor) -> Iterator[None]:
    """The chosen weights, numbered over all matrices, take their neighbours' values."""
    sizes = [m.values.numel() for m in matrices]
    mask = torch.zeros(sum(sizes), dtype=torch.bool)
    mask[chosen.cpu()] = True
    for matrix, part in zip(matrices, torch.split(mask, sizes), strict=True):
        flip = part.view_as(matrix.values).to(matrix.values.device)
        values = torch.where(flip, matrix.neighbours, matrix.values)
        # In the instance, so that removing it brings the method back.
        matrix.weight.quantizer.forward = partial(_given, values)
    try:
        yield
    finally:
        for matrix in matrices:
            del matrix.weight.quantizer.forward


def _given(values: Tensor, weight: Tensor) -> Tensor:
    """The forward of a quantizer whose values are given."""
    return values
