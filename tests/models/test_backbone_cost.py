"""Costs of the paper's backbones: by hand, and equal to what the tables keep of them."""

import json
from pathlib import Path

import pytest
import yaml

from ofq_core.backbone_cost import backbone_costs
from ofq_core.cost import model_cost
from ofq_core.models import QuantPlan, build_model, convert
from ofq_core.settings import FidelitySettings, ModelSettings, QuantSettings

TABLES = Path(__file__).parents[2] / "tables"
KEPT = TABLES / "backbones.json"
RUNS = sorted(TABLES.glob("reference/*/results/*-s0"))


@pytest.fixture(scope="module")
def costs():
    return backbone_costs()


def test_what_is_kept_is_what_is_computed(costs):
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    assert kept == costs, "python -m ofq_core.backbone_cost > tables/backbones.json"


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.parents[1].name}-{run.name}")
def test_committed_runs_say_what_is_computed(run):
    """They depend on sizes and bits alone: another way to count may not leave old counts there."""
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    model = build_model(ModelSettings(**settings["model"]), 0)
    if not run.name.startswith("fp-"):
        known = ("weight", "wbits", "abits", "edge_bits", "qkr")
        quant = QuantSettings(cga=False, **{key: settings["quant"][key] for key in known})
        convert(model, QuantPlan.from_settings(quant, FidelitySettings(**settings["fidelity"])))
    kept = json.loads((run / "metrics.json").read_text())["cost"]
    cost = model_cost(model).as_dict()
    assert {key: kept[key] for key in cost} == cost


def test_bit_operations_of_deit_small_by_hand(costs):
    tokens, dim, heads, bits = 198, 384, 6, 3
    edges = (196 * dim * 3 * 16 * 16 + 2 * dim * 1000) * 8 * 8
    block = 12 * tokens * dim * dim + 2 * tokens * tokens * dim
    # The second bias of the queries against the keys; with QKR that of x' against z.
    second = tokens * dim * 32 * bits
    assert costs["deit_small"]["plain"]["w3a3"]["bit_operations"] == edges + 12 * (
        block * bits**2 + second
    )
    with_qkr = (10 + heads) * tokens * dim * dim + (1 + heads) * tokens * tokens * dim
    bias = tokens * heads * dim * 32 * bits
    assert costs["deit_small"]["qkr"]["w3a3"]["bit_operations"] == edges + 12 * (
        with_qkr * bits**2 + bias + heads * second
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
