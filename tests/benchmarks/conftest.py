"""Benchmarks of pieces: each beside its plain form and its full-precision counterpart.

A group of the report holds the forms of one piece, so its relative columns are the ratios. In
`make test` every benchmark runs once, without timing; `make bench` times them.
"""

import pytest
import torch

from benchmarks.subjects import FULL_PRECISION, SIZES, make_model, threads
from tests.plain import plain

FORMS = (FULL_PRECISION, "plain", "ours")
BATCH = 2
TOKENS, WIDTH = 198, 192  # of DeiT-T at 224 pixels


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Less noise, and the pieces are small."""
    with threads(1):
        yield


@pytest.fixture(params=FORMS)
def form(request):
    """Which of the three is measured."""
    return request.param


@pytest.fixture
def side_by_side(benchmark, form):
    """Time one form of a piece: `side_by_side(group, run)`, or with a run per form."""

    def measure(group, run):
        benchmark.group = group
        run = run[form] if isinstance(run, dict) else run
        return benchmark(run)

    return measure


@pytest.fixture(scope="package")
def deit_tiny():
    """DeiT-T by method, in FP32 and training mode; full precision too."""
    models = {}

    def get(method):
        if method not in models:
            models[method] = make_model(SIZES["deit_tiny"], method)
        return models[method]

    return get


@pytest.fixture
def piece(deit_tiny, form):
    """A piece of DeiT-T in the form that is measured: `piece(method, find)`."""

    def get(method, find):
        if form == FULL_PRECISION:
            return find(deit_tiny(FULL_PRECISION))
        found = find(deit_tiny(method))
        return plain(found) if form == "plain" else found

    return get


@pytest.fixture(scope="package")
def tokens():
    """Activations (BATCH, TOKENS, width), which want a gradient."""

    def make(width=WIDTH):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(BATCH, TOKENS, width, generator=generator).requires_grad_()

    return make
