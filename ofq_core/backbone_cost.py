"""What the paper's backbones cost at 224 pixels: `python -m ofq_core.backbone_cost`.

The result depends on nothing but the definitions in `ofq_core.cost` and the sizes of the models.
So it is kept as tables/backbones.json, where the tables read it without torch, and a test computes
it anew.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch import nn

from ofq_core.cost import model_cost, places
from ofq_core.models import QuantPlan, build_model, convert
from ofq_core.output import any_output
from ofq_core.settings import FidelitySettings, ModelSettings, QuantSettings
from ofq_core.settings.types import Bits

# The distilled DeiT are what the released code trains: 198 tokens and two heads.
BACKBONES = {
    "deit_tiny": "deit_tiny_distilled_patch16_224",
    "deit_small": "deit_small_distilled_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
}
BITS: tuple[Bits, ...] = (2, 3, 4)


def backbone_costs() -> dict[str, Any]:
    """Per backbone `full_precision`, `plain` and `qkr` by `w2a2` etc., and QKR's ratios.

    block_macs_ratio, block_weights_ratio: of all transformer blocks, with QKR over without;
    stages: the same for the blocks of each width, as they differ in Swin.
    """
    costs: dict[str, Any] = {}
    for backbone, name in BACKBONES.items():
        costs[backbone] = {"model": name, "full_precision": model_cost(_built(name)).as_dict()}
        for form, qkr in (("plain", False), ("qkr", True)):
            costs[backbone][form] = {
                f"w{bits}a{bits}": model_cost(_quantized(name, bits, qkr)).as_dict()
                for bits in BITS
            }
        costs[backbone] |= _ratios(_built(name))
    return costs


def _built(name: str) -> nn.Module:
    """A model whose weights are all zero: a cost depends on shapes, and to draw weights is slow."""
    with torch.device("meta"):
        model = build_model(ModelSettings(name=name, num_classes=1000), 0)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def _quantized(name: str, bits: Bits, qkr: bool) -> nn.Module:
    model = _built(name)
    quant = QuantSettings(weight="statsq", wbits=bits, abits=bits, qkr=qkr, cga=False)
    convert(model, QuantPlan.from_settings(quant, FidelitySettings()))
    return model


def _ratios(model: nn.Module) -> dict[str, Any]:
    """Blocks with QKR over blocks without, all together and by width."""
    of_width: dict[int, list[tuple[int, int, int, int]]] = {}
    for place in places(model):
        plain, qkr = place.cost(qkr=False), place.cost(qkr=True)
        counts = (plain.macs, qkr.macs, plain.weights, qkr.weights)
        of_width.setdefault(place.block.mlp.fc1.in_features, []).append(counts)

    def ratios(blocks: list[tuple[int, int, int, int]]) -> dict[str, float]:
        macs, qkr_macs, weights, qkr_weights = (sum(column) for column in zip(*blocks, strict=True))
        return {
            "block_macs_ratio": round(qkr_macs / macs, 4),
            "block_weights_ratio": round(qkr_weights / weights, 4),
        }

    every = [block for blocks in of_width.values() for block in blocks]
    stages = {str(width): ratios(blocks) for width, blocks in of_width.items()}
    return {**ratios(every), "stages": stages}


if __name__ == "__main__":
    with any_output():
        about = (__doc__ or "").splitlines()[0]
        argparse.ArgumentParser("python -m ofq_core.backbone_cost", description=about).parse_args()
        print(json.dumps(backbone_costs(), indent=2))
