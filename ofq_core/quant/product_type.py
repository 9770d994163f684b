"""The dtype of matrix products inside an autograd function, where autocast must be followed."""

from __future__ import annotations

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """Autocast's dtype on x's device where it is on, else that of x, at least FP32."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.float64 if x.dtype == torch.float64 else torch.float32
