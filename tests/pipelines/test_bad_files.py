"""Data, teachers and checkpoints that are missing, damaged or foreign; a disk that is full."""

import json
import os
import pickle
import shutil

import pytest
import torch
import yaml

from ofq_core import checkpoints
from ofq_core.distributed import World
from ofq_core.errors import DataError
from pipelines import fit, training
from pipelines.params import load_study
from pipelines.training import Inputs

QAT = "pipelines.qat"
CELL = ("pipelines.grid", "--method", "ofq", "--bits", "2", "--seed", "0")


class Bomb:
    """A pickle that makes a folder when it is loaded the unsafe way."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


class CutOff(BaseException):
    pass


class DyingObserver:
    """Takes the place of the progress bar and ends the run in its second epoch."""

    def __init__(self, stage):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def __call__(self, event):
        if event.epoch == 1:
            raise CutOff


@pytest.fixture(scope="session")
def interrupted_run(trained, torch_as_before):
    """A folder in which the stage `qat` was cut off after its first checkpoint."""
    folder = shutil.copytree(trained, trained.parent / "interrupted")
    with pytest.MonkeyPatch.context() as patch, torch_as_before():
        patch.chdir(folder)
        patch.setattr(training, "ProgressBar", DyingObserver)
        inputs = Inputs(folder / "data/digits", folder / "results/teacher/teacher.pt")
        with pytest.raises(CutOff):
            training.train_run(load_study().experiment(), inputs, "qat", lambda message: None)
    return folder


@pytest.fixture
def interrupted(interrupted_run, tmp_path):
    """A copy of it, and its checkpoint."""
    folder = shutil.copytree(interrupted_run, tmp_path / "work")
    (checkpoint,) = folder.glob(".partial/*/checkpoint.pt")
    return folder, checkpoint


@pytest.fixture(scope="session")
def experiment(trained, command):
    """A folder in which the same stage was never interrupted; not to be changed."""
    folder = shutil.copytree(trained, trained.parent / "undisturbed")
    done = command(folder, QAT)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def undisturbed(experiment):
    """Its student."""
    return (experiment / "results/experiment/student.pt").read_bytes()


@pytest.fixture
def refused(command, snapshot, one_message):
    """Run a command that must fail without touching a file.

    `one_message` sees to it that nothing else was said, such as that training has begun.
    """

    def run(folder, *words):
        before = snapshot(folder)
        message = one_message(command(folder, *words))
        assert snapshot(folder) == before
        return message

    return run


# A model without attention


@pytest.mark.parametrize("name", ["mixer_s16_224", "resnet18"])
@pytest.mark.parametrize("stage", ["teacher", "qat"])
def test_qkr_on_a_model_without_attention(name, stage, workspace, set_params, refused):
    set_params(workspace, model__name=name)
    message = refused(workspace, f"pipelines.{stage}")
    assert f"model.name = '{name}'" in message
    assert "xpected a vision transformer" in message


def test_unknown_model(workspace, set_params, refused):
    set_params(workspace, model__name="deit_tiny_distiled_patch16_224")
    message = refused(workspace, "pipelines.teacher")
    assert "did you mean 'deit_tiny_distilled_patch16_224'?" in message


# Data


@pytest.mark.parametrize("words", [("pipelines.teacher",), (QAT,), CELL], ids=lambda w: w[0])
def test_missing_data_directory(words, workspace, refused):
    shutil.rmtree(workspace / "data")
    message = refused(workspace, *words)
    assert message == (
        "data directory data/digits: no manifest.json there; run `dvc repro prepare`"
    )


def test_changed_data(workspace, refused):
    path = workspace / "data/digits/arrays.npz"
    path.write_bytes(path.read_bytes()[:-1])
    assert "data/digits/arrays.npz has sha256" in refused(workspace, QAT)


def test_impossible_split(workspace, set_params, refused):
    set_params(workspace, data__subset=12)
    assert "data.subset = 12: cannot split" in refused(workspace, "pipelines.prepare")


# A study of which one run cannot be

TEACHER, CEILING = ("pipelines.teacher",), ("pipelines.full_precision", "--seed", "0")
TOO_LARGE = "= 196, but there are only 195 training images in an epoch: expected at most as many"


def by_bits(*sizes):
    """Settings of a recipe whose batch has these sizes at 2, 3, ... bits."""
    own = {bits: {"batch_size": size} for bits, size in enumerate(sizes, 2)}
    return {"recipe__batch_size": None, "recipe__by_bits": own}


# Of cells that no experiment needs.
CELLS = {
    "another bit width": (
        {"grid__bits": [2, 3], **by_bits(64, 196, 64)},
        f"recipe.by_bits.3.batch_size {TOO_LARGE}",
    ),
    "rivals": (
        {"grid__rivals": {"methods": ["pact"], "bits": [4], "seeds": [0]}, **by_bits(64, 64, 196)},
        f"recipe.by_bits.4.batch_size {TOO_LARGE}",
    ),
}
MISFITS = {
    "students": ({"recipe__batch_size": 196}, f"recipe.batch_size {TOO_LARGE}"),
    "teacher": ({"teacher__recipe__batch_size": 196}, f"teacher.recipe.batch_size {TOO_LARGE}"),
    "classes": ({"model__num_classes": 7}, "model.num_classes = 7, but the data has 10 classes"),
    "size": (
        {"model__img_size": 16},
        "model.img_size = 16, model.in_chans = 1: the model takes images of shape (1, 16, 16), the "
        "data has (1, 8, 8) (channels, height, width)",
    ),
    "size that timm decides": (
        {"model__img_size": None},
        "model.img_size = None, model.in_chans = 1: the model takes images of shape (1, 224, 224), "
        "the data has (1, 8, 8) (channels, height, width)",
    ),
    "channels": (
        {"model__in_chans": 3},
        "model.img_size = 8, model.in_chans = 3: the model takes images of shape (3, 8, 8), the "
        "data has (1, 8, 8) (channels, height, width)",
    ),
    "quantization": (
        {"model__name": "vit_small_patch16_18x2_224"},
        "model.name = 'vit_small_patch16_18x2_224' cannot be quantized: VisionTransformer has no "
        "attention blocks: quantization (and quant.qkr) needs a timm vision transformer or Swin "
        "transformer",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MISFITS.values(), ids=MISFITS)
def test_study_that_does_not_fit_the_data(changes, message, workspace, set_params, refused):
    """Before anything is trained."""
    set_params(workspace, **changes)
    assert refused(workspace, *TEACHER) == message


@pytest.mark.parametrize(("changes", "message"), CELLS.values(), ids=CELLS)
def test_cells_that_do_not_fit_the_data(
    changes, message, workspace, set_params, refused, command, monkeypatch
):
    """Before the teacher is trained for them; an experiment has nothing to do with it."""
    set_params(workspace, **changes)
    assert refused(workspace, "pipelines.fit") == message
    monkeypatch.chdir(workspace)
    study = load_study()
    fit.check_runs(study, [study.experiment()], World())


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (CEILING, {"teacher__recipe__batch_size": 196}),
        (CELL, {"recipe__batch_size": 196}),
        (QAT, {"recipe__batch_size": 196}),
    ],
    ids=["ceiling", "cell", "experiment"],
)
def test_every_stage_that_trains_checks_its_run(words, changes, workspace, set_params, refused):
    """The settings may change when the teacher is there already."""
    set_params(workspace, **changes)
    (key,) = changes
    words = [words] if isinstance(words, str) else words
    assert refused(workspace, *words) == f"{key.replace('__', '.')} {TOO_LARGE}"


def test_batch_that_cannot_be_split_over_the_processes(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    study = load_study()
    runs = [study.full_precision(study.teacher.seed)]
    fit.check_runs(study, runs, World(0, 32))
    with pytest.raises(DataError, match=r"teacher\.recipe\.batch_size = 32: 32 images can"):
        fit.check_runs(study, runs, World(0, 33))


def test_batch_of_all_images_fits(workspace, set_params, command):
    set_params(workspace, recipe__batch_size=195, teacher__recipe__batch_size=195)
    done = command(workspace, *TEACHER)
    assert done.code == 0, done.err


def test_experiment_asks_for_itself_only(workspace, set_params, command):
    set_params(workspace, teacher__recipe__batch_size=196)
    assert command(workspace, QAT).code == 0


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"teacher__checkpoint": "nowhere.pt"}, "nowhere.pt: no such file"),
        ({"teacher__checkpoint": "params.yaml"}, "params.yaml ("),
        ({"teacher__pretrained": "timm"}, "model.num_classes = 10: the published weights of deit"),
    ],
    ids=["missing", "foreign", "of other classes"],
)
def test_ceiling_is_not_trained_for_a_teacher_that_does_not_fit(
    teacher, message, workspace, set_params, refused
):
    """DVC may come to it before it comes to the stage `teacher`."""
    set_params(workspace, **teacher)
    assert refused(workspace, *CEILING).startswith(message)


# The teacher


@pytest.mark.parametrize("words", [(QAT,), CELL], ids=lambda w: w[0])
def test_missing_teacher(words, workspace, refused):
    (workspace / "results/teacher/teacher.pt").unlink()
    message = refused(workspace, *words)
    assert message == ("teacher results/teacher/teacher.pt: no such file; run `dvc repro teacher`")


def test_teacher_of_another_width_on_training(workspace, set_params, refused):
    set_params(workspace, model__embed_dim=32)
    message = refused(workspace, QAT)
    assert "results/teacher/teacher.pt: this teacher does not fit the model: " in message
    assert "cls_token has shape (1, 1, 16), the model (1, 1, 32)" in message


def put(workspace, set_params, write):
    """Name a file that `write` makes as the teacher's checkpoint."""
    path = workspace / "given.pt"
    with path.open("wb") as file:
        write(file)
    set_params(workspace, teacher__checkpoint="given.pt")
    return path


def test_given_teacher_of_another_width(workspace, set_params, refused):
    shutil.copy(workspace / "results/teacher/teacher.pt", workspace / "given.pt")
    set_params(workspace, teacher__checkpoint="given.pt", model__embed_dim=32)
    message = refused(workspace, "pipelines.teacher")
    assert "given.pt: this teacher does not fit the model: " in message
    assert "and 18 more" in message


def test_given_teacher_that_is_missing(workspace, set_params, refused):
    set_params(workspace, teacher__checkpoint="nowhere.pt")
    assert refused(workspace, "pipelines.teacher") == "nowhere.pt: no such file"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda file: file.write(bytes(range(256)) * 20), "cannot be read"),
        (lambda file: file.write(b""), "(0 bytes) cannot be read"),
        (lambda file: torch.save([1, 2], file), "no weights in this file"),
        (lambda file: torch.save({"state_dict": {}, "epoch": 3}, file), "no weights in this file"),
    ],
    ids=["random", "empty", "list", "other-layout"],
)
def test_given_teacher_that_is_foreign(write, said, workspace, set_params, refused):
    put(workspace, set_params, write)
    message = refused(workspace, "pipelines.teacher")
    assert message.startswith("given.pt")
    assert said in message


@pytest.mark.parametrize("writer", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_given_teacher_with_code_in_it(writer, workspace, set_params, refused, tmp_path):
    put(workspace, set_params, lambda file: writer({"w": Bomb(tmp_path / "executed")}, file))
    assert "given.pt" in refused(workspace, "pipelines.teacher")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped"])
def test_given_teacher_that_fits_is_taken(wrapped, workspace, set_params, command):
    """The same checks let a good file through, and the students start from it."""
    weights = workspace / "results/teacher/teacher.pt"
    shutil.move(weights, workspace / "given.pt")
    given = torch.load(workspace / "given.pt", weights_only=True)
    said = "given.pt: weights of its key 'model', left out: model_ema"
    if wrapped:
        average = {key: value + 1 for key, value in given.items()}
        torch.save({"model": given, "model_ema": average}, workspace / "given.pt")
    set_params(workspace, teacher__checkpoint="given.pt")
    done = command(workspace, "pipelines.teacher")
    assert done.code == 0, done.err
    assert "training" not in done.err
    assert (said in done.out) == wrapped, "what was chosen, where there was a choice"
    taken = torch.load(weights, weights_only=True)
    assert all(torch.equal(given[key], taken[key]) for key in given)
    metrics = json.loads((workspace / "results/teacher/metrics.json").read_text())
    assert metrics["source"] == "given.pt"
    assert metrics["n_images"] == 75
    assert not list(workspace.glob(".partial/*"))


# Classes in another order

SWAPPED = [*"0123456789"][::-1]


def swap_classes(folder):
    """As if the weights beside it came from data whose classes are in another order."""
    path = folder / "env.json"
    content = json.loads(path.read_text())
    assert content["class_names"] == SWAPPED[::-1]
    path.write_text(json.dumps(content | {"class_names": SWAPPED}))


@pytest.mark.parametrize("words", [(QAT,), CELL], ids=lambda words: words[0])
def test_teacher_of_other_classes(words, workspace, refused):
    """DVC would train it anew; a stage by itself must see it."""
    swap_classes(workspace / "results/teacher")
    assert refused(workspace, *words) == (
        "data/digits: class 0 is '0', and results/teacher/teacher.pt was trained with '9' there, "
        "the same classes in another order"
    )


def test_student_of_other_classes(workspace, command, refused):
    assert command(workspace, QAT).code == 0
    swap_classes(workspace / "results/experiment")
    message = refused(workspace, "pipelines.evaluate")
    assert "class 0 is '0', and results/experiment/student.pt was trained with '9'" in message


def test_given_teacher_of_other_classes(workspace, set_params, refused, command):
    shutil.copytree(workspace / "results/teacher", workspace / "given")
    swap_classes(workspace / "given")
    set_params(workspace, teacher__checkpoint="given/teacher.pt")
    assert "given/teacher.pt was trained with '9'" in refused(workspace, *TEACHER)
    (workspace / "given/env.json").unlink()
    done = command(workspace, *TEACHER)
    assert done.code == 0, done.err
    note = "the order of the classes was not checked: given/teacher.pt does not say their names"
    assert note in done.out


def test_given_teacher_of_another_split(workspace, set_params, refused):
    """It was trained on some of the test images."""
    shutil.copytree(workspace / "results/teacher", workspace / "given")
    path = workspace / "given/settings.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["data"]["split_seed"] = 7
    path.write_text(yaml.safe_dump(settings))
    # It knows the hash of the settings.
    (workspace / "given/env.json").unlink()
    set_params(workspace, teacher__checkpoint="given/teacher.pt")
    assert (
        "teacher.checkpoint = 'given/teacher.pt' is of a run with data.split_seed = 7, and here it "
        "is 0" in refused(workspace, *TEACHER)
    )


# Checkpoints of a run that was cut off


def test_good_checkpoint_goes_on(interrupted, command, undisturbed):
    """What follows damages a checkpoint that works."""
    folder, _ = interrupted
    done = command(folder, QAT)
    assert done.code == 0, done.err
    assert (
        "ofq-w2a2-s0: cut off before, going on after epoch 1, step 0 from .partial/qat" in done.out
    )
    assert (folder / "results/experiment/student.pt").read_bytes() == undisturbed
    assert not list(folder.glob(".partial/*"))


def damage(checkpoint, kind, marker):
    if kind == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-5000])
    elif kind == "random":
        checkpoint.write_bytes(bytes(range(256)) * 20)
    elif kind == "empty":
        checkpoint.write_bytes(b"")
    elif kind == "foreign":
        torch.save({"state_dict": {}, "epoch": 3}, checkpoint)
    elif kind == "code":
        state = torch.load(checkpoint, weights_only=True)
        torch.save(state | {"progress": Bomb(marker)}, checkpoint)
    elif kind == "other settings":
        state = torch.load(checkpoint, weights_only=True)
        torch.save(state | {"settings_sha256": "0" * 64}, checkpoint)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("truncated", "cannot be read: truncated, damaged, or no file of weights"),
        ("random", "cannot be read: truncated, damaged, or no file of weights"),
        ("empty", "(0 bytes) cannot be read"),
        ("foreign", "not a training checkpoint of this suite"),
        ("code", "nothing of it was executed"),
        ("other settings", "belongs to a run with other settings"),
    ],
)
def test_bad_checkpoint(kind, part, interrupted, command, undisturbed, tmp_path):
    """It is named and put aside, the run starts afresh, and ends as if nothing had been."""
    folder, checkpoint = interrupted
    marker = tmp_path / "executed"
    damage(checkpoint, kind, marker)
    done = command(folder, QAT)
    assert done.code == 0, done.err
    place = checkpoint.relative_to(folder)
    (said,) = [line for line in done.out.splitlines() if str(place) in line]
    assert said.startswith(f"ofq-w2a2-s0: {place}")
    assert part in said
    assert said.endswith(
        f"; not used, kept as {place.with_suffix('.unusable')} until the run is done"
    )
    assert "ofq-w2a2-s0: no other checkpoint is there, starting afresh" in done.out
    assert not marker.exists()
    assert (folder / "results/experiment/student.pt").read_bytes() == undisturbed


# A full disk: no file of the process may grow beyond a limit, so the write really fails


def test_disk_full_at_the_first_checkpoint(workspace, command, snapshot, undisturbed):
    before = snapshot(workspace)
    done = command(workspace, QAT, limit=20_000)
    assert done.code == 1
    (message,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "cannot write .partial/qat-ofq-w2a2-s0-" in message
    assert message.endswith("/checkpoint.pt: File too large.")
    assert "Traceback" not in done.err
    left = {path for path in snapshot(workspace) if path not in before}
    assert all((workspace / path).is_dir() for path in left), "no half-written file"
    assert command(workspace, QAT).code == 0, "with room again it works"
    assert (workspace / "results/experiment/student.pt").read_bytes() == undisturbed


def test_disk_full_at_a_later_checkpoint(interrupted, command, snapshot, undisturbed):
    """The previous checkpoint is intact, and the run goes on from it once there is room."""
    folder, _ = interrupted
    before = snapshot(folder)
    done = command(folder, QAT, limit=20_000)
    assert done.code == 1
    (message,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert message.endswith("File too large. The file that was there before is untouched.")
    assert "Traceback" not in done.err
    assert snapshot(folder) == before
    done = command(folder, QAT)
    assert (done.code, "going on after epoch 1" in done.out) == (0, True)
    assert (folder / "results/experiment/student.pt").read_bytes() == undisturbed


def test_disk_full_keeps_the_published_result(workspace, command, snapshot):
    """What an earlier run has published goes only when the new result is whole."""
    assert command(workspace, *CELL).code == 0
    before = snapshot(workspace / "results")
    done = command(workspace, *CELL, limit=20_000)
    assert done.code == 1
    assert snapshot(workspace / "results") == before


def test_disk_full_while_preparing(workspace, command, snapshot, one_message):
    before = snapshot(workspace)
    done = command(workspace, "pipelines.prepare", limit=20_000)
    assert one_message(done) == "data/digits/arrays.npz: File too large"
    assert snapshot(workspace) == before


# Evaluation


def test_damaged_student(interrupted, command, refused):
    folder, _ = interrupted
    assert command(folder, QAT).code == 0
    student = folder / "results/experiment/student.pt"
    student.write_bytes(student.read_bytes()[:1000])
    assert "student.pt (1000 bytes) cannot be read" in refused(folder, "pipelines.evaluate")
    student.unlink()
    message = refused(folder, "pipelines.evaluate")
    assert message == "results/experiment/student.pt: no such file"


def test_nothing_trained_yet(workspace, refused):
    message = refused(workspace, "pipelines.evaluate")
    assert message == ("results/experiment: no settings.yaml there; train first (`dvc repro qat`)")


TRAINING = "results/experiment/training.json"
REFERENCE = "results/teacher/reference.json"


def with_key(key, value):
    def change(text):
        return json.dumps({**json.loads(text), key: value})

    return change


def without(key):
    def change(text):
        return json.dumps({k: v for k, v in json.loads(text).items() if k != key})

    return change


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        (TRAINING, lambda text: text[:-30], " cannot be read: "),
        (TRAINING, lambda text: "[]", " cannot be read: expected a JSON object"),
        (TRAINING, lambda text: "\udcff", " cannot be read: "),
        (TRAINING, with_key("val_top1", float("nan")), " cannot be read: val_top1 = nan, expected"),
        (TRAINING, without("oscillation"), " cannot be read: no oscillation; train again"),
        (TRAINING, with_key("settings_sha256", "0" * 64), " is of a run with other settings"),
        (TRAINING, with_key("settings_sha256", None), " is of a run with other settings"),
        (REFERENCE, lambda text: text[:-3], " cannot be read: "),
        (REFERENCE, without("top1"), ": top1 = None, expected a percentage"),
        (REFERENCE, with_key("top1", "95"), ": top1 = '95', expected a percentage"),
        (REFERENCE, with_key("top1", True), ": top1 = True, expected a percentage"),
        (REFERENCE, with_key("top1", 9500), ": top1 = 9500, expected a percentage"),
        (REFERENCE, with_key("top1", float("inf")), " cannot be read: top1 = inf, expected"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_results_of_an_earlier_stage(file, change, expected, experiment, refused, tmp_path):
    folder = shutil.copytree(experiment, tmp_path / "work")
    text = (folder / file).read_text()
    (folder / file).write_bytes(change(text).encode(errors="surrogateescape"))
    assert refused(folder, "pipelines.evaluate").startswith(f"{file}{expected}")


def test_a_damaged_reference_is_refused_before_training(workspace, refused):
    (workspace / REFERENCE).write_text('{"top1": null}')
    assert refused(workspace, *CELL).startswith(f"{REFERENCE}: top1 = None, expected a percentage")


def test_a_student_whose_logits_are_not_finite(experiment, refused, tmp_path):
    """All of its weights are finite."""
    folder = shutil.copytree(experiment, tmp_path / "work")
    student = folder / "results/experiment/student.pt"
    state = torch.load(student, weights_only=True)
    biases = {name: torch.full_like(state[name], 3e38) for name in ("head.bias", "head_dist.bias")}
    checkpoints.save(student, {**state, **biases})
    (folder / "results/experiment/env.json").unlink()
    message = refused(folder, "pipelines.evaluate")
    expected = "results/experiment/student.pt: 75 of 75 test images get logits that are NaN or"
    assert message.startswith(expected)
