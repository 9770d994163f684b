"""LSQ against numbers of the released code: initial scale, output and both gradients."""

import pytest
import torch

from ofq_core.quant import code_range, lsq, lsq_codes, lsq_init_scale

# The axis along which scales differ, for each of the released classes.
AXIS = {
    "lsq_3d_per_token_symmetric": -2,
    "lsq_3d_per_token_unsigned": -2,
    "lsq_2d_rowwise": -2,
    "lsq_4d_softmax": -2,
    "lsq_v_per_channel": -1,
    "lsq_per_tensor_head_input": None,
    "lsq_weight_per_row": 0,
    "lsq_headwise": 1,
    "lsq_image": 1,
    "lsq_image_unsigned": 1,
    "lsq_conv_weight": 0,
    "lsq_scale_floor": -2,
}


def axis_of(group, case):
    """The released weight quantizer can also run with one scale for the whole tensor."""
    if group["key"] == "lsq_weight_per_row" and len(case["scale"]) == 1:
        return None
    return AXIS[group["key"]]


def check_quantizer(group, case, close, qmin, qmax):
    axis = axis_of(group, case)
    x = torch.tensor(group["input"], requires_grad=True)
    scale = torch.tensor(case["scale"], requires_grad=True)
    output = lsq(x, scale, qmin, qmax, axis)
    output.backward(torch.tensor(group["upstream"]))
    close(output, case["output"], "output")
    close(x.grad, case["grad_input"], "grad_input")
    close(scale.grad, case["grad_scale"], "grad_scale")


@pytest.mark.golden(*(key for key in AXIS if key not in ("lsq_conv_weight", "lsq_scale_floor")))
def test_quantizer(group, case, close):
    qmin, qmax = case.get("qmin"), case["qmax"]
    if case["bits"] == 1 and qmin == -1:
        # Released signed 1 bit is sign(x) with a dead input gradient: refused.
        assert {g for batch in case["grad_input"] for row in batch for g in row} == {0.0}
        with pytest.raises(ValueError, match="1: LSQ takes an integer from 2 to 8"):
            code_range(1, signed=True)
        return
    if case["bits"] > 1:  # unsigned 1 bit (0, 1) works, but no setting leads to it
        signed = not case["all_positive"] if "all_positive" in case else bool(case["signed"])
        assert code_range(case["bits"], signed) == (qmin, qmax)
    # Only the image quantizer keeps the factor 2 when it turns out to be unsigned.
    factor = 4.0 if case.get("all_positive") else 2.0
    initial = lsq_init_scale(torch.tensor(group["input"]), axis_of(group, case), qmax, factor)
    close(initial, case.get("init_scale", case["scale"]), "initial scale")
    check_quantizer(group, case, close, qmin, qmax)


@pytest.mark.golden("lsq_conv_weight")
def test_convolution_weight(group, case, close):
    weight = torch.tensor(group["input"])
    close(lsq_init_scale(weight, 0, 127, 2.0), case["scale"], "initial scale")
    check_quantizer(group, case, close, -128, 127)


@pytest.mark.golden("lsq_scale_floor")
def test_scale_floor(group, case, close):
    """Scales -0.2 and 1e-6 act as 1e-5 in the forward; their gradients are those of the floor."""
    assert case["scale"][0] < 0
    assert case["scale"][1] < 1e-5
    check_quantizer(group, case, close, *code_range(2, signed=True))


def test_documented_row(close):
    """Section 12.2 of the specification, to have one case where every number can be followed."""
    x = torch.tensor([[-0.2386, -1.0934, 0.1558, 0.175]], requires_grad=True)
    scale = torch.tensor([0.3])
    output = lsq(x, scale, -2, 1, axis=-2)
    output.backward(torch.tensor([[0.392, 0.0734, -0.0045, -0.0535]]))
    close(output, [[-0.3, -0.6, 0.3, 0.3]])
    # -1.0934 / 0.3 = -3.64 lies below -2: clipped, no gradient.
    close(x.grad, [[0.392, 0.0, -0.0045, -0.0535]])
    assert lsq_codes(x.detach(), scale, -2, 1, axis=-2).tolist() == [[-1, -2, 1, 1]]
