"""The compiled kernels against torch's operators, bit for bit, and how they are found."""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofq_core.quant import kernels, statsq_quantize
from ofq_core.quant.biased_lsq import Grid, Parameters, gradients, in_one_pass, quantize
from ofq_core.quant.biased_lsq import quantize_again as again
from ofq_core.quant.fused_linear import biased_lsq
from tests.quant.test_fused_linear import ALL, cases, layout
from tests.quant.written_out import randn

SPECIAL = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-42, 3e38)

needs_compiler = pytest.mark.skipif(
    kernels.library() is None, reason="no C compiler, or OFQ_KERNELS=off"
)


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    """Small tensors too, which otherwise are not worth it."""
    monkeypatch.setattr(kernels, "SHORTEST_RUN", 1)
    kernels.layout.cache_clear()
    yield
    kernels.layout.cache_clear()


def same(ours, theirs):
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))
    assert torch.equal(ours.isnan(), theirs.isnan())


def everything(x, p, grid, grad, spend):
    """What the two functions return, flat."""
    y = quantize(x, p, grid)
    repeated, slopes = again(x, p, grid)
    assert (slopes is None) == in_one_pass(x, p, grid)
    kept = repeated.clone()
    found = gradients(grad.clone(), slopes, x, p, grid, repeated if spend else None)
    return [y, kept, *(tensor for tensor in found if tensor is not None)]


def compare(x, p, grid, grad, spend=False):
    with kernels.torch_operators():
        assert not in_one_pass(x, p, grid)
        theirs = everything(x, p, grid, grad, spend)
    ours = everything(x, p, grid, grad, spend)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        same(one, other)


@needs_compiler
@settings(deadline=None, max_examples=300)
@given(
    cases(ALL, dtypes=(torch.float32,)),
    st.booleans(),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from(SPECIAL)), max_size=4),
)
def test_lsq_is_the_same_to_the_bit(case, spend, turned, special):
    x = case.input.detach()
    for place, value in special:
        x[torch.unravel_index(torch.tensor(place % x.numel()), x.shape)] = value
    p = Parameters(*(None if leaf is None else leaf.detach() for leaf in case.p))

    grad = randn(*x.shape, seed=case.seed, dtype=torch.float32)
    if turned:
        grad = grad.mT.contiguous().mT
    compare(x, p, case.grid, grad, spend)


@needs_compiler
@pytest.mark.parametrize("kind", ["tokens", "channels", "tensor", "groups", "columns", "rows"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_layers_of_real_size_are_done_in_one_pass(kind, chunked, threads, monkeypatch):
    """Vector loops, their remainders, several threads."""
    monkeypatch.setattr(kernels, "SHORTEST_RUN", 8)
    shape, view, scale, bias, _ = layout(kind, 6, 37, 67, 5)
    whole = randn(*shape[:-1], 3 * shape[-1], seed=1, dtype=torch.float32)
    x = whole.chunk(3, -1)[1] if chunked else whole[..., : shape[-1]].contiguous()
    count = torch.Size(scale).numel()
    p = Parameters(
        0.1 + randn(count, seed=2, dtype=torch.float32).abs(),
        *(0.1 * randn(torch.Size(bias).numel(), seed=s, dtype=torch.float32) for s in (3, 4)),
    )
    grid = Grid(-2, 1, view, scale, bias, 2.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert in_one_pass(x, p, grid)
        compare(x, p, grid, randn(*shape, seed=5, dtype=torch.float32), spend=True)
    finally:
        torch.set_num_threads(before)


@needs_compiler
@settings(deadline=None, max_examples=200)
@given(
    st.integers(2, 8),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(0, 10**6),
    st.sampled_from([None, *SPECIAL]),
)
def test_statsq_is_the_same_to_the_bit(bits, rows, columns, seed, special):
    weight = randn(rows, columns, seed=seed, dtype=torch.float32)
    weight[0] *= seed % 3  # now and then a row of zeros
    if special is not None:
        weight[-1, -1] = special

    ours = statsq_quantize(weight, bits, with_codes=True)
    with kernels.torch_operators():
        theirs = statsq_quantize(weight, bits, with_codes=True)

    for one, other in zip(ours, theirs, strict=True):
        same(one, other)
    assert statsq_quantize(weight, bits)[1] is None


@needs_compiler
def test_the_callers_gradient_is_not_touched_unless_y_is_spent():
    x, grad = randn(4, 16, seed=0, dtype=torch.float32), torch.ones(4, 16)
    p, grid = Parameters(torch.ones(1), None, None), Grid(0, 1, (4, 16), (1, 1), ())

    gradients(grad, None, x, p, grid)
    assert torch.equal(grad, torch.ones(4, 16))

    gradients(grad, None, x, p, grid, spent=torch.empty(4, 16))
    assert not torch.equal(grad, torch.ones(4, 16))


@pytest.mark.parametrize("compiled", [True, False])
def test_a_second_derivative_is_refused_and_never_wrong(compiled):
    x = randn(4, 16, seed=0, dtype=torch.float32).requires_grad_()
    p, grid = Parameters(torch.ones(1), None, None), Grid(-2, 1, (4, 16), (1, 1), ())
    with nullcontext() if compiled else kernels.torch_operators():
        (grad,) = torch.autograd.grad(biased_lsq(x, p, grid).exp().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(4, 16, dtype=torch.float64),
        torch.zeros(4, 16, dtype=torch.bfloat16),
        torch.zeros(4, 16, device="meta"),
        torch.zeros(0, 16),
    ],
    ids=lambda x: f"{x.dtype}-{x.device}-{x.numel()}",
)
def test_what_they_cannot_do_is_left_to_torch(x):
    scale = torch.ones(1, device=x.device, dtype=x.dtype)
    assert not kernels.usable(x, scale)
    assert not kernels.usable(torch.zeros(4, 16), torch.ones(1, dtype=torch.float64))


def test_they_are_not_used_where_torch_compiles(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not kernels.usable(torch.zeros(4, 16), torch.ones(1))


@pytest.fixture
def found(tmp_path, monkeypatch):
    """What a new process would find, with its cache in this folder."""
    monkeypatch.delenv("OFQ_KERNELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    yield kernels._found.__wrapped__
    assert not list(tmp_path.glob("tmp/*")), "nothing is left"


def ask(folder: Path) -> str:
    """Whether a new process has kernels, whose cache is in this folder."""
    code = "from ofq_core.quant import kernels; print(kernels.library() is not None)"
    environment = {name: value for name, value in os.environ.items() if name != "OFQ_KERNELS"}
    environment |= {"XDG_CACHE_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@needs_compiler
def test_two_processes_compile_at_once_and_leave_one_whole_file(tmp_path, found):
    with ThreadPoolExecutor() as pool:
        assert set(pool.map(ask, [tmp_path] * 2)) == {"True"}
    (made,) = (tmp_path / "ofq").iterdir()

    written = made.stat().st_mtime_ns
    library, note = found()
    assert library is not None
    assert note == ""
    assert made.stat().st_mtime_ns == written


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link(path):
    path.symlink_to(path.rename(path.parents[1] / "elsewhere.so"))


DAMAGES = {
    "empty": lambda path: os.truncate(path, 0),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a bit flipped": flip,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "another name": lambda path: path.rename(path.with_name(path.name[:-11] + "00000000.so")),
    "group may write": lambda path: path.chmod(0o770),
    "all may write": lambda path: path.chmod(0o777),
    "a link": link,
    "another user's": lambda path: os.chown(path, 65534, -1),
}


@needs_compiler
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_library_that_cannot_be_trusted_is_compiled_again(tmp_path, found, damage):
    """Loading half a file would end the process, and one of another user run what he likes."""
    if damage == "another user's" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    found()
    (made,) = (tmp_path / "ofq").iterdir()
    before = made.read_bytes()
    # This process has mapped it: what is damaged must be another file.
    made.unlink()
    made.write_bytes(before)
    made.chmod(0o700)
    DAMAGES[damage](made)
    library, note = found()
    assert library is not None
    assert note == ""
    (again,) = (tmp_path / "ofq").iterdir()
    status = again.lstat()
    assert (again, again.read_bytes()) == (made, before)
    assert (status.st_mode & 0o777, status.st_uid) == (0o700, os.geteuid())
    assert not again.is_symlink()


def foreign(folder):
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    folder.mkdir()
    os.chown(folder, 65534, -1)


NO_CACHE = {
    "a file": (Path.touch, "File exists"),
    "group may write": (lambda folder: (folder.mkdir(), folder.chmod(0o770)), "others may write"),
    "all may write": (lambda folder: (folder.mkdir(), folder.chmod(0o777)), "others may write"),
    "another user's": (foreign, "is another user's"),
}


@needs_compiler
@pytest.mark.parametrize("kind", NO_CACHE)
def test_without_a_cache_each_process_compiles_for_itself(tmp_path, found, kind):
    make, reason = NO_CACHE[kind]
    make(tmp_path / "ofq")
    library, note = found()
    assert library is not None
    assert note.startswith("compiled for this process alone: there is no cache (")
    assert reason in note
    assert str(tmp_path / "ofq") in note
    assert not list(tmp_path.glob("ofq/*")), "nothing is put there"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"OFQ_KERNELS": "off"}, ""),
        ({"PATH": "/nowhere", "CC": ""}, "no C compiler was found"),
        ({"CC": "false"}, "made no kernels"),
    ],
    ids=["off", "no compiler", "compiler fails"],
)
def test_without_kernels_torch_does_it(tmp_path, found, changes, reason, monkeypatch):
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    library, note = found()
    assert library is None
    assert reason in note
    assert bool(reason) == bool(note)
    assert not list(tmp_path.glob("ofq/*"))


@needs_compiler
def test_without_a_home_each_process_compiles_for_itself(found, monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    library, note = found()
    assert library is not None
    assert note.endswith("there is no cache (Could not determine home directory.)")
