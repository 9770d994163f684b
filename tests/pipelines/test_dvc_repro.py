"""`dvc repro` of a tiny study in a fresh clone, from data to tables; what can be asked of it."""

import csv
import json
import re
import sqlite3

import pytest
import torch
import yaml

pytestmark = pytest.mark.pipeline

STAGES = [
    "check@settings",
    "check@grid",
    "prepare",
    "fit",
    "teacher",
    "full_precision@0",
    "grid@lsq-2-0",
    "grid@ofq-2-0",
    "rivals@rtn-4-0",
    "qat",
    "evaluate",
    "noise",
    "tables",
]
RUNS = [
    "results/smoke/fp-w32a32-s0",
    "results/smoke/lsq-w2a2-s0",
    "results/smoke/ofq-w2a2-s0",
    "results/experiment",
]
METRICS = {
    "top1",
    "top5",
    "loss",
    "n_images",
    "n_correct",
    "val_top1",
    "epoch_selected",
    "oscillation",
    "cost",
    "settings_sha256",
}
COST = {
    "train_seconds",
    "images_per_second",
    "peak_memory_bytes",
    "model_bytes",
    "macs",
    "bit_operations",
    "qkr_extra_macs",
    "qkr_extra_weights",
}
OSCILLATION = {
    *("share", "mean_frequency", "flip_rate", "scale_drift", "in_band_0.005"),
    *("flips_weight", "flips_scale", "flips_both", "gradient_flips", "code_entropy"),
    *("dead_share", "clipped_share", "path_ratio", "before_last_phase"),
}


@pytest.fixture
def folder(reproduced):
    return reproduced.folder


def ran(log):
    return re.findall(r"^Running stage '(.+)':$", log, re.MULTILINE)


def load(path):
    return json.loads(path.read_text())


def test_every_stage_ran_once_in_an_order_that_works(reproduced):
    stages = ran(reproduced.log)
    assert sorted(stages) == sorted(STAGES)
    order = {name: index for index, name in enumerate(stages)}
    assert all(order[name] < order["prepare"] for name in STAGES[:2]), "before anything is made"
    assert order["prepare"] < order["fit"] < order["teacher"] < order["grid@ofq-2-0"]
    assert order["full_precision@0"] < order["tables"]
    assert order["grid@lsq-2-0"] < order["tables"]
    assert order["qat"] < order["evaluate"]


def test_progress_was_visible(reproduced):
    """Not a terminal: one line when training begins and one when it ends."""
    for name in ("teacher fp-w32a32-s1000", "grid lsq-w2a2-s0", "qat ofq-w2a2-s0"):
        assert f"{name}: training" in reproduced.log
        assert re.search(rf"{name}: trained in \d+ s", reproduced.log)


def test_every_output_of_every_stage_is_there(folder):
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    assert sorted(lock["stages"]) == sorted(STAGES)
    for stage in lock["stages"].values():
        for out in stage["outs"]:
            assert (folder / out["path"]).exists(), out["path"]
    assert not list(folder.glob(".partial/*")), "private folders are gone"


@pytest.mark.parametrize("run", RUNS)
def test_a_run_folder_is_complete(run, folder):
    path = folder / run
    names = {file.name for file in path.iterdir()} - {"training.json"}  # of the stage `qat`
    assert names == {
        "metrics.json",
        "history.csv",
        "oscillation.json",
        "histogram.json",
        "trajectories.json",
        "settings.yaml",
        "env.json",
        "student.pt",
    }
    metrics = load(path / "metrics.json")
    assert metrics.keys() >= METRICS
    assert metrics["cost"].keys() >= COST
    assert (metrics["n_images"], type(metrics["n_correct"])) == (75, int)
    assert metrics["top1"] == pytest.approx(100 * metrics["n_correct"] / 75)
    full = "fp-" in run
    assert (metrics["oscillation"] is None) == full
    assert full or metrics["oscillation"].keys() >= OSCILLATION
    layers = load(path / "oscillation.json")
    assert bool(layers) != full
    env = load(path / "env.json")
    assert env["versions"]["torch"] == torch.__version__
    assert re.fullmatch("[0-9a-f]{40}", env["git"]["commit"])
    assert env["device"] == "cpu"
    assert (env["teacher_sha256"] is None) == full
    assert {"manifest_sha256", "slurm_job", "wall_seconds"} <= env.keys()
    state = torch.load(path / "student.pt", weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in state.values())


@pytest.mark.parametrize("run", RUNS)
def test_history_has_one_row_an_epoch(run, folder):
    settings = yaml.safe_load((folder / run / "settings.yaml").read_text())
    epochs = settings["recipe"]["epochs"] + settings["recipe"]["cga_epochs"]
    with (folder / run / "history.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["epoch"]) for row in rows] == list(range(epochs))
    for column in ("train_loss", "val_loss", "val_top1", "lr", "seconds", "images_per_second"):
        assert all(float(row[column]) >= 0 for row in rows), column
    selected = load(folder / run / "metrics.json")["epoch_selected"]
    assert float(rows[selected]["val_top1"]) == load(folder / run / "metrics.json")["val_top1"]


def test_the_experiment_is_the_cell_of_the_same_settings(folder):
    """Two stages, one function: bit for bit the same student."""
    cell, experiment = (folder / run / "student.pt" for run in (RUNS[2], RUNS[3]))
    assert cell.read_bytes() == experiment.read_bytes()
    hashes = {load(folder / run / "metrics.json")["settings_sha256"] for run in RUNS[2:]}
    assert len(hashes) == 1


def test_the_table_shows_the_runs(folder):
    text = (folder / "tables/rendered/ablation.md").read_text()
    for run in RUNS[:3]:
        assert f"{load(folder / run / 'metrics.json')['top1']:.2f}" in text
    kinds = ("ablation.html", "ablation.tex", "ablation.csv", "ablation.json")
    for name in (*kinds, "index.html", "methods.md", "noise.csv", "figures/toy_regression.svg"):
        assert (folder / "tables/rendered" / name).stat().st_size > 0


def test_a_second_repro_does_nothing(folder, shell):
    done = shell(folder, "dvc", "repro")
    assert done.code == 0
    assert ran(done.out) == []
    assert "Data and pipelines are up to date." in done.out
    assert shell(folder, "git", "status", "--porcelain").out == ""


def test_one_cell_can_be_run_alone(clone, shell):
    """The same bits as in the whole study; and it is in MLflow when DVC returns."""
    before = (clone / RUNS[1] / "student.pt").read_bytes()
    done = shell(clone, "dvc", "repro", "-f", "-s", "grid@lsq-2-0", OFQ_TRACKING="on")
    assert done.code == 0, done.out
    assert ran(done.out) == ["grid@lsq-2-0"]
    assert (clone / RUNS[1] / "student.pt").read_bytes() == before
    # Read without mlflow, whose import takes longer than the cell.
    store = sqlite3.connect(f"file:{clone / 'mlflow.db'}?mode=ro", uri=True)
    runs = store.execute("select name from runs where status = 'FINISHED'").fetchall()
    experiments = store.execute("select name from experiments").fetchall()
    store.close()
    assert sorted(name for (name,) in runs) == ["LSQ", "lsq-w2a2-s0"]
    assert ("smoke",) in experiments
    assert (clone / "mlruns").is_dir()


def without_lists(value):
    """What DVC shows of a file: every number, but no list (counts of every class, names)."""
    if not isinstance(value, dict):
        return value
    return {key: without_lists(v) for key, v in value.items() if not isinstance(v, list)}


def test_metrics_show(folder, shell):
    done = shell(folder, "dvc", "metrics", "show", "--json")
    values = json.loads(done.out)[""]["data"]
    experiment = values["results/experiment/metrics.json"]["data"]
    assert experiment == without_lists(load(folder / "results/experiment/metrics.json"))
    table = values["tables/rendered/ablation.json"]["data"]
    cell = load(folder / "results/smoke/lsq-w2a2-s0/metrics.json")
    assert table["lsq"]["w2a2"]["top1_mean"] == pytest.approx(cell["top1"])


def test_dag(folder, shell):
    edges = shell(folder, "dvc", "dag", "--mermaid").out
    nodes = dict(re.findall(r'(node\d+)\["(.+?)"\]', edges))
    assert sorted(nodes.values()) == sorted(STAGES)
    pairs = {(nodes[a], nodes[b]) for a, b in re.findall(r"(node\d+)-->(node\d+)", edges)}
    assert {
        ("check@settings", "prepare"),
        ("check@grid", "fit"),
        ("fit", "grid@ofq-2-0"),
        ("fit", "rivals@rtn-4-0"),
        ("fit", "full_precision@0"),
        ("prepare", "teacher"),
        ("teacher", "grid@ofq-2-0"),
        ("teacher", "qat"),
        ("qat", "evaluate"),
        ("grid@ofq-2-0", "noise"),
        ("rivals@rtn-4-0", "tables"),
        ("noise", "tables"),
    } <= pairs
    assert not {("check@grid", "qat"), ("fit", "qat"), ("fit", "teacher")} & pairs, "its own affair"
    assert ("qat", "tables") not in pairs, "dialling an experiment renders no table"
    assert not {pair for pair in pairs if pair[0] == "qat" and pair[1].startswith("grid")}
    assert "grid@lsq-2-0" in shell(folder, "dvc", "dag").out


def test_plots_show(clone, shell):
    done = shell(clone, "dvc", "plots", "show")
    assert done.code == 0, done.out
    page = (clone / "dvc_plots/index.html").read_text()
    plots = yaml.safe_load((clone / "dvc.yaml").read_text())["plots"]
    names = [name for plot in plots for name in plot]
    assert {"loss", "accuracy", "oscillation", "flips"} <= set(names)
    for plot in plots:
        for name, definition in plot.items():
            drawing = page.partition(f'<div id = "{name}">')[2].partition("<div id = ")[0]
            assert definition["title"] in drawing, f"{name} was not drawn"
            # Three epochs, and for each the numbers of the history.
            (columns,) = definition["y"].values()
            for column in [columns] if isinstance(columns, str) else columns:
                assert len(re.findall(rf'"{column}": "?[-0-9.]', drawing)) >= 3, column
    assert shell(clone, "git", "status", "--porcelain").out == "", "the page is ignored by git"
