"""What Swin costs, against the specification's figures and a count of what is executed."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ofq_core.cost import block_cost, model_cost, packed_bytes
from ofq_core.models import QuantPlan, build_model, convert
from ofq_core.settings import FidelitySettings, ModelSettings, QuantSettings

SWIN = "swin_tiny_patch4_window7_224"
SMALL = {
    "img_size": 28,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (2, 1),
    "heads_per_stage": (1, 2),
    "window_size": 4,
    "mlp_ratio": 2.0,
}


@pytest.mark.parametrize(
    ("stage", "plain", "qkr"), [(0, 73, 131), (1, 65, 218), (2, 61, 391), (3, 60, 738)]
)
def test_logits_of_swin_tiny(stage, plain, qkr):
    """Spec 4.3: millions of multiply-accumulates of a block's query-key part at 224 pixels."""
    dim, heads, side = 96 * 2**stage, 3 * 2**stage, 56 // 2**stage
    positions, windows = side * side, (side // 7) ** 2
    rest = positions * (2 * dim * dim + 2 * dim * 4 * dim) + positions * 49 * dim
    for with_qkr, expected in ((False, plain), (True, qkr)):
        cost = block_cost(49, dim, heads, 4 * dim, with_qkr, windows, positions)
        assert round((cost.macs - rest) / 1e6) == expected


def test_weights_of_the_last_stage():
    """Spec 4.3: 1.2 million entries for q and k become 14.2 million."""
    plain, qkr = (block_cost(49, 768, 24, 3072, q, 1, 49).weights for q in (False, True))
    rest = 2 * 768**2 + 8 * 768**2
    assert (round((plain - rest) / 1e6, 1), round((qkr - rest) / 1e6, 1)) == (1.2, 14.2)


def quantized(qkr, **sizes):
    model = build_model(ModelSettings(name=SWIN, num_classes=5, **sizes), 0)
    quant = QuantSettings(weight="statsq", wbits=2, abits=2, qkr=qkr, cga=False)
    convert(model, QuantPlan.from_settings(quant, FidelitySettings()))
    return model


def test_macs_are_those_that_run():
    """Padding included: 14 x 14 tokens in windows of 4 run as 16 x 16."""
    model = build_model(ModelSettings(name=SWIN, num_classes=5, **SMALL), 0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 28, 28))
    assert model_cost(model).macs == counter.get_total_flops() // 2
    assert model_cost(quantized(False, **SMALL)).macs == counter.get_total_flops() // 2


def test_what_qkr_adds():
    sizes = {**SMALL, "heads_per_stage": (4, 4)}
    plain, qkr = (model_cost(quantized(q, **sizes)) for q in (False, True))
    assert plain.qkr_extra_macs == plain.qkr_extra_weights == 0
    assert qkr.macs - plain.macs == qkr.qkr_extra_macs > 0
    # Four heads: 4 C^2 instead of 2 C^2 entries in two blocks of width 8 and one of 16.
    assert qkr.qkr_extra_weights == 2 * (2 * 8 * 8) + 2 * 16 * 16


def test_packed_bytes_of_swin_tiny():
    """Every parameter is counted once: low-bit weights packed, the rest as FP32."""
    model = quantized(False)
    low = [n for n, _ in model.named_parameters() if n.startswith("layers") and is_matrix(n)]
    edges = ["patch_embed.proj.weight", "head.fc.weight"]
    sizes = {n: p.shape for n, p in model.named_parameters()}
    expected = sum(p.numel() * 4 for n, p in model.named_parameters() if n not in [*low, *edges])
    expected += sum(sizes[n].numel() * 2 // 8 + sizes[n][0] * 4 for n in low)
    expected += sum(sizes[n].numel() for n in edges)
    assert len(low) == 12 * 4 + 3
    assert packed_bytes(model) == expected


def is_matrix(name):
    return name.endswith(
        ("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight", "reduction.weight")
    )
