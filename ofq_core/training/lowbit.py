"""The low-bit weights of a converted model: what CGA freezes and the tracker watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ofq_core.nn import QKRAttention, QuantLinear, WeightQuantizer

# timm's names for what lies between embedding and head: vision transformers and Swin.
_INSIDE = ("blocks.", "layers.")


@dataclass(frozen=True)
class LowBitWeight:
    """One quantized matrix of a block, or of a reduction between Swin's stages.

    parameter: the latent weights, or None for the QKR product, which is computed from two.
    latent: returns the current latent matrix, detached. differentiable: the same with a graph.
    """

    name: str
    quantizer: WeightQuantizer
    parameter: nn.Parameter | None
    latent: Callable[[], Tensor]
    differentiable: Callable[[], Tensor]


def low_bit_weights(model: nn.Module) -> list[LowBitWeight]:
    """Every quantized matrix inside the blocks; embedding and heads are not low-bit."""
    found = []
    for name, module in model.named_modules():
        if not name.startswith(_INSIDE):
            continue
        if isinstance(module, QuantLinear) and module.weight_quantizer.bits != 32:
            weight: Any = module.weight
            found.append(
                LowBitWeight(
                    f"{name}.weight",
                    module.weight_quantizer,
                    weight,
                    weight.detach,
                    _itself(weight),
                )
            )
        if isinstance(module, QKRAttention) and module.qk_quantizer.bits != 32:
            found.append(
                LowBitWeight(
                    f"{name}.qk",
                    module.qk_quantizer,
                    None,
                    _detached(module.product),
                    module.product,
                )
            )
    return found


def _itself(weight: Tensor) -> Callable[[], Tensor]:
    return lambda: weight


def _detached(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def latent() -> Tensor:
        with torch.no_grad():
            return compute()

    return latent
