"""Full-precision models through timm, and their conversion to quantized ones."""

from ofq_core.models.build import build_model, import_timm, is_distilled
from ofq_core.models.convert import QuantPlan, check_convertible, convert
from ofq_core.models.geometry import image_shape, is_swin, token_count
from ofq_core.models.pretrained import check_pretrained, load_pretrained
from ofq_core.models.report import ConversionReport
from ofq_core.models.swin_padding import pad_before_shift, unlike_released

__all__ = [
    "ConversionReport",
    "QuantPlan",
    "build_model",
    "check_convertible",
    "check_pretrained",
    "convert",
    "image_shape",
    "import_timm",
    "is_distilled",
    "is_swin",
    "load_pretrained",
    "pad_before_shift",
    "token_count",
    "unlike_released",
]
