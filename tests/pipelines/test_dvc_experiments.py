"""`dvc exp`: dialling a setting reruns what depends on it and nothing else; mistakes; kill -9."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image

from ofq_core.models import build_model
from ofq_core.settings import ModelSettings
from tests.patience import PATIENCE

pytestmark = pytest.mark.pipeline

SMOKE = ("-S", "preset=smoke", "-S", "grid.seeds=[0]")


CHECKS = ["check@settings", "check@grid"]


def ran(log):
    return re.findall(r"^Running stage '(.+)':$", log, re.MULTILINE)


@pytest.fixture(scope="module")
def dialled(reproduced, shell, tmp_path_factory):
    """A clone in which one experiment with 3 bits has run; not to be changed."""
    folder = tmp_path_factory.mktemp("dialled") / "clone"
    shutil.copytree(reproduced.folder, folder, symlinks=True)
    done = shell(folder, "dvc", "exp", "run", *SMOKE, "-S", "quant.wbits=3")
    assert done.code == 0, done.out
    return SimpleNamespace(folder=folder, log=done.out)


@pytest.fixture(scope="module")
def queue(dialled, shell, tmp_path_factory):
    """A copy of it in which the queue has begun to work; it goes on beside the tests below."""
    folder = tmp_path_factory.mktemp("queue") / "clone"
    shutil.copytree(dialled.folder, folder, symlinks=True)
    done = shell(folder, "dvc", "exp", "run", "--queue", *SMOKE, "-S", "quant.wbits=3,4")
    assert done.code == 0, done.out
    names = re.findall(r"Queued experiment '(.+?)'", done.out)
    assert shell(folder, "dvc", "queue", "start").code == 0
    yield SimpleNamespace(folder=folder, names=names)
    shell(folder, "dvc", "queue", "stop", "--kill")


def test_a_list_of_values_is_queued(queue):
    assert len(queue.names) == 2


def test_only_the_experiment_runs(dialled):
    """No cell of the grid, no teacher, no table."""
    assert ran(dialled.log) == [*CHECKS, "qat", "evaluate"]
    for stage in ("teacher", "full_precision@0", "grid@lsq-2-0", "grid@ofq-2-0", "tables"):
        assert f"Stage '{stage}' didn't change, skipping" in dialled.log
    settings = (dialled.folder / "results/experiment/settings.yaml").read_text()
    assert "wbits: 3\n" in settings
    assert "abits: 3\n" in settings


def test_params_diff(dialled, shell):
    done = shell(dialled.folder, "dvc", "params", "diff", "--json")
    assert json.loads(done.out) == {
        "params.yaml": {
            "quant.wbits": {"old": 2, "new": 3, "diff": 1},
            "quant.abits": {"old": 2, "new": 3, "diff": 1},
        }
    }


def test_metrics_diff(dialled, shell):
    done = shell(dialled.folder, "dvc", "metrics", "diff", "--json")
    changed = json.loads(done.out)
    assert list(changed) == ["results/experiment/metrics.json"], "the table is as it was"
    # One more bit for each of 2048 low-bit weights.
    assert changed["results/experiment/metrics.json"]["cost.model_bytes"]["diff"] == 2048 // 8
    assert "settings_sha256" in changed["results/experiment/metrics.json"]


def experiments(folder, shell):
    done = shell(folder, "dvc", "exp", "show", "--csv")
    assert done.code == 0, done.out
    rows = csv.DictReader(io.StringIO(done.out))
    return [row for row in rows if row["Experiment"] and row["rev"] != "workspace"]


def test_exp_show(dialled, shell):
    rows = experiments(dialled.folder, shell)
    (row,) = [row for row in rows if row["quant.wbits"] == "3"]
    metrics = json.loads((dialled.folder / "results/experiment/metrics.json").read_text())
    assert float(row["top1"]) == pytest.approx(metrics["top1"])
    assert float(row["oscillation.share"]) == pytest.approx(metrics["oscillation"]["share"])
    assert row["recipe.lr"]


def test_plots_compare_with_the_commit(dialled, shell):
    done = shell(dialled.folder, "dvc", "plots", "diff", "HEAD")
    assert done.code == 0, done.out
    page = (dialled.folder / "dvc_plots/index.html").read_text()
    assert '"rev": "HEAD"' in page
    assert '"rev": "workspace"' in page


# In a copy of the repository


def test_a_copy_finds_what_the_user_named(copy_working_tree, shell, tmp_path):
    """Images in datasets/ and weights beside the code, neither of them in git."""
    folder = copy_working_tree(tmp_path / "clone")
    for split, count, blue in (("train", 8, 9), ("val", 2, 99)):
        for label in range(4):
            place = folder / "datasets/imagenet" / split / f"n{label}"
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 36), (60 * label, 20 * number, blue)).save(
                    place / f"{number}.png"
                )
    sizes = [f"model.{size}" for size in ("patch_size=8", "embed_dim=16", "depth=1", "num_heads=2")]
    sizes += ["model.num_classes=4", "model.img_size=32", "data.size=32", "data.val_share=0.25"]
    sizes.append("recipe.batch_size=8")
    weights = ["teacher.pretrained=null", "teacher.checkpoint=given/teacher.pt"]

    def run(*words):
        done = shell(folder, *words, OFQ_WORKERS="0")
        assert done.code == 0, done.out
        return done.out

    overrides = ["preset=imagenet_deit_small", *sizes, *weights]
    run("python", "-m", "pipelines.params", *overrides)
    (folder / "given").mkdir()
    (folder / "given/.gitignore").write_text("*.pt\n")
    settings = yaml.safe_load((folder / "params.yaml").read_text())["model"]
    teacher = build_model(ModelSettings(**settings), 3)
    torch.save(teacher.state_dict(), folder / "given/teacher.pt")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Working tree"]):
        run("git", *words)
    changes = [word for override in overrides for word in ("-S", override)]
    said = run("dvc", "exp", "run", "--temp", *changes, "teacher")
    assert "folder -> data/imagenet: train 24, val 8, test 8 images" in said
    assert "% on 8 test images" in said
    assert "datasets" not in run("git", "status", "--porcelain", "-uall")


# Mistakes


@pytest.fixture
def refused(clone, shell, snapshot):
    """Run a command that must fail, train nothing and lose no result."""

    def run(*words):
        results, tables = snapshot(clone / "results"), snapshot(clone / "tables/rendered")
        done = shell(clone, *words)
        assert done.code != 0
        assert "Traceback" not in done.out
        assert ran(done.out) in ([], CHECKS[:1])
        assert "training" not in done.out
        assert snapshot(clone / "results") == results
        assert snapshot(clone / "tables/rendered") == tables
        return done.out

    return run


def test_misspelt_key(refused, clone, shell):
    """Hydra refuses it: nothing of the repository has changed."""
    said = refused("dvc", "exp", "run", *SMOKE, "-S", "quant.wbit=3")
    assert "Could not override 'quant.wbit'" in said
    assert "Key 'wbit' is not in struct" in said
    assert ran(said) == []
    assert shell(clone, "git", "status", "--porcelain").out == ""


def test_unknown_preset(refused, clone):
    said = refused("dvc", "exp", "run", "-S", "preset=smoek")
    assert "Could not find 'preset/smoek'" in said
    options = said.split("Available options in 'preset':")[1].split()
    presets = sorted(path.stem for path in (clone / "conf/preset").glob("*.yaml"))
    assert options[: len(presets)] == presets


def test_value_that_is_not_allowed(refused):
    """The first stage refuses it, in the same words as every command."""
    said = refused("dvc", "exp", "run", *SMOKE, "-S", "quant.wbits=9")
    assert "error: params.yaml: quant.wbits = 9: expected 2, 3, 4, 5, 6, 7, 8 or 32" in said


def test_no_seeds(refused, clone, set_params):
    """An empty list would be a grid of no cells, which DVC takes without a word."""
    set_params(clone, grid__seeds=[])
    said = refused("dvc", "repro")
    assert "error: params.yaml: grid.seeds = []" in said
    assert "failed to reproduce 'check@settings'" in said


def test_no_full_precision_runs(clone, shell):
    """A teacher that is not trained here: the stage has no cells, and the table says so."""
    words = ["preset=smoke", "grid.seeds=[0]", "grid.full_precision_seeds=[]"]
    assert shell(clone, "python", "-m", "pipelines.params", *words).code == 0
    listed = shell(clone, "dvc", "stage", "list", "--name-only").out.split()
    assert "grid@ofq-2-0" in listed
    assert not [name for name in listed if name.startswith("full_precision")]
    done = shell(clone, "dvc", "repro")
    assert done.code == 0, done.out
    table = (clone / "tables/rendered/ablation.md").read_text()
    assert "Missing cells" in table
    assert "Full precision W32A32" in table.split("Missing cells")[1]
    assert shell(clone, "dvc", "status").out.startswith("Data and pipelines are up to date")


# Interruption


def test_a_killed_stage_goes_on(clone, shell, command, clone_environment):
    """kill -9 of `dvc repro` and all below it in mid-training; then `dvc repro` again."""
    done = shell(
        clone,
        "python",
        "-m",
        "pipelines.params",
        "preset=smoke",
        "grid.seeds=[0]",
        "recipe.epochs=40",
    )
    assert done.code == 0, done.out
    undisturbed = shutil.copytree(clone, clone.parent / "undisturbed", symlinks=True)
    with subprocess.Popen(
        ["dvc", "repro", "-s", "qat"],
        cwd=clone,
        env=clone_environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while not list(clone.glob(".partial/*/checkpoint.pt")):
            assert process.poll() is None, "the stage ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (clone / "results/experiment/student.pt").exists(), "nothing half-trained"
    again = shell(clone, "dvc", "repro", "-s", "qat")
    assert again.code == 0, again.out
    went_on = re.search(r"cut off before, going on after epoch (\d+), step \d+ from", again.out)
    assert went_on is not None, again.out
    assert 1 <= int(went_on.group(1)) < 41
    assert command(undisturbed, "pipelines.qat").code == 0
    students = [root / "results/experiment/student.pt" for root in (clone, undisturbed)]
    assert students[0].read_bytes() == students[1].read_bytes()
    assert not list(clone.glob(".partial/*"))


# The queue


@pytest.fixture(scope="module")
def queued(queue, shell):
    """The clone after both experiments went through the queue."""
    deadline = time.monotonic() + PATIENCE
    while True:
        status = shell(queue.folder, "dvc", "queue", "status").out
        # Between two states an experiment may be in none.
        if all(re.search(rf"{name}\s.*(Success|Failed)", status) for name in queue.names):
            break
        assert time.monotonic() < deadline, status
        time.sleep(1)
    logs = {name: shell(queue.folder, "dvc", "queue", "logs", name).out for name in queue.names}
    return SimpleNamespace(folder=queue.folder, names=queue.names, status=status, logs=logs)


def test_queued_experiments_succeed(queued, shell):
    for name in queued.names:
        assert re.search(rf"{name}\s.*Success", queued.status), queued.status
    rows = {row["Experiment"]: row for row in experiments(queued.folder, shell)}
    assert sorted(rows[name]["quant.wbits"] for name in queued.names) == ["3", "4"]
    assert all(rows[name]["top1"] for name in queued.names)


def test_the_queue_trains_no_cell_and_nothing_twice(queued):
    """4 bits train once; the 3 bits of before come out of the run cache."""
    three, four = (queued.logs[name] for name in queued.names)
    assert ran(four) == [*CHECKS, "qat", "evaluate"]
    assert "qat" not in ran(three)
    for log in (three, four):
        assert "Stage 'grid@ofq-2-0' didn't change, skipping" in log


def test_the_queue_leaves_the_workspace_alone(queued):
    settings = (queued.folder / "results/experiment/settings.yaml").read_text()
    assert "wbits: 3\n" in settings, "what was dialled before is still there"
