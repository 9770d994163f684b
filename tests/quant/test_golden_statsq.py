"""StatsQ, CGA's mask and the QKR product against numbers of the released code."""

import pytest
import torch

from ofq_core.methods.statsq import StatsQWeight
from ofq_core.quant import (
    free_mask,
    observed_code_range,
    qkr_product,
    statsq,
    statsq_codes,
    statsq_position,
    statsq_scale,
)


@pytest.mark.golden("statsq_2d")
def test_matrix(group, case, close, exact):
    weight = torch.tensor(group["input"], requires_grad=True)
    upstream = torch.tensor(group["upstream"])
    if case["bits"] == 1:
        # Released 1-bit codes run from -2 to 0: three levels where one bit has -1 and 0.
        assert {code for row in case["codes"] for code in row} == {-2, -1, 0}
        with pytest.raises(ValueError, match="1: StatsQ takes an integer from 2 to 8"):
            statsq(weight, 1)
        return
    output = statsq(weight, case["bits"])
    output.backward(upstream)
    close(statsq_scale(weight).flatten(), case["scale"], "scale")
    exact(statsq_codes(weight, case["bits"]), case["codes"])
    close(output, case["output"], "output")
    assert case["grad_input"] == group["upstream"]
    assert torch.equal(weight.grad, upstream)


@pytest.mark.golden("statsq_ties")
def test_ties_and_clipping(group, case, close, exact):
    weight = torch.tensor(group["input"])
    if case["bits"] == 1:
        # W = -2 s: the tie -1.5 goes to -2, outside {-1, 0}; its value is -1.5 s.
        assert case["codes"][1][5] == -2
        assert case["output"][1][5] == -1.5 * group["scale"][1]
        return
    close(statsq_scale(weight).flatten(), group["scale"], "scale")
    exact(statsq_codes(weight, case["bits"]), case["codes"])
    close(statsq(weight, case["bits"]), case["output"], "output")


def test_three_axes(golden, close):
    """The released 3-D variant (scale per index of axis 1) is ours with that axis moved first."""
    group = golden["statsq_3d"]
    weight = torch.tensor(group["input"]).movedim(1, 0)
    rows = weight.flatten(1)
    close(statsq_scale(rows).flatten(), group["scale"], "scale")
    close(statsq(rows, group["bits"]).view_as(weight).movedim(0, 1), group["output"], "output")


def test_four_axes(golden, close):
    """The released 4-D variant: scale per index of axis 2."""
    group = golden["statsq_4d"]
    weight = torch.tensor(group["input"]).movedim(2, 0)
    rows = weight.flatten(1)
    close(statsq_scale(rows).flatten(), group["scale"], "scale")
    close(statsq(rows, group["bits"]).view_as(weight).movedim(0, 2), group["output"], "output")


@pytest.mark.golden("statsq_cga_variant_is_noop")
def test_cga_on_the_product(group, case):
    """The released CGA quantizer of W_qk does nothing: same output, no mask on the gradient.

    Ours has the same output, but means it: in training the gradient is masked. In evaluation it
    is not.
    """
    assert case["output_equals_statsq"]
    assert case["grad_equals_upstream"]
    generator = torch.Generator().manual_seed(0)
    values, upstream = torch.randn(2, 64, 32, generator=generator)  # enough for a narrow band
    quantizer = StatsQWeight(values, case["bits"])
    quantizer.gradient_band = case["boundary_range"]
    free = quantizer.free(values, case["boundary_range"])
    assert 0 < int(free.sum()) < free.numel()
    for training, expected in ((True, upstream * free), (False, upstream)):
        weight = values.clone().requires_grad_()
        output = quantizer.train(training)(weight)
        output.backward(upstream)
        assert torch.equal(output, statsq(values, case["bits"]))
        assert torch.equal(weight.grad, expected)


@pytest.mark.golden("cga_freeze_mask")
def test_freeze_mask(group, case, close, exact):
    """The released mask; it counts only thresholds between codes that occur in the tensor."""
    weight = torch.tensor(case["input"])
    bits, band = case["bits"], case["boundary_range"]
    close(statsq_scale(weight).flatten(), case["scale"], "scale")
    position = statsq_position(weight, bits)
    close(position, case["pre_round"], "position")
    codes = statsq_codes(weight, bits)
    if "codes" in case:
        exact(codes, case["codes"])
    free = free_mask(position, band, *observed_code_range(codes))
    exact(~free, case["freeze_mask"])
    assert int(free.sum()) == case["free_count"]

    quantizer = StatsQWeight(weight, bits)
    quantizer.observed_range = True
    exact(~quantizer.free(weight, band), case["freeze_mask"])


def test_theoretical_code_range_frees_what_the_observed_one_freezes(golden, exact):
    """No weight has the top code, so the released code forgets the threshold below it."""
    case = golden["cga_freeze_mask"]["cases"][-1]
    weight = torch.tensor(case["input"])
    free = StatsQWeight(weight, case["bits"]).free(weight, case["boundary_range"])
    # u = 0.46 is 0.04 steps from the threshold 0.5; u = 0.35 is 0.15 away.
    exact(free, [[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.mark.golden("qkr_product")
def test_qkr_product(group, case, close):
    w_q = torch.tensor(group["wq"], requires_grad=True)
    w_k = torch.tensor(group["wk"], requires_grad=True)
    product = qkr_product(w_q, w_k, group["heads"])
    close(product, group["product"], "product")
    close(statsq_scale(product).flatten(), case["scale"], "scale")
    output = statsq(product, case["bits"])
    output.backward(torch.tensor(group["upstream"]))
    close(output, case["output"], "output")
    close(w_q.grad, case["grad_wq"], "grad_wq")
    close(w_k.grad, case["grad_wk"], "grad_wk")
