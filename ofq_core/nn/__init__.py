"""Quantized layers: thin modules round the functions of `ofq_core.quant`."""

from ofq_core.nn.activation import (
    ActivationRule,
    Calibrated,
    LSQActivation,
    LSQRule,
    TokenLSQ,
    calibrate,
    require_calibrated,
    set_whole_batch,
)
from ofq_core.nn.attention import (
    AttentionPlan,
    QKRAttention,
    QKRWindowAttention,
    QuantAttention,
    QuantWindowAttention,
)
from ofq_core.nn.layers import QuantConv2d, QuantLinear
from ofq_core.nn.weight import (
    FullPrecisionWeight,
    HeldWeights,
    MakeWeightQuantizer,
    WeightQuantizer,
    quantized_once,
)

__all__ = [
    "ActivationRule",
    "AttentionPlan",
    "Calibrated",
    "FullPrecisionWeight",
    "HeldWeights",
    "LSQActivation",
    "LSQRule",
    "MakeWeightQuantizer",
    "QKRAttention",
    "QKRWindowAttention",
    "QuantAttention",
    "QuantConv2d",
    "QuantLinear",
    "QuantWindowAttention",
    "TokenLSQ",
    "WeightQuantizer",
    "calibrate",
    "quantized_once",
    "require_calibrated",
    "set_whole_batch",
]
