"""Quantized linear layer, head and patch embedding."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ofq_core.nn.weight import MakeWeightQuantizer


class QuantLinear(nn.Module):
    """y = input_quantizer(x) Q(W)^T + b, with the weights and bias of a source layer.

    Args:
        source: layer whose parameters are taken over (shared, not copied).
        input_quantizer: applied to x; `nn.Identity()` where x is quantized already or not at all.
        make_weight_quantizer: makes the quantizer for the weights (out, in).
    """

    def __init__(
        self,
        source: nn.Linear,
        input_quantizer: nn.Module,
        make_weight_quantizer: MakeWeightQuantizer,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = source.in_features, source.out_features
        self.weight, self.bias = source.weight, source.bias
        self.input_quantizer = input_quantizer
        self.weight_quantizer = make_weight_quantizer(source.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)


class QuantConv2d(nn.Module):
    """The patch embedding: a convolution with quantized input and weights (out, in, kh, kw)."""

    def __init__(
        self,
        source: nn.Conv2d,
        input_quantizer: nn.Module,
        make_weight_quantizer: MakeWeightQuantizer,
    ) -> None:
        super().__init__()
        self.stride, self.padding = source.stride, source.padding
        self.weight, self.bias = source.weight, source.bias
        self.input_quantizer = input_quantizer
        self.weight_quantizer = make_weight_quantizer(source.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, height, width) to (batch, out, height', width')."""
        weight = self.weight_quantizer(self.weight)
        return F.conv2d(self.input_quantizer(x), weight, self.bias, self.stride, self.padding)
