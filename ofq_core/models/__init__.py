"""Full-precision models through timm, and their conversion to quantized ones."""

from ofq_core.models.build import build_model, is_distilled
from ofq_core.models.convert import ConversionReport, QuantPlan, convert
from ofq_core.models.geometry import image_shape, token_count

__all__ = [
    "ConversionReport",
    "QuantPlan",
    "build_model",
    "convert",
    "image_shape",
    "is_distilled",
    "token_count",
]
