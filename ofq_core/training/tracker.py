"""Oscillation of every low-bit weight of a model during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ofq_core.quant import OSCILLATION_THRESHOLD, OscillationState, boundary_distance
from ofq_core.quant.lsq import SCALE_FLOOR
from ofq_core.training.lowbit import LowBitWeight, low_bit_weights
from ofq_core.training.samples import StepSamples, sample_figures
from ofq_core.training.trajectory import TrajectoryRecorder

BOUNDARY_RANGES = (0.003, 0.005, 0.007, 0.01, 0.05)
# Of the gradient flips per epoch: narrower bands hold too few weights for a curve.
CURVE_BAND = "0.05"
_BINS_PER_STEP, _DISTANCE_BINS = 32, 100
_PER_WEIGHT = ("codes", "direction", "frequency", "reversals")


class OscillationTracker:
    """Nagel's frequency for all low-bit weights in one flat state, fed by the forward pass.

    The quantizers keep the codes of the last training forward; `update`, called once per
    optimizer step, takes them. So the tracker sees the weights as each step used them. What needs
    the weights before and after a step is sampled (`StepSamples`).

    A step is: `begin_step`, forward and backward, `before_update`, the optimizer, `update`.

    Args:
        every: sample every so many steps; 0: never.
        window: first step of the last phase and number of steps of the run, for trajectories;
            None: record none.
        total: adds a tensor over all processes.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.01,
        every: int = 0,
        window: tuple[int, int] | None = None,
        total: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.weights: list[LowBitWeight] = low_bit_weights(model)
        self.momentum = momentum
        self.state: OscillationState | None = None
        self.first_scales = [w.quantizer.scales(w.latent()).clone() for w in self.weights]
        self.samples = StepSamples(self.weights, every, total)
        self.trajectory = None if window is None else TrajectoryRecorder(self.weights, *window)
        self.step = 0
        self.before: dict[str, Any] = {}
        self.flips_before = 0
        self.steps_before = 0
        for weight in self.weights:
            weight.quantizer.record = True

    def begin_step(self) -> None:
        """Before the forward of a step."""
        self.samples.begin(self.step)

    def before_update(self) -> None:
        """When the gradients are there, before the optimizer changes the weights."""
        self.samples.before(self.step)

    def update(self) -> None:
        """After the optimizer: take the codes of the last training forward."""
        if not self.weights:
            return
        codes = []
        for weight in self.weights:
            recorded = weight.quantizer.last_codes
            if recorded is None:
                raise RuntimeError(f"{weight.name}: no training forward since the tracker started")
            codes.append(recorded.reshape(-1))
        flat = torch.cat(codes)
        if self.state is None:
            self.state = OscillationState.start(flat)
        else:
            self.state.update(flat, self.momentum)
        self.samples.after()
        if self.trajectory is not None:
            self.trajectory.after_step(self.step, self.state.frequency)
        self.step += 1

    def restart(self) -> None:
        """Begin the last phase: frequencies start from zero again, codes and directions stay.

        The running mean remembers some 70 steps. In a short last phase it would still tell of the
        one before, and hide what CGA does.
        """
        if self.state is not None:
            self.before = {"share": self.share(), **self._sampled(self.samples.phase.sum(0))}
            self.flips_before, self.steps_before = self.counts()
            self.state.frequency.zero_()
            self.samples.restart()

    def finish(self) -> None:
        """Take the codes after the last step, which no forward has seen."""
        if self.state is not None:
            codes = [w.quantizer.codes(w.latent()).reshape(-1) for w in self.weights]
            self.state.update(torch.cat(codes), self.momentum)

    def counts(self) -> tuple[int, int]:
        """Code changes over all weights, and steps, since the start."""
        return (0, 0) if self.state is None else (int(self.state.flips), self.state.steps)

    def flips_per_step(self, flips: int, steps: int) -> float:
        """Code changes per weight and step since earlier `counts`."""
        flips_now, steps_now = self.counts()
        if self.state is None or steps_now == steps:
            return 0.0
        return (flips_now - flips) / ((steps_now - steps) * self.state.codes.numel())

    def share(self) -> float:
        """Share of weights whose frequency exceeds 0.005."""
        if self.state is None:
            return 0.0
        return float((self.state.frequency > OSCILLATION_THRESHOLD).float().mean())

    def epoch_figures(self) -> dict[str, Any]:
        """Columns of history.csv, of the epoch since `samples.start_epoch`; None: not sampled."""
        sampled = self._sampled(self.samples.epoch.sum(0))
        curve = sampled.pop("gradient_flips", {}).get(CURVE_BAND)
        now = [self._now(index) for index in range(len(self.weights))]
        total = sum(layer["weights"] for layer in now)
        names = ("in_band_0.005", "scale_drift")
        means = {
            name: sum(layer[name] * layer["weights"] for layer in now) / total if total else None
            for name in names
        }
        return {**means, **sampled, "gradient_flips": curve}

    def layers(self) -> dict[str, dict[str, Any]]:
        """Figures per layer, as written to oscillation.json."""
        if self.state is None:
            return {}
        report: dict[str, dict[str, Any]] = {}
        start = 0
        for index, weight in enumerate(self.weights):
            now = self._now(index)
            part = slice(start, start + now["weights"])
            start += now["weights"]
            frequency = self.state.frequency[part]
            report[weight.name] = {
                **now,
                "share": float((frequency > OSCILLATION_THRESHOLD).float().mean()),
                "mean_frequency": float(frequency.mean()),
                "reversals": int(self.state.reversals[part].sum()),
                **self._sampled(self.samples.phase[index]),
            }
            if self.samples.every:
                report[weight.name]["path_ratio_above_16"] = self.samples.above_limit(index)
        return report

    def summary(self) -> dict[str, Any] | None:
        """Figures over all weights, as written to metrics.json; None without low-bit weights.

        Sampled figures and frequencies tell of the last phase, `before_last_phase` of what was
        before it.
        """
        layers = self.layers()
        if self.state is None or not layers:
            return None
        total = sum(layer["weights"] for layer in layers.values())
        first = next(iter(layers.values()))
        means = [
            key
            for key in first
            if key in ("share", "mean_frequency", "path_ratio_above_16", *self._now(0))
            and key not in ("weights", "scales")
        ]
        return {
            **{
                key: sum(layer[key] * layer["weights"] for layer in layers.values()) / total
                for key in means
            },
            "flip_rate": self.flips_per_step(0, 0),
            "flip_rate_last_phase": self.flips_per_step(self.flips_before, self.steps_before),
            **self._sampled(self.samples.phase.sum(0)),
            "share_before_last_phase": self.before.get("share", 0.0),
            "before_last_phase": self.before,
        }

    def histogram(self) -> dict[str, Any]:
        """What histogram.json holds: where all low-bit weights stand now, between the thresholds.

        position: counts over the code axis, thresholds at t + 1/2. distance: counts over the
        distance to the nearest threshold, in steps; what is beyond the outermost bins by more than
        half a step counts in neither.
        """
        if not self.weights:
            return {}
        low = min(weight.quantizer.low for weight in self.weights)
        high = max(weight.quantizer.high for weight in self.weights)
        bins = (high - low + 2) * _BINS_PER_STEP
        counts = torch.zeros(bins), torch.zeros(_DISTANCE_BINS)
        for weight in self.weights:
            position = weight.quantizer.position(weight.latent()).float().cpu()
            distance = boundary_distance(position, weight.quantizer.low, weight.quantizer.high)
            counts[0].add_(torch.histc(position, bins, low - 1, high + 1))
            counts[1].add_(torch.histc(distance, _DISTANCE_BINS, 0, 0.5))
        edges = (
            torch.linspace(low - 1, high + 1, bins + 1, dtype=torch.float64),
            torch.linspace(0, 0.5, _DISTANCE_BINS + 1, dtype=torch.float64),
        )
        names = ("position", "distance")
        return {
            "low": low,
            "high": high,
            **{
                name: {"edges": e.tolist(), "counts": [int(n) for n in c.tolist()]}
                for name, e, c in zip(names, edges, counts, strict=True)
            },
        }

    def _sampled(self, sums: Tensor) -> dict[str, Any]:
        return sample_figures(sums) if self.samples.every else {}

    def _now(self, index: int) -> dict[str, Any]:
        """What one matrix shows at this moment."""
        weight, first = self.weights[index], self.first_scales[index]
        latent, quantizer = weight.latent(), weight.quantizer
        scales = quantizer.scales(latent)
        drift = (scales / first.clamp(min=1e-12) - 1.0).abs()
        distance = boundary_distance(quantizer.position(latent), quantizer.low, quantizer.high)
        return {
            "weights": latent.numel(),
            "scales": scales.numel(),
            "scale_drift": float(drift.mean()),
            "scales_at_floor": float((scales <= SCALE_FLOOR).float().mean()),
            **{
                f"in_band_{band}": float((distance <= band).float().mean())
                for band in BOUNDARY_RANGES
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "state": None if self.state is None else self.state.state_dict(),
            "first_scales": self.first_scales,
            "samples": self.samples.state_dict(),
            "trajectory": None if self.trajectory is None else self.trajectory.state_dict(),
            "step": self.step,
            "before": self.before,
            "flips_before": self.flips_before,
            "steps_before": self.steps_before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; tensors go to the device of the weights.

        Raises:
            ValueError: the state is of other weights.
        """
        devices = {scale.device for scale in self.first_scales}
        saved = state["state"]
        self.state = None
        if saved is not None:
            total = sum(weight.latent().numel() for weight in self.weights)
            if any(len(saved[key]) != total for key in _PER_WEIGHT):
                raise ValueError(f"the tracker's state is not of {total} weights")
            (device,) = devices
            on_device = {
                key: value.to(device) if isinstance(value, torch.Tensor) else value
                for key, value in saved.items()
            }
            self.state = OscillationState.from_state_dict(on_device)
        self.first_scales = [
            scale.to(now.device)
            for scale, now in zip(state["first_scales"], self.first_scales, strict=True)
        ]
        self.samples.load_state_dict(state["samples"])
        if self.trajectory is not None:
            self.trajectory.load_state_dict(state["trajectory"])
        self.step, self.before = state["step"], state["before"]
        self.flips_before, self.steps_before = state["flips_before"], state["steps_before"]
