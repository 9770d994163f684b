"""The three backbones of the paper, and whether a run's model is one of them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

IMAGENET = ("imagenet", "imagenet1k")
_IMG_SIZE = 224


@dataclass(frozen=True)
class Backbone:
    """A model of the paper: its key in published.yaml, timm's names, and its own sizes."""

    key: str
    label: str
    names: tuple[str, ...]
    sizes: Mapping[str, Any]


def _deit(size: str, label: str, width: int, heads: int) -> Backbone:
    name = f"deit_{size}"
    names = (name, f"{name}_patch16_224", f"{name}_distilled_patch16_224")
    sizes = {"patch_size": 16, "in_chans": 3, "embed_dim": width, "depth": 12, "num_heads": heads}
    return Backbone(name, label, names, {**sizes, "mlp_ratio": 4})


BACKBONES = {
    "deit_tiny": _deit("tiny", "DeiT-T", 192, 3),
    "deit_small": _deit("small", "DeiT-S", 384, 6),
    "swin_tiny": Backbone(
        "swin_tiny",
        "Swin-T",
        ("swin_tiny", "swin_tiny_patch4_window7_224"),
        {
            "patch_size": 4,
            "in_chans": 3,
            "embed_dim": 96,
            "depths": [2, 2, 6, 2],
            "heads_per_stage": [3, 6, 12, 24],
            "window_size": 7,
            "mlp_ratio": 4,
        },
    ),
}


def backbone_of(settings: Mapping[str, Any]) -> Backbone | None:
    """The backbone whose blocks the model has, at whatever image size; None if it has others.

    A size that is not set is timm's own.
    """
    name = str(settings.get("model.name")).split(".")[0]
    for backbone in BACKBONES.values():
        if name in backbone.names and all(
            settings.get(f"model.{key}") in (None, own) for key, own in backbone.sizes.items()
        ):
            return backbone
    return None


def comparable(settings: Mapping[str, Any], data: Collection[str] = IMAGENET) -> Backbone | None:
    """The backbone whose published accuracies the run may be held against, if there is one.

    It needs the model at its published image size and the whole data set.
    """
    whole = settings.get("data.subset") is None and settings.get("data.name") in data
    at_size = settings.get("model.img_size") in (None, _IMG_SIZE)
    return backbone_of(settings) if whole and at_size else None


def is_distilled(settings: Mapping[str, Any]) -> bool:
    """Whether it is a DeiT with a distillation token, whose published figures are other ones."""
    return "distilled" in str(settings.get("model.name"))
