"""The quantizer of activations: learnable bias, LSQ, learnable bias (released code, spec 3.1).

y = LSQ(x + bias_before) + bias_after
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ofq_core.errors import ModelError
from ofq_core.quant import at_least_float32, code_range, lsq, lsq_init_scale
from ofq_core.quant.biased_lsq import Grid, Parameters
from ofq_core.quant.fused_linear import biased_lsq


@dataclass(frozen=True)
class Calibrated:
    """One line of the calibration log."""

    name: str
    scales: int
    mean: float
    smallest: float
    largest: float


class ActivationRule:
    """How a quantizer of activations turns x into quantized x; its parameters lie in the module.

    A method with a rule of its own subclasses this: `extra` names further parameters, `start` sets
    all of them from the first images, `quantize` is the forward. x always has its groups along
    `module.axis` (None: one group), `module.low` and `module.high` are the code range, and
    `module.scale` has one entry per group.
    """

    def extra(self, length: int) -> dict[str, Tensor]:
        """Further parameters, one entry per group each, as they are before `start`."""
        return {}

    def start(self, module: LSQActivation, x: Tensor) -> None:
        """Set the parameters from x, the calibration images' activations, at least FP32."""
        raise NotImplementedError

    def quantize(self, module: LSQActivation, x: Tensor) -> Tensor:
        """x, at least FP32, quantized; same shape and dtype."""
        raise NotImplementedError

    def penalty(self, module: LSQActivation) -> Tensor | None:
        """A scalar added to the loss of each step, or None."""
        return None


class LSQRule(ActivationRule):
    """LSQ with a learned scale per group (`ofq_core.quant.lsq`)."""

    def start(self, module: LSQActivation, x: Tensor) -> None:
        """Scales from the mean magnitude of each group."""
        module.scale.copy_(
            without_zeros(lsq_init_scale(x, module.axis, module.high, module.init_factor))
        )

    def quantize(self, module: LSQActivation, x: Tensor) -> Tensor:
        """See `ofq_core.quant.lsq`."""
        return lsq(x, module.scale, module.low, module.high, module.axis, module.whole_batch)


def without_zeros(scale: Tensor) -> Tensor:
    """Scales with the largest one in the place of zeros, or 1 where all are zero.

    A token that is zero throughout (an attention map that rounded to nothing) gives scale 0, which
    would clip all that comes later.
    """
    fallback = scale.max() if bool(scale.max() > 0) else torch.ones_like(scale.max())
    return torch.where(scale == 0, fallback, scale)


class LSQActivation(nn.Module):
    """LSQ for activations with optional learnable biases before and after.

    Args:
        length: number of scales (tokens, channels, or 1).
        axis: axis of the input along which scales differ: -2 per token, -1 or 1 per channel, None
            per tensor.
        bits: 2 to 8.
        signed: whether negative codes exist.
        bias_shape: shape in which the biases are added to the input, or None for no biases. They
            are stored as vectors, start at zero and are never decayed.
        bias_after: leave the second bias out where it cannot act (False).
        init_factor: factor of the initial scale, by default 2 (signed or per tensor) or 4.
        rule: what takes the place of LSQ, for methods that treat activations in their own way.

    The scales exist from the start and are NaN until `calibration` has filled them, so a
    forgotten calibration cannot pass for a result.
    """

    def __init__(
        self,
        length: int,
        axis: int | None,
        bits: int,
        signed: bool = True,
        bias_shape: tuple[int, ...] | None = None,
        bias_after: bool = True,
        init_factor: float | None = None,
        rule: ActivationRule | None = None,
    ) -> None:
        super().__init__()
        self.rule = rule or LSQRule()
        self.bits, self.signed, self.axis = bits, signed, axis
        self.low, self.high = code_range(bits, signed)
        default_factor = 2.0 if signed or axis is None else 4.0
        self.init_factor = default_factor if init_factor is None else init_factor
        self.scale = nn.Parameter(torch.full((length,), float("nan")))
        for name, values in self.rule.extra(length).items():
            self.register_parameter(name, nn.Parameter(values))
        self.bias_shape = bias_shape
        entries = int(torch.Size(bias_shape).numel()) if bias_shape is not None else 0
        self.bias_before = nn.Parameter(torch.zeros(entries)) if bias_shape is not None else None
        self.bias_after = (
            nn.Parameter(torch.zeros(entries)) if bias_shape is not None and bias_after else None
        )
        self.calibrating = False
        self.whole_batch = 1.0

    @property
    def fusable(self) -> bool:
        """Whether a layer may do this module's work itself: plain LSQ, and nobody looks on."""
        forward = self._forward_hooks or self._forward_pre_hooks
        watched = forward or self._backward_hooks or self._backward_pre_hooks
        return type(self.rule) is LSQRule and not self.calibrating and not watched

    @property
    def learned(self) -> Parameters:
        """Scales and biases."""
        return Parameters(self.scale, self.bias_before, self.bias_after)

    def grid(self, shape: torch.Size) -> Grid:
        """How x of this shape is divided.

        Raises:
            ModelError: the scales do not fit the shape.
        """
        view = self._view(shape)
        groups = 1 if self.axis is None else view[self.axis]
        if groups != self.scale.numel():
            raise ModelError(
                f"{self.scale.numel()} activation scales, but the input of shape "
                f"{tuple(shape)} needs {groups}: image size and model do not fit"
            )
        scale = [1] * len(view)
        if self.axis is not None:
            scale[self.axis] = groups
        bias = self.bias_shape or ()
        return Grid(self.low, self.high, view, tuple(scale), bias, self.whole_batch)

    def _view(self, shape: torch.Size) -> tuple[int, ...]:
        """The shape in which x has its groups along `axis`."""
        return tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize x, in at least FP32 whatever autocast does; same shape."""
        grid = self.grid(x.shape)
        if self.fusable:
            return biased_lsq(x, self.learned, grid)
        x = at_least_float32(x)
        if self.bias_before is not None and self.bias_shape is not None:
            x = x + self.bias_before.view(self.bias_shape)
        folded = x.reshape(grid.view)
        if self.calibrating:
            with torch.no_grad():
                self.rule.start(self, folded)
        x = self.rule.quantize(self, folded).view(x.shape)
        if self.bias_after is not None and self.bias_shape is not None:
            x = x + self.bias_after.view(self.bias_shape)
        return x

    def extra_repr(self) -> str:
        """Show the geometry when the module is printed."""
        sign = "signed" if self.signed else "unsigned"
        return f"scales={self.scale.numel()}, axis={self.axis}, bits={self.bits}, {sign}"


class TokenLSQ(LSQActivation):
    """LSQ for tokens (batch, ..., channels), with a scale per position between first and last axis.

    Args:
        positions: number of positions, such as tokens or height * width.
        columns: a scale per image column instead: positions are rows of so many (released Swin,
            whose "axis -2" is a column of the (batch, height, width, channels) map).
        groups: the last axis holds so many groups of channels, and every (position, group) pair has
            a scale of its own (QKR: heads).
        The rest: see `LSQActivation`.
    """

    def __init__(
        self,
        positions: int,
        bits: int,
        signed: bool = True,
        bias_shape: tuple[int, ...] | None = None,
        groups: int = 1,
        bias_after: bool = True,
        columns: int | None = None,
        rule: ActivationRule | None = None,
    ) -> None:
        length = (positions if columns is None else columns) * groups
        super().__init__(length, -2, bits, signed, bias_shape, bias_after, rule=rule)
        self.positions, self.groups, self.length = positions, groups, length

    def _view(self, shape: torch.Size) -> tuple[int, ...]:
        found = shape[1:-1].numel()
        if found != self.positions:
            raise ModelError(
                f"a quantizer made for {self.positions} tokens got {found}, in an input of shape "
                f"{tuple(shape)}: image size and model do not fit"
            )
        # (batch, H, W, C) as (batch * H, W, C) shares the scale of a column over rows.
        width = shape[-1] // self.groups
        return (shape.numel() // (self.length * width), self.length, width)


def _activation_quantizers(model: nn.Module) -> Iterator[tuple[str, LSQActivation]]:
    return ((n, m) for n, m in model.named_modules() if isinstance(m, LSQActivation))


def set_whole_batch(model: nn.Module, factor: float) -> None:
    """Say how many times as large the batch of an optimizer step is as that of the next forwards.

    LSQ's gradient scale counts the entries of the whole batch, so that it depends neither on
    accumulation nor on the number of processes. 1 (as after construction): the forward sees it all.
    """
    for _, module in _activation_quantizers(model):
        module.whole_batch = factor


@contextmanager
def _calibrating(model: nn.Module) -> Iterator[None]:
    quantizers = [module for _, module in _activation_quantizers(model)]
    try:
        for module in quantizers:
            module.calibrating = True
        yield
    finally:
        for module in quantizers:
            module.calibrating = False


def calibrate(model: nn.Module, images: Tensor) -> list[Calibrated]:
    """Set every activation scale from one forward in evaluation mode, in the order of the network.

    A later quantizer sees inputs that are already quantized, as in the released code.

    Args:
        model: a converted model; its mode is restored.
        images: (batch, channels, height, width), on the model's device.

    Returns:
        One entry per quantizer, to be logged.

    Raises:
        ModelError: the images do not fit the model, or a scale came out as infinite or NaN.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), _calibrating(model):
            model(images)
    except (AssertionError, RuntimeError) as error:
        raise ModelError(
            f"the model cannot take images of shape {tuple(images.shape)}: {error}"
        ) from error
    finally:
        model.train(training)
    log = []
    for name, module in _activation_quantizers(model):
        scale = module.scale.detach()
        if not bool(torch.isfinite(scale).all()):
            raise ModelError(f"{name}: calibration gave unusable scales {scale.tolist()[:4]}")
        low, high = scale.aminmax()
        log.append(Calibrated(name, scale.numel(), float(scale.mean()), float(low), float(high)))
    return log


def require_calibrated(model: nn.Module) -> None:
    """Raise ModelError when a quantizer of the model has never been calibrated or loaded."""
    for name, module in _activation_quantizers(model):
        if bool(torch.isnan(module.scale).any()):
            raise ModelError(
                f"{name}.scale is not set: call calibrate(model, images) or load weights"
            )
