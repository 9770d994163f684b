"""The figures of a synthetic study. Every number is made up from a seed; none was measured."""

import csv
import hashlib
import json
import math
import random
import struct
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from tables.errors import TableError
from tables.figures import FIGURES, Figure, render_figures
from tables.runs import Study, read_study

METHODS = ("lsq", "statsq", "statsq_qkr", "ofq", "ofq_br0p003", "ofq_br0p01", "dampening")
BITS = (2, 4)
SEEDS = (0, 1, 2)
STEPS = 240
LAST = 160
BANDS = ("0.003", "0.005", "0.007", "0.01", "0.05", "0.1", "0.25", "0.5")


def oscillation(draw: random.Random, share: float) -> dict[str, Any]:
    flips = {f"flips_{cause}": draw.uniform(0, 0.01) for cause in ("weight", "scale", "both")}
    sampled = flips | {
        "gradient_flips": {
            band: None if place == 0 else draw.uniform(0.2, 0.6) for place, band in enumerate(BANDS)
        }
    }
    return {
        "share": share / 10,
        "share_before_last_phase": share,
        "before_last_phase": {"share": share, **sampled},
        **sampled,
    }


def history(draw: random.Random) -> str:
    lines = ["epoch,phase,lr,val_top1,oscillation_share,free_share"]
    for epoch in range(12):
        phase = "qat" if epoch < 9 else "anneal"
        top1 = 90 - 40 * math.exp(-epoch / 2) + draw.uniform(-1, 1)
        share = 0.1 if epoch < 9 else 0.01
        lines.append(f"{epoch},{phase},0.001,{top1},{share * draw.uniform(0.8, 1.2)},")
    return "\n".join(lines) + "\n"


def trajectories(draw: random.Random, speed: float) -> dict[str, Any]:
    steps = list(range(0, STEPS, 2))
    layers = [
        f"blocks.{block}.attn.{kind}" for block in (0, 1, 2, 10) for kind in ("qk", "v.weight")
    ]
    scales = {
        layer: [1 - 0.1 * (1 - math.exp(-max(0, step - LAST) / speed)) for step in steps]
        for layer in layers
    }
    weights = []
    for index in range(4):
        position = [draw.uniform(-0.2, 0.2) - 1.5 + index % 3 for _ in steps]
        weights.append(
            {
                "layer": layers[1],
                "index": index,
                "frequency": index / 100,
                "latent": [value / 10 for value in position],
                "position": position,
                "code": [round(value) for value in position],
            }
        )
    return {"steps": steps, "last_phase": LAST, "scales": scales, "weights": weights}


def histogram(draw: random.Random) -> dict[str, Any]:
    edges = [-3 + place / 16 for place in range(81)]
    counts = [0] * 80
    near = [0] * 50
    for _ in range(4000):
        position = min(1.5, max(-2.5, draw.gauss(-0.5, 1.1)))
        counts[min(79, int((position + 3) * 16))] += 1
        distance = min(abs(position - threshold) for threshold in (-1.5, -0.5, 0.5))
        if distance <= 0.5:
            near[min(49, int(distance * 100))] += 1
    return {
        "low": -2,
        "high": 1,
        "position": {"edges": edges, "counts": counts},
        "distance": {"edges": [place / 100 for place in range(51)], "counts": near},
    }


def write_run(results: Path, method: str, bits: int, seed: int) -> Path:
    draw = random.Random(f"{method} {bits} {seed}")
    folder = results / f"{method}-w{bits}a{bits}-s{seed}"
    folder.mkdir(parents=True)
    cga = method.startswith("ofq")
    boundary = float(method.removeprefix("ofq_br").replace("p", ".")) if "_br" in method else 0.005
    settings = {
        "study": results.name,
        "method": method,
        "seed": seed,
        "quant": {"wbits": bits, "abits": bits, "cga": cga, "boundary_range": boundary},
        "model": {"name": "synthetic_micro"},
        "data": {"name": "synthetic"},
        "recipe": {"epochs": 9, "cga_epochs": 3, "lr": 0.001},
    }
    share = draw.uniform(0.05, 0.2)
    n_correct = 300 + 20 * bits + round(100 * share)
    metrics = {
        "top1": n_correct / 4,
        "top5": 99.0,
        "loss": 0.3,
        "n_images": 400,
        "n_correct": n_correct,
        "val_top1": 90.0,
        "epoch_selected": 11,
        "oscillation": oscillation(draw, share),
        "cost": {},
        "settings_sha256": "0" * 64,
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    for name, document in {
        "metrics": metrics,
        "trajectories": trajectories(draw, 2000 * boundary),
        "histogram": histogram(draw),
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "history.csv").write_text(history(draw), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures") / "synthetic"
    for method in METHODS:
        for bits in BITS:
            for seed in SEEDS:
                write_run(folder, method, bits, seed)
    return folder


@pytest.fixture(scope="module")
def drawn(
    results: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Figure]]:
    out = tmp_path_factory.mktemp("out")
    return out, {figure.name: figure for figure in render_figures(read_study(results), out)}


def lines(figure: Figure) -> list[dict[str, str]]:
    assert figure.csv is not None
    return list(csv.DictReader(figure.csv.read_text(encoding="utf-8").splitlines()))


def test_every_figure_is_drawn_with_its_three_files(drawn: tuple[Path, dict[str, Figure]]) -> None:
    out, figures = drawn
    assert tuple(figures) == FIGURES
    for name, figure in figures.items():
        assert figure.skipped_reason is None
        assert figure.svg == out / "figures" / f"{name}.svg"
        assert figure.svg.read_text(encoding="utf-8").rstrip().endswith("</svg>")
        assert figure.png is not None
        width, height = struct.unpack(">II", figure.png.read_bytes()[16:24])
        assert width == 1120
        assert 300 < height < 1600
        assert len(lines(figure)) > 5
        assert figure.caption.endswith(".")
        assert figure.title
    assert sorted(path.name for path in (out / "figures").iterdir()) == sorted(
        f"{name}.{kind}" for name in FIGURES for kind in ("csv", "png", "svg")
    )


def test_the_same_study_gives_the_same_bytes(
    results: Path, drawn: tuple[Path, dict[str, Figure]], tmp_path: Path
) -> None:
    def hashes(folder: Path) -> dict[str, str]:
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()
        }

    again = render_figures(read_study(results), tmp_path)
    assert hashes(tmp_path / "figures") == hashes(drawn[0] / "figures")
    assert [figure.caption for figure in again] == [figure.caption for figure in drawn[1].values()]


def test_captions_name_the_papers_figure_where_there_is_one(
    drawn: tuple[Path, dict[str, Figure]],
) -> None:
    figures = drawn[1]
    assert "25/80/275/675 iterations" in figures["cga_scale_trajectory"].caption
    assert "The paper's figure" not in figures["learning_curves"].caption


def test_gradient_flips_leave_out_bands_without_pairs(
    drawn: tuple[Path, dict[str, Figure]],
) -> None:
    found = lines(drawn[1]["gradient_flips"])
    assert {line["boundary_range_steps"] for line in found} == {*BANDS[1:]}
    assert {line["method"] for line in found} == {"lsq", "statsq", "statsq_qkr", "ofq"}
    assert {line["phase"] for line in found} == {"before the last phase", "last phase"}
    assert all(20 <= float(line["mean_percent"]) <= 60 and line["n"] == "3" for line in found)


def test_scale_trajectory_starts_at_zero_and_takes_the_block_before_the_last(
    drawn: tuple[Path, dict[str, Figure]],
) -> None:
    figure = drawn[1]["cga_scale_trajectory"]
    found = lines(figure)
    # Blocks 0, 1, 2 and 10: by number, not by letter.
    assert {line["layer"] for line in found} == {"blocks.2.attn.v.weight"}
    assert {line["curve"] for line in found} == {"BR 0.003", "BR 0.005", "BR 0.01", "without CGA"}
    starts = [line for line in found if line["step"] == "0"]
    assert len(starts) == 4 * len(SEEDS)
    assert all(float(line["change_percent"]) == 0 for line in starts)
    assert "BR 0.003 16 steps" in figure.caption or "BR 0.003 18 steps" in figure.caption


def test_histogram_shares_are_of_all_weights(drawn: tuple[Path, dict[str, Figure]]) -> None:
    totals: dict[tuple[str, str], float] = {}
    for line in lines(drawn[1]["weight_histogram"]):
        key = line["method"], line["quantity"]
        totals[key] = totals.get(key, 0) + float(line["share_percent"])
    assert {method for method, _ in totals} == {"lsq", "statsq", "ofq"}
    for (_, quantity), total in totals.items():
        # Weights beyond the outermost grid values have no distance.
        assert total == pytest.approx(100) if quantity == "position" else 80 < total < 95


def test_latent_trajectories_take_the_highest_frequencies(
    drawn: tuple[Path, dict[str, Figure]],
) -> None:
    found = lines(drawn[1]["latent_trajectories"])
    assert {line["index"] for line in found} == {"3", "2", "1"}
    assert {(line["method"], line["seed"]) for line in found} == {
        ("lsq", "0"),
        ("statsq", "0"),
        ("ofq", "0"),
    }


def test_accuracy_against_oscillation_has_every_run(
    drawn: tuple[Path, dict[str, Figure]],
) -> None:
    figure = drawn[1]["accuracy_oscillation"]
    assert len(lines(figure)) == 2 * len(METHODS) * len(BITS) * len(SEEDS)
    assert "n = 21" in figure.caption
    assert "p < 0.0001" in figure.caption or "p = 0.0001" in figure.caption


def test_flip_causes_are_per_thousand_steps(drawn: tuple[Path, dict[str, Figure]]) -> None:
    found = lines(drawn[1]["flip_causes"])
    assert {line["cause"] for line in found} == {"weight", "scale", "both"}
    assert "dampening" in {line["method"] for line in found}
    assert "ofq_br0p01" not in {line["method"] for line in found}
    assert all(0 < float(line["mean_per_weight_and_1000_steps"]) < 10 for line in found)


def test_learning_curves_have_a_mean_per_epoch(drawn: tuple[Path, dict[str, Figure]]) -> None:
    found = lines(drawn[1]["learning_curves"])
    assert {line["quantity"] for line in found} == {"val_top1", "oscillation_share"}
    assert {int(line["epoch"]) for line in found} == set(range(12))
    assert {line["n"] for line in found} == {"3"}


def test_figures_without_data_are_skipped_and_their_old_files_go(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "results", "lsq", 2, 0)
    for name in ("trajectories.json", "histogram.json", "history.csv"):
        (folder / name).unlink()
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metrics["oscillation"] = {"share": 0.1}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    old = tmp_path / "out" / "figures" / "learning_curves.svg"
    old.parent.mkdir(parents=True)
    old.write_text("old", encoding="utf-8")
    figures = {
        figure.name: figure
        for figure in render_figures(read_study(tmp_path / "results"), tmp_path / "out")
    }
    skipped = {name for name, figure in figures.items() if figure.skipped_reason}
    assert skipped == set(FIGURES) - {"toy_regression", "accuracy_oscillation"}
    for name in skipped:
        assert (figures[name].svg, figures[name].png, figures[name].csv) == (None, None, None)
    assert "history.csv" in str(figures["learning_curves"].skipped_reason)
    assert not old.exists()


def test_single_seed_and_empty_documents(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "results", "ofq", 3, 0)
    (folder / "histogram.json").write_text("{}", encoding="utf-8")
    figures = {
        figure.name: figure
        for figure in render_figures(read_study(tmp_path / "results"), tmp_path / "out")
    }
    assert {name for name, figure in figures.items() if figure.skipped_reason} == {
        "weight_histogram"
    }
    assert {line["sd_percent"] for line in lines(figures["gradient_flips"])} == {""}
    assert "not defined" in figures["accuracy_oscillation"].caption


@pytest.mark.parametrize(
    ("figure", "name", "content", "told"),
    [
        ("latent_trajectories", "trajectories.json", '{"steps": [1, 2]}', "last_phase|scales"),
        ("cga_scale_trajectory", "trajectories.json", '{"steps": [1', "not valid JSON"),
        ("weight_histogram", "histogram.json", '{"low": -2, "high": 1}', "position"),
        ("learning_curves", "history.csv", "epoch,phase,val_top1\n0,qat,ninety\n", "ninety"),
        ("learning_curves", "history.csv", "", "names no column epoch"),
        ("learning_curves", "history.csv", "\ufeffepoch,phase\n0,qat\n", "names no column epoch"),
        ("learning_curves", "history.csv", '"' + "x" * 140_000, "cannot be read"),
    ],
)
def test_broken_files_are_named(
    tmp_path: Path, figure: str, name: str, content: str, told: str
) -> None:
    folder = write_run(tmp_path / "results", "ofq", 2, 0)
    (folder / name).write_text(content, encoding="utf-8")
    module = import_module(f"tables.figures.{figure}")
    with pytest.raises(TableError, match=rf"{name}.*({told})"):
        module.draw(read_study(tmp_path / "results"))


def test_reference_study(tmp_path: Path) -> None:
    study: Study = read_study(Path("tables/reference/digits_full/results"))
    for figure in render_figures(study, tmp_path):
        assert figure.skipped_reason is None, figure.name
