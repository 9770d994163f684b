"""What the released code's "pretrained" initialisation really keeps (spec 3.5, measured).

Its attention wrappers build a fresh attention and wrap *its* layers instead of the pretrained ones.
So the student starts with random attention projections, without QKR also with random q, k and v,
in Swin with a random relative position bias, and with a bias in each reduction that the source
does not have.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


def lose_released_tensors(model: nn.Module, qkr: bool, seed: int) -> None:
    """Replace, in a full-precision timm model, what the released conversion does not carry over.

    Args:
        qkr: with QKR q, k and v weights and the v bias are kept.
        seed: of the fresh values: U(-1/sqrt(in), 1/sqrt(in)) for linears, truncated normal with
            standard deviation 0.02 for the relative position bias.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        part: Any = module
        if isinstance(getattr(module, "qkv", None), nn.Linear):
            _fresh_linear(part.proj, generator)
            if not qkr:
                _fresh_linear(part.qkv, generator)
            if hasattr(module, "relative_position_bias_table"):
                nn.init.trunc_normal_(
                    part.relative_position_bias_table, std=0.02, generator=generator
                )
        elif isinstance(getattr(module, "reduction", None), nn.Linear):
            reduction = part.reduction
            reduction.bias = nn.Parameter(reduction.weight.new_empty(reduction.out_features))
            _uniform(reduction.bias, reduction.in_features, generator)


def _fresh_linear(linear: nn.Linear, generator: torch.Generator) -> None:
    _uniform(linear.weight, linear.in_features, generator)
    if linear.bias is not None:
        _uniform(linear.bias, linear.in_features, generator)


def _uniform(parameter: torch.Tensor, fan_in: int, generator: torch.Generator) -> None:
    bound = 1.0 / math.sqrt(fan_in)
    nn.init.uniform_(parameter, -bound, bound, generator=generator)
