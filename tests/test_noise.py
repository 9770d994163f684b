"""Noise injection: which weights change, by how much, and that the model is as before."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ofq_core.methods import weight_quantizer
from ofq_core.methods.lsq import LSQWeight
from ofq_core.methods.statsq import StatsQWeight
from ofq_core.nn import QuantLinear
from ofq_core.noise import inject_noise
from ofq_core.quant import boundary_distance
from ofq_core.settings import QuantSettings
from ofq_core.settings.methods import WEIGHT_METHODS


def model_of(make, *matrices):
    """Low-bit matrices inside the blocks, and one outside that must not be touched."""
    model = nn.Module()
    model.blocks = nn.ModuleList([layer(make, torch.tensor(rows)) for rows in matrices])
    model.head = layer(make, torch.tensor(matrices[0]))
    return model.eval()


def layer(make, values):
    source = nn.Linear(values.shape[1], values.shape[0])
    source.weight = nn.Parameter(values.clone())
    return QuantLinear(source, nn.Identity(), make)


def lsq_of(scale):
    def make(weight):
        quantizer = LSQWeight(weight.detach(), 2)
        quantizer.scale.data.fill_(scale)
        return quantizer

    return make


statsq = partial(StatsQWeight, bits=2)


def seen_by(model):
    """Measures nothing and keeps the quantized weights that the model has then."""
    seen = []

    @torch.no_grad()
    def top1():
        seen.append([b.weight_quantizer(b.weight).clone() for b in model.blocks])
        return float(len(seen))

    return seen, top1


def inject(model, boundary_range=0.05, trials=1, seed=0):
    """The result, and the weights of the trials at the boundary and of the random ones."""
    seen, top1 = seen_by(model)
    result = inject_noise(model, top1, boundary_range, trials, seed)
    assert len(seen) == 2 * trials
    return result, seen[:trials], seen[trials:]


# By hand


def test_lsq_by_hand():
    """Step 1: 0.49 is 0.01 from the threshold at 0.5 and goes from 0 to 1."""
    model = model_of(lsq_of(1.0), [[0.49, -0.2, 0.9, -1.8]])
    assert model.blocks[0].weight_quantizer(model.blocks[0].weight).tolist() == [[0, 0, 1, -2]]
    result, (boundary,), (random,) = inject(model)
    assert (result.weights, result.inside, result.perturbed) == (4, 1, 1)
    assert boundary[0].tolist() == [[1, 0, 1, -2]]
    # Neighbours: 0.49 to 1; -0.2 to -1 (0.3 from -0.5); 0.9 to 0; -1.8 to -1.
    assert random[0].tolist() in (
        [[1, 0, 1, -2]],
        [[0, -1, 1, -2]],
        [[0, 0, 0, -2]],
        [[0, 0, 1, -1]],
    )
    assert result.boundary == [1.0]
    assert result.random == [2.0]


def test_statsq_by_hand():
    """s = 1.8, values s (2k + 1) / 4, codes 0, 1, 1, -1. 0.8 and 1.0 are 1/9 from 0.5."""
    model = model_of(statsq, [[0.8, 1.0, 1.2, -0.6]])
    result, (boundary,), _ = inject(model, boundary_range=0.1115)
    # At 0.389, 0.611, 0.833 and -1.167.
    assert (result.inside, result.perturbed) == (2, 1)
    changed = boundary[0][0].tolist()
    one, other = [1.35, 1.35, 1.35, -0.45], [0.45, 0.45, 1.35, -0.45]
    assert changed == pytest.approx(one) or changed == pytest.approx(other)


def test_beyond_the_outermost_codes():
    """At 5 with codes -2 to 1 the nearest threshold is 0.5, far away: inside no range."""
    model = model_of(lsq_of(1.0), [[5.0, -5.0]])
    result, (boundary,), randoms = inject(model, boundary_range=0.5)
    assert (result.inside, result.perturbed) == (0, 0)
    assert boundary[0].tolist() == randoms[0][0].tolist() == [[1, -2]]
    _, _, randoms = inject(model_of(lsq_of(1.0), [[5.0, -5.0, 0.49]]))
    assert randoms[0][0].tolist() in ([[0, -2, 0]], [[1, -1, 0]], [[1, -2, 1]])


def test_rows_of_one_code_are_left_out():
    """They have no step to move by, even on a threshold."""
    model = model_of(lsq_of(1.0), [[0.49, 0.4999, -0.4999], [0.49, 0.9, 0.8]])
    result, boundaries, randoms = inject(model, trials=20)
    assert (result.weights, result.inside, result.perturbed) == (6, 1, 1)
    assert all(b[0].tolist() == [[0, 0, 0], [1, 1, 1]] for b in boundaries)
    assert all(r[0][0].tolist() == [0, 0, 0] for r in randoms)
    assert {int((r[0][1] != torch.tensor([0, 1, 1])).sum()) for r in randoms} == {1}


def test_nothing_to_perturb():
    result, boundaries, randoms = inject(model_of(lsq_of(1.0), [[0.1, 0.2]]), 0.5)
    assert (result.weights, result.inside, result.perturbed) == (2, 0, 0)
    assert boundaries[0][0].tolist() == randoms[0][0].tolist() == [[0, 0]]


def test_half_of_those_inside_rounded_up_over_all_matrices():
    """Five inside in two matrices: three of them change, and three of all."""
    model = model_of(lsq_of(1.0), [[0.49, 0.51, -0.2, 0.9]], [[0.49, -0.51, 0.48, -1.0]])
    result, boundaries, randoms = inject(model, trials=30)
    assert (result.weights, result.inside, result.perturbed) == (8, 5, 3)
    clean = [b.weight_quantizer(b.weight).detach() for b in model.blocks]
    places = []
    for trial in boundaries + randoms:
        changed = [new != old for new, old in zip(trial, clean, strict=True)]
        assert sum(int(mask.sum()) for mask in changed) == 3
        places.append(torch.cat([mask.flatten() for mask in changed]))
    at_boundary, anywhere = torch.stack(places[:30]).any(0), torch.stack(places[30:]).any(0)
    assert at_boundary.tolist() == [True, True, False, False, True, True, True, False]
    assert anywhere.all(), "random ones come from all weights, those inside too"


# In general


@pytest.fixture(scope="module")
def drawn():
    """Two matrices quantized by a method, three bits."""

    def make(name, seed=0):
        quant = {"weight": name, "wbits": 3, "abits": 3, "qkr": False, "cga": False}
        build = weight_quantizer(QuantSettings(**quant))
        generator = torch.Generator().manual_seed(seed)
        shapes = (6, 40), (8, 30)
        return model_of(build, *(torch.randn(s, generator=generator).tolist() for s in shapes))

    return make


@pytest.mark.parametrize("name", WEIGHT_METHODS)
def test_one_step_across_the_nearest_threshold(name, drawn):
    """Whatever the method: another code's value, towards the threshold, for the chosen alone."""
    model = drawn(name)
    result, boundaries, randoms = inject(model, 0.1, trials=3)
    total, inside = 0, 0
    for index, block in enumerate(model.blocks):
        quantizer, latent = block.weight_quantizer, block.weight.detach()
        clean, position = quantizer(latent).detach(), quantizer.position(latent)
        distance = boundary_distance(position, quantizer.low, quantizer.high)
        inside += int((distance <= 0.1).sum())
        for trial in boundaries + randoms:
            for row, (old, new) in enumerate(zip(clean, trial[index], strict=True)):
                levels = old.unique()
                step = levels.diff().min()
                moved = new != old
                torch.testing.assert_close((new - old)[moved].abs(), step.expand(int(moved.sum())))
                # Up where the code is below the threshold.
                codes = quantizer.codes(latent)[row].float()
                below = position[row].floor().clamp(quantizer.low, quantizer.high - 1)
                up = codes <= below
                assert torch.equal((new > old)[moved], up[moved])
        for trial in boundaries:
            assert (distance <= 0.1)[trial[index] != clean].all()
        total += latent.numel()
    assert (result.weights, result.inside) == (total, inside) == (480, inside)
    assert result.perturbed == -(-inside // 2) > 10
    for trial in boundaries + randoms:
        blocks = zip(model.blocks, trial, strict=True)
        changed = sum(int((b.weight_quantizer(b.weight) != t).sum()) for b, t in blocks)
        assert changed == result.perturbed


@pytest.mark.parametrize("name", WEIGHT_METHODS)
def test_the_model_is_as_before(name, drawn):
    model = drawn(name)
    image = torch.randn(2, 40, generator=torch.Generator().manual_seed(1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    outputs = model.blocks[0](image), model.head(image)
    heads = []
    inject_noise(model, lambda: heads.append(model.head(image)) or 0.0, 0.1, 2, 0)
    assert all(torch.equal(head, outputs[1]) for head in heads), "not low-bit: never touched"
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(model.blocks[0](image), outputs[0])
    for block in model.blocks:
        assert "forward" not in vars(block.weight_quantizer)
        output = block.weight_quantizer(block.weight)
        assert output.requires_grad


def test_the_model_is_as_before_when_measuring_fails(drawn):
    model = drawn("lsq")

    def top1():
        raise RuntimeError("no data")

    clean = model.blocks[1].weight_quantizer(model.blocks[1].weight)
    with pytest.raises(RuntimeError, match="no data"):
        inject_noise(model, top1, 0.1, 1, 0)
    assert torch.equal(model.blocks[1].weight_quantizer(model.blocks[1].weight), clean)


def test_deterministic_in_the_seed(drawn):
    """Neither the global generator nor an earlier call matters; trials differ from each other."""

    model = drawn("statsq")

    def run(seed):
        _, boundaries, randoms = inject(model, 0.1, trials=3, seed=seed)
        return [torch.cat([part.flatten() for part in trial]) for trial in boundaries + randoms]

    state = torch.random.get_rng_state()
    first, other = run(7), run(8)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(first, run(7), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert len({tuple(values.tolist()) for values in first}) == 6


@given(
    values=st.lists(st.integers(-12, 12).map(lambda n: n / 8), min_size=2, max_size=12),
    boundary_range=st.sampled_from([0.125, 0.25, 0.5]),
    seed=st.integers(0, 100),
)
def test_counts(values, boundary_range, seed):
    """Multiples of 1/8 and step 1: all numbers are exact."""
    model = model_of(lsq_of(1.0), [values])
    result, (boundary,), (random,) = inject(model, boundary_range, seed=seed)
    clean = model.blocks[0].weight_quantizer(model.blocks[0].weight).detach()
    one_code = len(set(clean.flatten().tolist())) == 1
    near = [min(abs(v - t) for t in (-1.5, -0.5, 0.5)) <= boundary_range for v in values]
    assert result.inside == (0 if one_code else sum(near))
    for trial in (boundary, random):
        move = (trial[0] - clean).abs()
        assert int(move.sum()) == int((move == 1).sum()) == result.perturbed
        assert trial[0].min() >= -2
        assert trial[0].max() <= 1
    assert not bool((boundary[0] != clean)[~torch.tensor([near])].any())
