"""AdamW with the released code's parameter groups (spec 7.1), and gradient clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ofq_core.settings import RecipeSettings

RELATIVE_BIAS = "relative_position_bias_table"


def parameter_groups(
    model: nn.Module, weight_decay: float, relative_bias_decay: bool = False
) -> list[dict[str, Any]]:
    """Two groups: decayed, and not: vectors (biases, norms, scales), tokens, position embedding.

    relative_bias_decay: decay Swin's relative position bias too, as the released code does.
    """
    exempt: set[str] = set()
    if hasattr(model, "no_weight_decay"):
        exempt = set(model.no_weight_decay())  # type: ignore[operator]
    if relative_bias_decay:
        exempt = {name for name in exempt if not name.endswith(RELATIVE_BIAS)}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim <= 1 or name in exempt
        (kept if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module, recipe: RecipeSettings, relative_bias_decay: bool = False
) -> torch.optim.AdamW:
    """AdamW, betas (0.9, 0.999), eps 1e-8, one learning rate for everything.

    With `recipe.clip_grad` every step begins by scaling all gradients down to that norm. CGA has
    set those of frozen weights to zero by then, so they do not count.
    """
    groups = parameter_groups(model, recipe.weight_decay, relative_bias_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
    if recipe.clip_grad is not None:
        largest = recipe.clip_grad
        parameters = [parameter for group in groups for parameter in group["params"]]

        def clip(*step: Any) -> None:
            nn.utils.clip_grad_norm_(parameters, largest)

        optimizer.register_step_pre_hook(clip)
    return optimizer
