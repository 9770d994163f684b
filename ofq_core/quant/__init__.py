"""Quantizers as pure functions: StatsQ, LSQ, the QKR product, CGA's mask, oscillation."""

from ofq_core.quant.cga import free_mask, observed_code_range
from ofq_core.quant.lsq import CodeRange, code_range, lsq, lsq_codes, lsq_init_scale, lsq_position
from ofq_core.quant.oscillation import (
    OSCILLATION_THRESHOLD,
    IterativeFreezing,
    OscillationState,
    boundary_distance,
    code_entropy,
    flip_causes,
)
from ofq_core.quant.qkr import folded_query_bias, qkr_product
from ofq_core.quant.statsq import (
    at_least_float32,
    statsq,
    statsq_codes,
    statsq_dequantize,
    statsq_position,
    statsq_quantize,
    statsq_scale,
    straight_through,
)

__all__ = [
    "OSCILLATION_THRESHOLD",
    "CodeRange",
    "IterativeFreezing",
    "OscillationState",
    "at_least_float32",
    "boundary_distance",
    "code_entropy",
    "code_range",
    "flip_causes",
    "folded_query_bias",
    "free_mask",
    "lsq",
    "lsq_codes",
    "lsq_init_scale",
    "lsq_position",
    "observed_code_range",
    "qkr_product",
    "statsq",
    "statsq_codes",
    "statsq_dequantize",
    "statsq_position",
    "statsq_quantize",
    "statsq_scale",
    "straight_through",
]
