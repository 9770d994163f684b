"""Quantized layers: thin modules round the functions of `ofq_core.quant`."""

from ofq_core.nn.activation import (
    Calibrated,
    LSQActivation,
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
    LSQWeight,
    MakeWeightQuantizer,
    StatsQWeight,
    WeightQuantizer,
)

__all__ = [
    "AttentionPlan",
    "Calibrated",
    "FullPrecisionWeight",
    "LSQActivation",
    "LSQWeight",
    "MakeWeightQuantizer",
    "QKRAttention",
    "QKRWindowAttention",
    "QuantAttention",
    "QuantConv2d",
    "QuantLinear",
    "QuantWindowAttention",
    "StatsQWeight",
    "TokenLSQ",
    "WeightQuantizer",
    "calibrate",
    "require_calibrated",
    "set_whole_batch",
]
