"""The query-key reparameterisation: its gradients, and the biases that softmax does not see."""

import pytest
import torch

from ofq_core.nn import calibrate
from ofq_core.quant import statsq


@pytest.mark.claim(
    "QKR's gradient does not pass through quantized partners: dL/dW_q[h] = W_k[h] U[h]^T and "
    "dL/dW_k[h] = W_q[h] U[h] with the latent weights, U the gradient of the quantized product.",
    released="The same.",
)
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("model", ["deit", "swin"])
def test_gradients_use_latent_partners(model, bits, source, converted, run_settings, images):
    """Against the formula in FP64; with a quantized partner the gradient would be far off."""
    student = source(model)
    fidelity = {"qk_bias": "drop"}  # a folded bias would add its own term to dL/dW_k
    converted(student, run_settings(model, bits=bits, fidelity=fidelity))
    calibrate(student, images())
    student.double().train()
    attention = next(m for m in student.modules() if hasattr(m, "qk_quantizer"))
    kept = []

    def keep(module, arguments, output):
        output.retain_grad()
        kept.append(output)

    attention.qk_quantizer.register_forward_hook(keep)
    outputs = student(images(dtype=torch.float64))
    sum(
        out.square().sum() for out in (outputs if isinstance(outputs, tuple) else [outputs])
    ).backward()
    heads, width = attention.num_heads, attention.q_weight.shape[1]
    upstream = kept[0].grad.view(heads, width, width)
    queries, keys = (
        weight.detach().view(heads, -1, width)
        for weight in (attention.q_weight, attention.k_weight)
    )
    expected_q = (keys @ upstream.transpose(1, 2)).flatten(0, 1)
    expected_k = (queries @ upstream).flatten(0, 1)
    torch.testing.assert_close(attention.q_weight.grad, expected_q, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(attention.k_weight.grad, expected_k, rtol=1e-9, atol=1e-12)
    quantized = statsq(keys.flatten(0, 1), bits).view_as(keys)
    wrong = (quantized @ upstream.transpose(1, 2)).flatten(0, 1)
    assert (wrong - expected_q).norm() > 0.05 * expected_q.norm()


@pytest.mark.claim(
    "Dropping the key bias is exact, and the query bias is kept, folded into the key side: before "
    "quantization QKR computes the same function as the model that it is made from.",
    released="Both biases are dropped, so the function is another one.",
)
@pytest.mark.parametrize("model", ["deit", "swin"])
def test_qkr_is_the_same_function(model, source, converted, run_settings, images):
    """At 32 bits in FP64: equal to 1e-12 with the bias folded, not with it dropped."""
    x = images(dtype=torch.float64)
    expected = source(model).double().eval()(x)
    far = {}
    for bias in ("fold", "drop"):
        student = source(model)
        converted(student, run_settings(model, bits=32, edge_bits=32, fidelity={"qk_bias": bias}))
        far[bias] = float((student.double().eval()(x) - expected).abs().max().detach())
    assert far["fold"] < 1e-12
    assert far["drop"] > 1e-3


@pytest.mark.claim(
    "The second biases of k and of the query-key product cannot act, so leaving them out is exact: "
    "whatever their value, the output is the same, and their gradient is float noise.",
    released="Present and trained: dead parameters.",
)
@pytest.mark.parametrize("qkr", [False, True], ids=["k", "z"])
@pytest.mark.parametrize("model", ["deit", "swin"])
def test_dead_biases(model, qkr, source, converted, run_settings, images):
    """In FP64, with random values; the first biases beside them do act."""
    x = images(dtype=torch.float64)
    student = source(model)
    converted(student, run_settings(model, qkr=qkr, fidelity={"dead_biases": True}))
    calibrate(student, images())
    student.double().eval()
    name = "quant_z" if qkr else "quant_k"
    quantizers = [m for n, m in student.named_modules() if n.endswith(name)]
    assert len(quantizers) > 1
    expected = student(x)
    expected.square().sum().backward()
    for quantizer in quantizers:
        assert (
            quantizer.bias_after.grad.abs().max() < 1e-12 * quantizer.bias_before.grad.abs().max()
        )
    with torch.no_grad():
        for quantizer in quantizers:
            quantizer.bias_after.normal_()
        # Unsigned rounding of the attention map leaves room for last-bit differences of softmax.
        assert (student(x) - expected).abs().max() < 1e-10
        quantizers[0].bias_before.normal_()
        assert (student(x) - expected).abs().max() > 1e-3
