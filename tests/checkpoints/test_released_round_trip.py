"""Released layout, in and out: nothing is lost, nothing is invented, outputs stay the same."""

import numpy as np
import pytest
import torch

from ofq_core.checkpoints import export_released, load_released, read_released, save_released
from ofq_core.settings import BUNDLES


def assert_same(state, expected):
    assert set(state) == set(expected)
    for key, value in expected.items():
        assert state[key].dtype == value.dtype, key
        assert torch.equal(state[key], value), key


def test_golden_files_come_back_bit_for_bit(golden_model):
    loaded = load_released(golden_model)
    assert_same(export_released(loaded.model), read_released(golden_model).state)


def test_golden_logits_are_reproduced(golden_model, in_fp64):
    """Loading never creates a scale again: the outputs are those measured in the released code.

    The report tells what this machine computes in FP32, where a code may differ.
    """
    loaded = load_released(golden_model)
    arrays = read_released(golden_model).arrays
    with torch.no_grad():
        logits = loaded.model(arrays["input"])
        exact = in_fp64(loaded.model)(arrays["input"].double())
    assert loaded.report.reproduced == float((logits - arrays["eval_logits"]).abs().max())
    expected = arrays["eval_logits"].double()
    torch.testing.assert_close(exact, expected, rtol=2e-5, atol=2e-6)


def test_golden_outputs_follow_their_clipping_constants(golden_model, write):
    """The constants in these files are not 2, and it matters: with 2 the logits are others."""
    file = read_released(golden_model)
    assert load_released(golden_model).report.clips.keys() == {
        key for key in file.state if key.endswith("clip_val")
    }
    state = {
        key: torch.full_like(value, 2.0) if key.endswith("clip_val") else value
        for key, value in file.state.items()
    }
    bits = {"wq_bitw": file.facts["wbits"], "aq_bitw": file.facts["abits"]}
    plain = load_released(write(state, num_heads=file.facts["num_heads"], **bits))
    assert plain.report.clips == {}
    with torch.no_grad():
        logits = plain.model(file.arrays["input"])
    assert (logits - file.arrays["eval_logits"]).abs().max() > 1e-3
    assert not [key for key in plain.model.state_dict() if key.endswith("clip")]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("qkr", [True, False])
@pytest.mark.parametrize("kind", ["deit", "deit_one_head", "swin"])
def test_own_models(kind, qkr, bits, converted, write, images):
    """Export, write, read, build from the file alone: the same tensors and the same outputs."""
    model = converted(kind, qkr=qkr, wbits=bits, abits=bits)
    state = export_released(model)
    path = write(state, wq_bitw=bits, aq_bitw=bits, num_heads=3)
    loaded = load_released(path)
    assert_same(export_released(loaded.model), state)
    assert_same(loaded.model.state_dict(), model.state_dict())
    with torch.no_grad():
        outputs = model(images(kind))
        assert torch.equal(loaded.model(images(kind)), outputs)
    assert not torch.allclose(outputs[0], outputs[1]), "the model sees its images"
    quant = loaded.facts.quant
    assert (quant.wbits, quant.abits, quant.qkr, quant.edge_bits) == (bits, bits, qkr, 8)


def test_weights_and_activations_of_different_bits(converted, write, images):
    model = converted(wbits=2, abits=4)
    loaded = load_released(write(export_released(model), wq_bitw=2, aq_bitw=4))
    with torch.no_grad():
        assert torch.equal(loaded.model(images()), model(images()))


def test_loaded_model_is_in_evaluation_mode(written):
    assert not load_released(written()).model.training


def test_a_forward_changes_no_scale(written, images):
    """The released code makes its scales anew in the first forward of a loaded model; ours stay."""
    loaded = load_released(written())
    loaded.model.train()(images())
    loaded.model.eval()(10 * images())
    assert_same(export_released(loaded.model), loaded.file.state)


def test_export_is_a_copy(converted):
    """Training on does not change what was exported."""
    model = converted()
    state = export_released(model)
    before = {key: value.clone() for key, value in state.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert_same(state, before)


def test_prefix_of_ddp(written):
    plain = written()

    def prefix(state):
        items = list(state.items())
        state.clear()
        state.update({f"module.{key}": value for key, value in items})

    prefixed = written(prefix, name="module.pth")
    assert_same(read_released(prefixed).state, read_released(plain).state)
    loaded = load_released(prefixed)
    assert_same(loaded.model.state_dict(), load_released(plain).model.state_dict())


def test_bare_state_dict(converted, tmp_path, images):
    """A file with tensors only; the bits must be given."""
    model = converted()
    torch.save(export_released(model), tmp_path / "bare.pth")
    loaded = load_released(tmp_path / "bare.pth", wbits=2, abits=2)
    with torch.no_grad():
        assert torch.equal(loaded.model(images()), model(images()))


def test_npz(converted, tmp_path, images):
    model = converted("swin", qkr=False)
    arrays = {f"state/{key}": value.numpy() for key, value in export_released(model).items()}
    np.savez(tmp_path / "model.npz", meta='{"wbits": 2, "abits": 2}', **arrays)
    loaded = load_released(tmp_path / "model.npz")
    assert loaded.report.reproduced is None
    with torch.no_grad():
        assert torch.equal(loaded.model(images("swin")), model(images("swin")))


def test_what_the_file_says_of_itself(converted, tmp_path):
    path = tmp_path / "checkpoint.pth.tar"
    meta = {"arch": "deit", "epoch": 299, "metric": 64.33, "wq_bitw": 2, "aq_bitw": 2, "lr": 1e-5}
    save_released(path, export_released(converted()), meta)
    file = load_released(path).file
    assert (file.arch, file.epoch, file.metric) == ("deit", 299, 64.33)
    assert file.facts == {"wq_bitw": 2, "aq_bitw": 2, "lr": 1e-5}


def test_saved_as_the_released_code_saves(written):
    """A dict with the released keys; the arguments are an argparse.Namespace."""
    import argparse

    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(written(epoch=3, arch="x"), weights_only=True)
    assert set(content) == {"epoch", "arch", "state_dict", "version", "args"}
    assert content["version"] == 2
    assert content["args"].wq_bitw == 2


def test_dead_biases_are_written_as_zeros(converted, write, images):
    """A model without the biases that cannot act has a place in the layout, and equal outputs."""
    without = BUNDLES["released"].model_copy(update={"dead_biases": False})
    for qkr, dead in ((True, "move_qkx_aft"), (False, "move_k_aft")):
        model = converted(qkr=qkr, fidelity=without)
        state = export_released(model)
        zeros = state[f"blocks.0.attn.{dead}.bias"]
        assert zeros.numel() == (72 if qkr else 24)
        assert not zeros.any()
        loaded = load_released(write(state, num_heads=3))
        with torch.no_grad():
            torch.testing.assert_close(loaded.model(images()), model(images()))


def test_query_bias_of_zero_is_left_out(converted, write, images):
    """Folding a query bias of zero adds nothing, so the layout loses nothing."""
    folding = BUNDLES["released"].model_copy(update={"qk_bias": "fold"})
    model = converted(fidelity=folding)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.q_bias.zero_()
    loaded = load_released(write(export_released(model)))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images()), model(images()), rtol=0, atol=1e-6)


def test_gradients_after_loading(golden_model):
    """A loaded model trains: each of its parameters has a gradient, without a new parameter."""
    model = load_released(golden_model).model
    names = [name for name, _ in model.named_parameters()]
    model.train()
    outputs = model(torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(output.square().sum() for output in outputs).backward()
    assert [name for name, _ in model.named_parameters()] == names
    assert not [name for name, p in model.named_parameters() if p.grad is None]
