"""A linear regression with three quantized weights: oscillation where nothing else happens.

    min over w of  E |x . (q(w) - w*)|^2 / 2,   x ~ N(0, I),  w* between the values of the grid

The optimum cannot be reached, so q(w) jumps between the values around it: the gradient of a weight
points at the threshold from both sides. Each row of the target is a problem of its own: the loss is
a sum over rows, and quantizers have a scale per row.

`python -m ofq_core.toy` prints the runs of LSQ and StatsQ as JSON. The figure is drawn from what is
committed as tables/figures/toy_regression.json: a flip comes a step earlier or later where another
processor rounds a sum the other way, and the path is another one from there on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ofq_core.methods.lsq import LSQWeight
from ofq_core.methods.statsq import StatsQWeight
from ofq_core.nn import WeightQuantizer
from ofq_core.output import any_output

BITS = 2
STEPS = 400
# The last of them, which are drawn.
SHOWN = 100
BATCH = 16
RATE = 0.05
# The row that is drawn. The others tell how far it stands for problems of its kind.
TARGET = (0.2, 0.5, -0.9)
OTHER_TARGETS = 64
TARGET_SPREAD = 0.5
METHODS: Mapping[str, Callable[[Tensor, int], WeightQuantizer]] = {
    "lsq": LSQWeight,
    "statsq": StatsQWeight,
}


@dataclass(frozen=True)
class ToyRun:
    """What every step saw, before its update.

    latent, codes, quantized: (steps, rows, weights). scales: (steps, rows).
    """

    latent: Tensor
    codes: Tensor
    quantized: Tensor
    scales: Tensor

    def flips(self) -> Tensor:
        """Code changes per 100 steps of each weight over the last half, (rows, weights)."""
        tail = self.codes[len(self.codes) // 2 :]
        return (tail[1:] != tail[:-1]).double().mean(dim=0) * 100

    def scale_spread(self) -> Tensor:
        """Standard deviation of each row's scale over the last half, relative to its mean."""
        tail = self.scales[len(self.scales) // 2 :].double()
        return tail.std(dim=0) / tail.mean(dim=0)


def toy_targets(seed: int = 0) -> Tensor:
    """w*, (1 + OTHER_TARGETS, 3): the row that is drawn, then rows from N(0, 0.5^2)."""
    generator = torch.Generator().manual_seed(seed)
    others = torch.randn(OTHER_TARGETS, len(TARGET), generator=generator) * TARGET_SPREAD
    return torch.cat([torch.tensor([TARGET]), others])


def run_toy(
    make: Callable[[Tensor, int], WeightQuantizer],
    targets: Tensor,
    steps: int = STEPS,
    rate: float = RATE,
    batch: int = BATCH,
    seed: int = 0,
) -> ToyRun:
    """Train by plain SGD from w = w*, as a pretrained model would start; same inputs for all rows.

    Args:
        make: a weight quantizer, from the weights that it starts from and the bit width.
        targets: w*, (rows, weights).
        steps, rate, batch, seed: of the training; inputs are drawn anew at every step.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(targets.clone())
    quantizer = make(weight.detach(), BITS)
    parameters = [weight, *quantizer.parameters()]
    latent, codes, quantized, scales = [], [], [], []
    for _ in range(steps):
        values = quantizer(weight)
        latent.append(weight.detach().clone())
        codes.append(quantizer.codes(weight))
        quantized.append(values.detach())
        scales.append(quantizer.scales(weight).clone())
        inputs = torch.randn(batch, targets.shape[1], generator=generator)
        # By hand: the first torch.optim of a process takes longer to load than all of this takes.
        gradients = torch.autograd.grad(toy_loss(values, targets, inputs), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=rate)
    return ToyRun(
        torch.stack(latent), torch.stack(codes), torch.stack(quantized), torch.stack(scales)
    )


def toy_loss(values: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
    """Half the mean squared error of each row over the batch, summed over rows: a scalar.

    Args:
        values: quantized weights, (rows, weights).
        targets: w*, of the same shape.
        inputs: (batch, weights).
    """
    return (inputs @ (values - targets).T).square().mean(dim=0).sum() / 2


def toy_document() -> dict[str, object]:
    """The runs of both methods as JSON values: the end of the drawn row, of the others the figures.

    `latent`, `quantized`, `scale` begin with step `first`; flips and spreads are of the last half.
    `thresholds` are decision points in units of the scale.
    """
    targets = toy_targets()
    methods = {}
    for name, make in METHODS.items():
        run = run_toy(make, targets)
        flips, spread = run.flips(), run.scale_spread()
        methods[name] = {
            "latent": run.latent[-SHOWN:, 0].tolist(),
            "quantized": run.quantized[-SHOWN:, 0].tolist(),
            "scale": run.scales[-SHOWN:, 0].tolist(),
            "thresholds": _thresholds(make),
            "flips": flips[0].tolist(),
            "scale_spread": float(spread[0]),
            "other_flips": flips[1:].sum(dim=1).tolist(),
            "other_scale_spread": spread[1:].tolist(),
        }
    return {
        "bits": BITS,
        "steps": STEPS,
        "first": STEPS - SHOWN,
        "batch": BATCH,
        "rate": RATE,
        "target": list(TARGET),
        "methods": methods,
    }


def _thresholds(make: Callable[[Tensor, int], WeightQuantizer]) -> list[float]:
    """Where the code changes on a fine line of weights whose scale is 1."""
    # Multiples of 1/1024 are exact, so the first weight past a tie is found to 1/1024.
    line = torch.arange(-2560, 2561).reshape(1, -1) / 1024
    quantizer = make(line, BITS)
    codes = quantizer.codes(line, torch.ones(1))[0]
    changed = (codes[1:] != codes[:-1]).nonzero().flatten()
    return [round(float(line[0, place]) * 256) / 256 for place in changed]


def main() -> None:
    """Print the document; one thread, since a tensor of 195 numbers gains nothing from more."""
    about = (__doc__ or "").splitlines()[0]
    argparse.ArgumentParser("python -m ofq_core.toy", description=about).parse_args()
    torch.set_num_threads(1)
    print(json.dumps(toy_document()))


if __name__ == "__main__":
    with any_output():
        main()
