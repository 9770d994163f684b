"""Quantized linear layer, head and patch embedding."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ofq_core.nn.activation import LSQActivation
from ofq_core.nn.weight import HeldWeight, MakeWeightQuantizer, WeightQuantizer
from ofq_core.quant.fused_linear import LinearPlan, quantized_linear


class QuantLinear(HeldWeight):
    """y = input_quantizer(x) Q(W)^T + b, with the weights and bias of a source layer.

    Args:
        source: layer whose parameters are taken over (shared, not copied).
        input_quantizer: applied to x; `nn.Identity()` where x is quantized already or not at all.
        make_weight_quantizer: makes the quantizer for the weights (out, in).

    Attributes:
        activation: a GELU that the layer applies to x first, so that its output is not kept for
            the backward; None: x is taken as it is.
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
        self.activation: nn.GELU | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        weight, quantizer = self.quantized_weight(), self.input_quantizer
        if isinstance(quantizer, LSQActivation) and quantizer.fusable:
            gelu = "" if self.activation is None else self.activation.approximate
            plan = LinearPlan(quantizer.grid(x.shape), gelu)
            return quantized_linear(x, quantizer.learned, weight, self.bias, plan)
        if self.activation is not None:
            x = self.activation(x)
        return F.linear(quantizer(x), weight, self.bias)

    def _latent(self) -> tuple[WeightQuantizer, Tensor]:
        return self.weight_quantizer, self.weight


class QuantConv2d(HeldWeight):
    """The patch embedding: a convolution with quantized input and weights (out, in, kh, kw).

    Attributes:
        cuts: whether it multiplies patches, which do not overlap, instead of convolving.
    """

    def __init__(
        self,
        source: nn.Conv2d,
        input_quantizer: nn.Module,
        make_weight_quantizer: MakeWeightQuantizer,
    ) -> None:
        super().__init__()
        self.stride, self.padding = source.stride, source.padding
        # Without a quantizer it stays what timm computes, to the bit.
        plain = isinstance(input_quantizer, nn.Identity)
        whole = source.stride == source.kernel_size and source.padding == (0, 0)
        self.cuts = whole and not plain
        self.weight, self.bias = source.weight, source.bias
        self.input_quantizer = input_quantizer
        self.weight_quantizer = make_weight_quantizer(source.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, height, width) to (batch, out, height', width')."""
        weight, x = self.quantized_weight(), self.input_quantizer(x)
        if self.cuts:
            return self._of_patches(x, weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    def _of_patches(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution as a product of patches that do not overlap: several times as fast."""
        batch, channels, height, width = x.shape
        p, q = self.stride
        rows, columns = height // p, width // q
        x = x[..., : rows * p, : columns * q]
        cut = x.reshape(batch, channels, rows, p, columns, q).permute(0, 2, 4, 1, 3, 5)
        products = F.linear(cut.flatten(3).flatten(1, 2), weight.flatten(1), self.bias)
        return products.transpose(1, 2).reshape(batch, -1, rows, columns)

    def _latent(self) -> tuple[WeightQuantizer, Tensor]:
        return self.weight_quantizer, self.weight
