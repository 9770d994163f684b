"""Quantized layers: thin modules round the functions of `ofq_core.quant`."""

from ofq_core.nn.activation import Calibrated, LSQActivation, calibrate, require_calibrated
from ofq_core.nn.attention import AttentionPlan, QKRAttention, QuantAttention
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
    "QuantAttention",
    "QuantConv2d",
    "QuantLinear",
    "StatsQWeight",
    "WeightQuantizer",
    "calibrate",
    "require_calibrated",
]
