"""The number format of matrix products."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16"]


def matrix_precision(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Context of a forward: bf16 runs matrix products under autocast, fp32 changes nothing.

    Parameters, quantizers, the loss and the optimizer stay in FP32 either way.
    """
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
