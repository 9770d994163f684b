"""What figures compute: correlations, settling, labels, looks."""

import json
import random

import pytest

from tables.figures.accuracy_oscillation import RankCorrelation, series, spearman, words
from tables.figures.cga_scale_trajectory import second_from_last, settling_step
from tables.figures.data import natural
from tables.figures.style import Looks, in_order, label
from tables.figures.toy_regression import DOCUMENT, drawing_of


def test_spearman_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = random.Random(1)
    first = [draw.gauss(0, 1) for _ in range(30)]
    # Rounded, so that there are ties.
    second = [round(value / 2 + draw.gauss(0, 1), 1) for value in first]
    ours = spearman(first, second)
    theirs = stats.spearmanr(first, second)
    assert ours is not None
    assert ours.rho == pytest.approx(theirs.statistic)
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.01)
    assert ours.n == 30


def test_spearman_of_three_pairs_cannot_be_significant() -> None:
    result = spearman([1, 2, 3], [3, 2, 1])
    assert result is not None
    assert result.rho == pytest.approx(-1)
    assert result.p == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize(("first", "second"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3])])
def test_spearman_is_not_defined(first: list[float], second: list[float]) -> None:
    assert spearman(first, second) is None


def test_words_of_a_correlation() -> None:
    assert words(RankCorrelation(-0.158, 0.62, 12)) == "ρ = −0.16 (p = 0.62, n = 12)"
    assert words(RankCorrelation(0.9, 1 / 10_001, 40)) == "ρ = 0.90 (p < 0.0001, n = 40)"


def test_settling_step_is_the_first_of_the_last_quiet_stretch() -> None:
    steps = [0, 10, 20, 30, 40]
    assert settling_step(steps, [0, -8, -10, -10.1, -10]) == 20
    # Passing the last value on the way does not count.
    assert settling_step(steps, [0, -10, -20, -10, -10]) == 30
    assert settling_step(steps, [0, 0, 0, 0, 0]) == 0


def test_second_from_last_block() -> None:
    joint = [f"blocks.{block}.attn.qkv.weight" for block in (0, 1, 2, 10)]
    assert second_from_last(dict.fromkeys(joint)) == "blocks.2.attn.qkv.weight"
    assert second_from_last(dict.fromkeys(["blocks.0.attn.v.weight"])) == "blocks.0.attn.v.weight"
    stages = [
        f"layers.{stage}.blocks.{block}.attn.v.weight" for stage, block in [(0, 0), (2, 5), (3, 0)]
    ]
    assert second_from_last(dict.fromkeys(stages)) == "layers.2.blocks.5.attn.v.weight"
    assert second_from_last(dict.fromkeys(["blocks.1.mlp.fc1.weight"])) == "blocks.1.mlp.fc1.weight"


def test_natural_order() -> None:
    assert sorted(["a.10.b", "a.9.c", "a", "a.10.a"], key=natural) == [
        "a",
        "a.9.c",
        "a.10.a",
        "a.10.b",
    ]


def test_labels_and_order() -> None:
    assert label("ofq_br0p003") == "OFQ, BR 0.003"
    assert label("ofq") == "OFQ"
    assert label("statsq_qkr") == "StatsQ + QKR"
    assert label("lsq_released") == "LSQ, released code"
    assert label("some_new_method") == "some_new_method"
    assert in_order(["zeta", "ofq", "lsq", "alpha"]) == ["lsq", "ofq", "alpha", "zeta"]


def test_twenty_methods_look_different_without_colour_or_with_it() -> None:
    methods = [f"method{number}" for number in range(20)]
    looks = Looks(methods)
    assert len({(looks.colour(name), looks.marker(name)) for name in methods}) == 20
    assert Looks(["ofq"]).colour("ofq") == looks.colour("ofq")


def test_toy_regression_tells_what_came_out() -> None:
    drawing = drawing_of(json.loads(DOCUMENT.read_text(encoding="utf-8")))
    assert "LSQ: " in drawing.caption
    assert "flips of it per 100 steps" in drawing.caption
    assert {row[0] for row in drawing.rows} == {"lsq", "statsq"}
    # The last 100 steps of one weight.
    assert len(drawing.rows) == 200
    assert len({row[2] for row in drawing.rows if row[0] == "lsq"}) == 1


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("ofq", "ofq"),
        ("lsq_qkr_cga", "other combinations"),
        ("ofq_br0p003", "OFQ, other boundary ranges"),
        ("lsq_released", "main methods, released code"),
        ("seq_qkr_cga", "seq_qkr_cga"),
        ("pact", "pact"),
    ],
)
def test_what_a_run_is_called_in_a_crowd(method: str, name: str) -> None:
    assert series(method) == name
