"""Costs of the paper's backbones: by hand, and equal to what the tables keep of them."""

import json
from pathlib import Path

import pytest

from ofq_core.backbone_cost import backbone_costs

KEPT = Path(__file__).parents[2] / "tables" / "backbones.json"


@pytest.fixture(scope="module")
def costs():
    return backbone_costs()


def test_what_is_kept_is_what_is_computed(costs):
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    assert kept == costs, "python -m ofq_core.backbone_cost > tables/backbones.json"


def test_bit_operations_of_deit_small_by_hand(costs):
    tokens, dim, heads, bits = 198, 384, 6, 3
    edges = (196 * dim * 3 * 16 * 16 + 2 * dim * 1000) * 8 * 8
    block = 12 * tokens * dim * dim + 2 * tokens * tokens * dim
    assert costs["deit_small"]["plain"]["w3a3"]["bit_operations"] == edges + 12 * block * bits**2
    with_qkr = (10 + heads) * tokens * dim * dim + (1 + heads) * tokens * tokens * dim
    bias = tokens * heads * dim * 32 * bits
    assert costs["deit_small"]["qkr"]["w3a3"]["bit_operations"] == edges + 12 * (
        with_qkr * bits**2 + bias
    )


def test_full_precision_is_32_by_32(costs):
    for cost in costs.values():
        full = cost["full_precision"]
        assert full["bit_operations"] == 1024 * full["macs"]


@pytest.mark.parametrize(
    ("model", "macs", "weights"), [("deit_small", 1.50, 1.33), ("deit_tiny", 1.22, 1.08)]
)
def test_what_qkr_costs_a_block(costs, model, macs, weights):
    cost = costs[model]
    found = cost["block_macs_ratio"], cost["block_weights_ratio"]
    assert tuple(round(ratio, 2) for ratio in found) == (macs, weights)


def test_swin_pays_most_where_it_has_most_heads(costs):
    """Spec 4.3: the last stage, C = 768 and 24 heads, 4 C^2 + 8 C^2 becomes 26 C^2 + 8 C^2."""
    stages = costs["swin_tiny"]["stages"]
    assert stages["768"]["block_weights_ratio"] == round(34 / 12, 4)
    ratios = [stage["block_macs_ratio"] for stage in stages.values()]
    assert ratios == sorted(ratios)
