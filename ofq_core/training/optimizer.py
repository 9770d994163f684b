"""AdamW with the released code's parameter groups (spec 7.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ofq_core.settings import RecipeSettings


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: decayed, and not: vectors (biases, norms, scales), tokens, position embedding."""
    exempt: set[str] = set()
    if hasattr(model, "no_weight_decay"):
        exempt = set(model.no_weight_decay())  # type: ignore[operator]
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim <= 1 or name in exempt
        (kept if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, recipe: RecipeSettings) -> torch.optim.AdamW:
    """AdamW, betas (0.9, 0.999), eps 1e-8, one learning rate for everything."""
    groups = parameter_groups(model, recipe.weight_decay)
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
