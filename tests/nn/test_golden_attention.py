"""Quantized attention, plain and with QKR, against the released modules: forward and backward.

Swin attention is the same attention on windows: shifting, windows, relative position bias and
shift mask are done here, and bias plus mask go in as an additive mask. That the golden numbers come
out proves the attention core for Swin as well; window code is not part of the package yet.
"""

import pytest
import torch

from ofq_core.nn import AttentionPlan, QKRAttention, QuantAttention

QKR_NAMES = {
    "quant_x_4_qkv.input_quant_fn.s": "input_quantizer.scale",
    "quant_x_4_qkv.move_b4.bias": "input_quantizer.bias_before",
    "quant_x_4_qkv.move_aft.bias": "input_quantizer.bias_after",
    "q.weight": "q_weight",
    "k.weight": "k_weight",
    "quan_a_qkx_fn.s": "quant_z.scale",
    "move_qkx_b4.bias": "quant_z.bias_before",
    "move_qkx_aft.bias": "quant_z.bias_after",
    "quan_a_v_fn.s": "quant_v.scale",
    "move_v_b4.bias": "quant_v.bias_before",
    "move_v_aft.bias": "quant_v.bias_after",
    "quan_a_softmax_fn.s": "quant_map.scale",
    "proj.input_quant_fn.s": "proj.input_quantizer.scale",
    "proj.move_b4.bias": "proj.input_quantizer.bias_before",
    "proj.move_aft.bias": "proj.input_quantizer.bias_after",
}
PLAIN_NAMES = {
    **{key: name for key, name in QKR_NAMES.items() if key.startswith(("proj", "quan_a_softmax"))},
    "qkv.input_quant_fn.s": "qkv.input_quantizer.scale",
    "qkv.move_b4.bias": "qkv.input_quantizer.bias_before",
    "qkv.move_aft.bias": "qkv.input_quantizer.bias_after",
    "quan_a_q_fn.s": "quant_q.scale",
    "quan_a_k_fn.s": "quant_k.scale",
    "quan_a_v_fn.s": "quant_v.scale",
    "move_qkv_b4.bias": ("quant_q.bias_before", "quant_k.bias_before", "quant_v.bias_before"),
    "move_q_aft.bias": "quant_q.bias_after",
    "move_k_aft.bias": "quant_k.bias_after",
    "move_v_aft.bias": "quant_v.bias_after",
}
# A whole forward and backward agrees to rtol 2e-5 in every tensor: nothing is exempted.


def names_of(table):
    return lambda released: table.get(released, released)


@pytest.fixture
def build(timm_attention, make_statsq):
    """Attention in the released layout: no query bias, all biases that have no effect."""

    def attention(cls, bits, tokens):
        plan = AttentionPlan(
            tokens=tokens,
            activation_bits=bits,
            make_weight_quantizer=make_statsq(bits),
            fold_query_bias=False,
            dead_biases=True,
        )
        return cls(timm_attention(8, 2), plan)

    return attention


@pytest.mark.golden("deit_attention_qkr")
def test_deit_qkr(group, case, build, check_module):
    module = build(QKRAttention, case["bits"], tokens=3)
    check_module(module, group, case, names_of(QKR_NAMES))


@pytest.mark.golden("deit_attention_plain")
def test_deit_plain(group, case, build, check_module):
    module = build(QuantAttention, case["bits"], tokens=3)
    check_module(module, group, case, names_of(PLAIN_NAMES))


def to_windows(x, side):
    """(B, H, W, C) to (B * windows, side * side, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(2, 3).reshape(-1, side * side, channels)


def from_windows(windows, side, shape):
    """Inverse of `to_windows`."""
    batch, height, width, channels = shape
    x = windows.reshape(batch, height // side, width // side, side, side, channels)
    return x.transpose(2, 3).reshape(shape)


def relative_bias(table, side):
    """(heads, N, N) from a table with a row per pair of offsets in a window."""
    place = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    offset = place[:, None] - place[None] + side - 1  # query minus key, from 0
    return table[offset[..., 0] * (2 * side - 1) + offset[..., 1]].permute(2, 0, 1)


def shift_mask(size, side, shift):
    """(windows, 1, N, N): -100 between pixels that were no neighbours before the shift."""
    band = torch.zeros(size)
    band[size - side : size - shift], band[size - shift :] = 1, 2
    regions = band[:, None] * 3 + band[None]
    windows = to_windows(regions[None, :, :, None], side)
    return -100.0 * (windows != windows.transpose(1, 2)).float().unsqueeze(1)


def check_swin(build, check_module, cls, names, group, case):
    side, (shift, _) = group["window"][0], case["shift"]
    module = build(cls, case["bits"], tokens=side**2)
    table = torch.nn.Parameter(torch.zeros((2 * side - 1) ** 2, 2))
    holder = torch.nn.ModuleDict({"attention": module})
    holder.register_parameter("relative_position_bias_table", table)

    def run(x):
        mask = relative_bias(table, side)
        if shift:
            mask = mask + shift_mask(x.shape[1], side, shift)
        windows = to_windows(x.roll((-shift, -shift), (1, 2)), side)
        attended = from_windows(module(windows, attn_mask=mask), side, x.shape)
        return attended.roll((shift, shift), (1, 2))

    def our_names(released):
        if released == "relative_position_bias_table":
            return released
        ours = names.get(released, released)
        ours = (ours,) if isinstance(ours, str) else ours
        return tuple(f"attention.{name}" for name in ours)

    check_module(holder, group, case, our_names, run=run)


@pytest.mark.golden("swin_attention_qkr")
def test_swin_qkr(group, case, build, check_module):
    check_swin(build, check_module, QKRAttention, QKR_NAMES, group, case)


@pytest.mark.golden("swin_attention_plain")
def test_swin_plain(group, case, build, check_module):
    check_swin(build, check_module, QuantAttention, PLAIN_NAMES, group, case)


def test_windows_round_trip():
    x = torch.arange(2 * 4 * 4 * 3).float().view(2, 4, 4, 3)
    windows = to_windows(x, 2)
    assert windows.shape == (8, 4, 3)
    assert torch.equal(windows[0], x[0, :2, :2].reshape(4, 3))
    assert torch.equal(from_windows(windows, 2, x.shape), x)
