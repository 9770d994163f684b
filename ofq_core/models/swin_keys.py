"""Names of Swin's tensors in torchvision's layout, which the released code uses, and in timm's.

features.0.0, features.0.2           patch_embed.proj, patch_embed.norm
features.(2 s + 1).b                 layers.s.blocks.b
features.(2 s).{norm, reduction}     layers.s.downsample.{norm, reduction}      s = 1, 2, 3
mlp.0, mlp.3 (torchvision only)      mlp.fc1, mlp.fc2
head                                 head.fc
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

Rules = tuple[tuple[str, Callable[[re.Match[str]], str]], ...]
_TO_TIMM: Rules = (
    (r"features\.0\.0\.", lambda m: "patch_embed.proj."),
    (r"features\.0\.2\.", lambda m: "patch_embed.norm."),
    (r"features\.(\d*[13579])\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}."),
    (r"features\.(\d*[02468])\.", lambda m: f"layers.{int(m[1]) // 2}.downsample."),
    (r"head\.", lambda m: "head.fc."),
)
_FROM_TIMM: Rules = (
    (r"patch_embed\.proj\.", lambda m: "features.0.0."),
    (r"patch_embed\.norm\.", lambda m: "features.0.2."),
    (r"layers\.(\d+)\.blocks\.(\d+)\.", lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}."),
    (r"layers\.(\d+)\.downsample\.", lambda m: f"features.{2 * int(m[1])}."),
    (r"head\.fc\.", lambda m: "head."),
)
_MLP = {".mlp.0.": ".mlp.fc1.", ".mlp.3.": ".mlp.fc2."}


def timm_name(name: str) -> str:
    """timm's name for a tensor in torchvision's layout; names outside the table stay."""
    for theirs, ours in _MLP.items():
        name = name.replace(theirs, ours)
    return _renamed(name, _TO_TIMM)


def torchvision_name(name: str) -> str:
    """Inverse of `timm_name`, with the released code's names of the MLP (fc1, fc2)."""
    return _renamed(name, _FROM_TIMM)


def _renamed(name: str, rules: Rules) -> str:
    for pattern, prefix in rules:
        match = re.match(pattern, name)
        if match:
            return prefix(match) + name[match.end() :]
    return name


def swin_from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's state dict under timm's names; timm computes the relative index itself."""
    return {
        timm_name(name): value
        for name, value in state.items()
        if not name.endswith("relative_position_index")
    }
