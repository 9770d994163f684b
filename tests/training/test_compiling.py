"""torch.compile per block: when it is chosen, and that it changes no more than last bits."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from ofq_core import compiling
from ofq_core.compiling import WORTHWHILE_MACS, blocks_of, choose, compile_blocks, not_compiled
from ofq_core.models import QuantPlan, build_model, convert
from ofq_core.nn import HeldWeights, calibrate
from ofq_core.settings import FidelitySettings, ModelSettings, QuantSettings

CPU = torch.device("cpu")
MICRO = ModelSettings(
    name="deit_tiny_distilled_patch16_224",
    num_classes=4,
    img_size=16,
    patch_size=4,
    embed_dim=16,
    depth=2,
    num_heads=2,
    mlp_ratio=2.0,
)


@pytest.fixture
def images():
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(images):
    """QKR at 4 bits, in training mode."""
    model = build_model(MICRO, seed=0)
    quant = QuantSettings(weight="statsq", qkr=True, cga=False, wbits=4, abits=4)
    convert(model, QuantPlan.from_settings(quant, FidelitySettings()))
    calibrate(model, images)
    return model.train()


@pytest.mark.parametrize("wanted", [True, False])
def test_a_wish_is_followed(wanted, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/c++")
    for macs in (1.0, 1e20):
        assert choose(wanted, macs, CPU) == (wanted, f"recipe.compile = {str(wanted).lower()}")


@pytest.mark.parametrize(
    ("device", "missing"), [("cpu", "a C++ compiler"), ("cuda", "Triton")], ids=["cpu", "cuda"]
)
def test_a_wish_without_the_tool_for_it(device, missing, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    reason = f"recipe.compile = true, but {missing} was not found"
    assert choose(True, 1.0, torch.device(device)) == (False, reason)


def test_a_compiler_that_does_not_work(model, images, monkeypatch, tmp_path):
    """It is there, so it is tried; what it cannot do is said once, and blocks run as written."""

    def refuse(function):
        raise RuntimeError("g++: cannot find -lgomp\nmore")

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/c++")
    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    log = []
    compiling.compile_where_it_pays([model], True, 10, CPU, log.append)
    (said,) = [line for line in log if line.startswith("torch.compile per block")]
    reason = "recipe.compile = true, but compiling fails here (g++: cannot find -lgomp)"
    assert said == f"torch.compile per block: no, {reason}"
    assert all(block._compiled_call_impl is None for block in blocks_of(model))


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o770, None])
def test_what_torch_compiles_is_nobody_elses(mode, tmp_path, monkeypatch):
    """A folder that others may write is left alone."""
    folder = tmp_path / "cache"
    if mode is not None:
        folder.mkdir()
        folder.chmod(mode)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    monkeypatch.setattr(compiling.atexit, "register", lambda *arguments, **named: None)
    compiling._use_private_cache()
    taken = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert (taken == folder) == (mode in (0o755, None))
    assert taken.stat().st_mode & 0o022 == 0
    if taken != folder:
        taken.rmdir()


def test_a_cpu_with_kernels_needs_no_compiled_blocks(monkeypatch):
    monkeypatch.setattr(compiling, "library", lambda: object())
    chosen = choose("auto", 1e20, CPU)
    assert chosen == (False, "automatic: on a CPU the quantizers' own kernels are as fast")


@pytest.fixture
def no_kernels(monkeypatch):
    monkeypatch.setattr(compiling, "library", lambda: None)


@pytest.mark.usefixtures("no_kernels")
def test_short_runs_are_not_compiled():
    chosen = choose("auto", WORTHWHILE_MACS * 0.99, CPU)
    assert not chosen.compile
    assert "pays from 1e+13" in chosen.reason


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("found", [True, False])
def test_long_runs_are_compiled_where_a_compiler_is_found(monkeypatch, found):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/c++" if found else None)
    chosen = choose("auto", WORTHWHILE_MACS, CPU)
    assert chosen.compile == found
    assert ("a C++ compiler was not found" in chosen.reason) != found


def test_a_gpu_needs_triton(monkeypatch):
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(compiling, "library", lambda: object())
    chosen = choose("auto", WORTHWHILE_MACS, torch.device("cuda"))
    assert chosen == (False, "automatic: Triton was not found")


def test_a_model_without_blocks_is_left_alone():
    log = []
    compiling.compile_where_it_pays([nn.Linear(2, 2)], True, 10, CPU, log.append)
    assert log == []


@pytest.mark.parametrize("note", ["", "no C compiler was found"])
def test_the_choice_is_said(model, note, monkeypatch):
    monkeypatch.setattr(compiling, "note", lambda: note)
    log = []
    compiling.compile_where_it_pays([model], "auto", 10, CPU, log.append)
    *before, last = log
    assert before == ([f"kernels of the quantizers: {note}"] if note else [])
    assert last.startswith("torch.compile per block: no, automatic: ")
    assert all(block._compiled_call_impl is None for block in blocks_of(model))


def _run(model, images, held=None):
    model.zero_grad()
    if held is not None:
        held.hold()
        held.release()
    outputs = model(images)
    sum(output.square().mean() for output in outputs).backward()
    if held is not None:
        held.clear()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return [output.detach() for output in outputs], gradients


def _same(found, expected):
    for one, other in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    for name, gradient in expected[1].items():
        difference = float((found[1][name] - gradient).norm())
        assert difference <= 1e-9 * float(gradient.norm()) + 1e-12, name


# torch warns of what its own compiler does: old parts of torch, the gradient of what is no leaf.
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_give_the_same_outputs_and_gradients(model, images, tmp_path, monkeypatch):
    """Up to the order of sums; one graph for both blocks, forced back by `not_compiled`.

    In FP64, where no activation is near enough to a threshold to get another code for that.
    """
    if not (shutil.which("g++") or shutil.which("c++")):
        pytest.skip("needs a C++ compiler")
    # What torch keeps of a run with other instructions does not compile with these.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, images = model.double(), images.double()
    expected = _run(model, images)
    torch._dynamo.reset()
    compile_blocks(model)
    counters = torch._dynamo.utils.counters
    counters.clear()
    _same(_run(model, images, HeldWeights(model)), expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    with not_compiled(model):
        again = _run(model, images)
    assert counters["stats"]["unique_graphs"] == 1
    for one, other in zip(again[0], expected[0], strict=True):
        assert torch.equal(one, other)
