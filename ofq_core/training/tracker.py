"""Oscillation of every low-bit weight of a model during training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ofq_core.quant import OSCILLATION_THRESHOLD, OscillationState
from ofq_core.training.lowbit import LowBitWeight, low_bit_weights

BOUNDARY_RANGES = (0.003, 0.005, 0.007, 0.01, 0.05)


class OscillationTracker:
    """Nagel's frequency for all low-bit weights in one flat state, fed by the forward pass.

    The quantizers keep the codes of the last training forward; `update`, called once per
    optimizer step, takes them. So the tracker sees the weights as each step used them.
    """

    def __init__(self, model: nn.Module, momentum: float = 0.01) -> None:
        self.weights: list[LowBitWeight] = low_bit_weights(model)
        self.momentum = momentum
        self.state: OscillationState | None = None
        self.first_scales = [w.quantizer.scales(w.latent()).clone() for w in self.weights]
        self.share_before = 0.0
        self.flips_before = 0
        self.steps_before = 0
        for weight in self.weights:
            weight.quantizer.record = True

    def update(self) -> None:
        """Take the codes of the last training forward."""
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

    def restart(self) -> None:
        """Begin the last phase: frequencies start from zero again, codes and directions stay.

        The running mean remembers some 70 steps. In a short last phase it would still tell of the
        one before, and hide what CGA does.
        """
        if self.state is not None:
            self.share_before = self.share()
            self.flips_before, self.steps_before = self.counts()
            self.state.frequency.zero_()

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

    def layers(self) -> dict[str, dict[str, Any]]:
        """Figures per layer, as written to oscillation.json."""
        if self.state is None:
            return {}
        report: dict[str, dict[str, Any]] = {}
        start = 0
        for weight, first in zip(self.weights, self.first_scales, strict=True):
            latent = weight.latent()
            part = slice(start, start + latent.numel())
            start += latent.numel()
            frequency = self.state.frequency[part]
            drift = (weight.quantizer.scales(latent) / first.clamp(min=1e-12) - 1.0).abs()
            report[weight.name] = {
                "weights": latent.numel(),
                "share": float((frequency > OSCILLATION_THRESHOLD).float().mean()),
                "mean_frequency": float(frequency.mean()),
                "reversals": int(self.state.reversals[part].sum()),
                "scale_drift": float(drift.mean()),
                **{
                    f"in_band_{band}": float(weight.quantizer.free(latent, band).float().mean())
                    for band in BOUNDARY_RANGES
                },
            }
        return report

    def summary(self) -> dict[str, float] | None:
        """Figures over all weights, as written to metrics.json; None without low-bit weights."""
        layers = self.layers()
        if self.state is None or not layers:
            return None
        total = sum(layer["weights"] for layer in layers.values())

        def mean(key: str) -> float:
            weighted = sum(layer[key] * layer["weights"] for layer in layers.values())
            return float(weighted / total)

        keys = [
            "share",
            "mean_frequency",
            "scale_drift",
            *(f"in_band_{b}" for b in BOUNDARY_RANGES),
        ]
        return {
            **{key: mean(key) for key in keys},
            "share_before_last_phase": self.share_before,
            "flip_rate": self.flips_per_step(0, 0),
            "flip_rate_last_phase": self.flips_per_step(self.flips_before, self.steps_before),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        state = None if self.state is None else self.state.state_dict()
        return {
            "state": state,
            "first_scales": self.first_scales,
            "share_before": self.share_before,
            "flips_before": self.flips_before,
            "steps_before": self.steps_before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; tensors go to the device of the weights."""
        devices = {scale.device for scale in self.first_scales}
        saved = state["state"]
        if saved is not None:
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
        self.share_before = state["share_before"]
        self.flips_before, self.steps_before = state["flips_before"], state["steps_before"]
