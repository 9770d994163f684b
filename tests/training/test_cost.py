"""Multiply-accumulates and packed bytes, by hand and against a count of what is executed."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ofq_core.cost import block_cost, model_cost, packed_bytes
from ofq_core.models import QuantPlan, build_model, convert

# 196 patches, a class and a distillation token; heads of 64 channels.
DEIT = {"tiny": (198, 192, 3, 768), "small": (198, 384, 6, 1536)}


@pytest.mark.parametrize(("size", "macs", "weights"), [("small", 1.50, 1.33), ("tiny", 1.22, 1.08)])
def test_what_qkr_costs_a_block_of_deit(size, macs, weights):
    plain, qkr = (block_cost(*DEIT[size], qkr=qkr) for qkr in (False, True))
    assert round(qkr.macs / plain.macs, 2) == macs
    assert round(qkr.weights / plain.weights, 2) == weights


@pytest.mark.parametrize(("size", "plain", "qkr"), [("tiny", 22, 44), ("small", 73, 266)])
def test_millions_of_macs_of_the_logits(size, plain, qkr):
    """Projections of queries and keys and their product, as the specification counts them."""
    tokens, dim, heads, hidden = DEIT[size]
    values = tokens * dim * dim + tokens * tokens * dim
    rest = values + tokens * dim * dim + 2 * tokens * dim * hidden  # values, proj, MLP
    for with_qkr, expected in ((False, plain), (True, qkr)):
        cost = block_cost(tokens, dim, heads, hidden, with_qkr)
        assert round((cost.macs - rest) / 1e6) == expected


def test_weights_of_a_block_by_hand():
    """DeiT-S: 4 C^2 + 8 C^2, and with QKR H C^2 instead of 2 C^2 for queries and keys."""
    assert block_cost(*DEIT["small"], qkr=False).weights == 12 * 384**2
    assert block_cost(*DEIT["small"], qkr=True).weights == 16 * 384**2


@pytest.fixture
def converted(micro):
    def build(method, bits=2, **fidelity):
        settings = micro(method, bits, fidelity=fidelity)
        model = build_model(settings.model, 0)
        if method != "fp":
            convert(model, QuantPlan.from_settings(settings.quant, settings.fidelity))
        return model

    return build


# Micro model: C = 16, N = 18, H = 2, hidden 32, 10 classes, patches of 2 x 2 x 1.
LOW_BIT = 3 * 256 + 256 + 512 + 512  # qkv, proj, fc1, fc2; QKR has as many: 2 * 256 + 256 + ...
EDGE = 16 * 4 + 10 * 16 + 10 * 16  # patch embedding and two heads, one byte each
SHARED = (
    *(16, 16, 16, 18 * 16),  # bias of the patch embedding, two tokens, position embedding
    *(3 * 32, 16, 32, 16, 20),  # three norms; biases of proj, fc1, fc2, heads
    *(16, 10, 10),  # LSQ row scales of patch embedding and heads
)
# Activations. One scale per token, channel or tensor, and a bias before and after; none after
# keys (the softmax cannot see it), none at all round the map.
ACTIVATIONS = (
    *(1 + 2 * 64, 2 * (1 + 2 * 16)),  # patch embedding (8 x 8 pixels), heads
    *(16 + 2 * 16, 18),  # v, attention map
    *(18 + 2 * 16, 18 + 2 * 16, 18 + 2 * 32),  # inputs of proj, fc1, fc2
)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_packed_bytes_of_lsq_by_hand(bits, converted):
    floats = sum(SHARED) + sum(ACTIVATIONS)
    floats += 48  # bias of qkv
    floats += 48 + 16 + 32 + 16  # LSQ row scales of qkv, proj, fc1, fc2
    floats += (18 + 2 * 16) + (18 + 2 * 16) + (18 + 16)  # input of qkv, queries, keys
    expected = LOW_BIT * bits // 8 + EDGE + 4 * floats
    assert packed_bytes(converted("lsq", bits)) == expected
    assert model_cost(converted("lsq", bits)).model_bytes == expected


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("bias", ["fold", "drop"])
def test_packed_bytes_of_ofq_by_hand(bits, bias, converted):
    floats = sum(SHARED) + sum(ACTIVATIONS)
    floats += 16  # bias of v; that of the keys is dropped
    floats += 2 * 16 if bias == "fold" else 0  # W_k^T b_q, one vector per head
    floats += 2 * 16 + 16 + 16 + 32 + 16  # StatsQ row scales of W_qk, v, proj, fc1, fc2
    floats += (18 + 2 * 16) + (2 * 18 + 2 * 16)  # input; z, one scale per token and head
    expected = LOW_BIT * bits // 8 + EDGE + 4 * floats
    assert packed_bytes(converted("ofq", bits, qk_bias=bias)) == expected


def test_full_precision_takes_four_bytes_a_parameter(converted):
    model = converted("fp")
    assert packed_bytes(model) == 4 * sum(p.numel() for p in model.parameters())


# Entries of the weights of proj, fc1, fc2 and both heads.
FOLDED = 16 * 16 + 2 * 16 * 32 + 2 * 16 * 10


def executed(model):
    """Multiply-accumulates that torch counts in one forward of one image."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, 1, 8, 8))
    return counter.get_total_flops() // 2


def test_macs_are_those_that_are_executed(converted):
    full = converted("fp")
    full.blocks[0].attn.fused_attn = False  # the counter does not see inside the fused kernel
    assert model_cost(full).macs == executed(full)
    # Activation scales are not calibrated: the values are NaN, the products are the same. Second
    # biases times weights (qkv, the others) are folded once per forward, and once for all when
    # deployed.
    folded = 16 * 48 + FOLDED
    assert model_cost(converted("lsq")).macs == executed(converted("lsq")) - folded


def test_macs_of_qkr_are_those_executed_without_making_the_product(converted):
    """A deployed model stores W_qk; training computes it, C^2 d H multiply-accumulates."""
    plain = model_cost(converted("statsq"))
    for bias, folding in (("drop", 0), ("fold", 16 * 16)):  # W_k^T b_q is stored as well
        model = converted("ofq", qk_bias=bias)
        cost = model_cost(model)
        assert cost.macs == executed(model) - 16 * 16 * 8 * 2 - folding - FOLDED
        assert cost.qkr_extra_macs == cost.macs - plain.macs
        assert cost.qkr_extra_weights == 0, "two heads: 2 C^2 either way"
    # Logits sum over 16 channels instead of 8, and the bias is one product per token and head.
    assert cost.qkr_extra_macs == 18 * 18 * 16 + 18 * 16 * 2


def test_cost_counts_every_block(micro):
    """Depth 3 of the embedded default."""
    one, three = (build_model(micro("fp", model={"depth": d}).model, 0) for d in (1, 3))
    block = block_cost(18, 16, 2, 32, qkr=False)
    assert model_cost(three).macs - model_cost(one).macs == 2 * block.macs
    assert model_cost(one).qkr_extra_macs == 0


def test_bit_operations_by_hand(converted):
    """C = 16, N = 18, H = 2, hidden 32, 16 patches; 3 bits, 8 at the edges, 32 without."""
    edges = 16 * 16 * 4 + 2 * 16 * 10
    attention = 2 * 18 * 18 * 16
    block = 18 * (4 * 256 + 2 * 512) + attention
    assert model_cost(converted("fp")).bit_operations == 1024 * (edges + block)
    # The second bias of the queries meets the keys of every token.
    second = 18 * 16
    lsq = 64 * edges + 9 * block + 32 * 3 * second
    assert model_cost(converted("lsq", 3)).bit_operations == lsq
    # Logits over all channels for each head; the folded bias is not quantized, its input is. The
    # second bias of the input meets z, in every head.
    qkr, bias = 18 * 18 * 16, 18 * 2 * 16
    assert model_cost(converted("ofq", 3)).bit_operations == (
        64 * edges + 9 * (block + qkr) + 32 * 3 * (bias + 2 * second)
    )
    assert model_cost(converted("ofq", 3, qk_bias="drop")).bit_operations == (
        64 * edges + 9 * (block + qkr) + 32 * 3 * 2 * second
    )


def test_weights_and_activations_have_bits_of_their_own(micro):
    settings = micro("lsq", 2, quant={"abits": 4})
    model = build_model(settings.model, 0)
    convert(model, QuantPlan.from_settings(settings.quant, settings.fidelity))
    edges = 16 * 16 * 4 + 2 * 16 * 10
    layers, attention = 18 * (4 * 256 + 2 * 512), 2 * 18 * 18 * 16
    assert model_cost(model).bit_operations == (
        64 * edges + 8 * layers + 16 * attention + 32 * 4 * 18 * 16
    )
