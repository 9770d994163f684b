"""Data, teachers and checkpoints that are missing, damaged or foreign; a disk that is full."""

import json
import os
import pickle
import shutil

import pytest
import torch

from pipelines import training
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
def undisturbed(trained, command):
    """The student of the same stage, never interrupted."""
    folder = shutil.copytree(trained, trained.parent / "undisturbed")
    done = command(folder, QAT)
    assert done.code == 0, done.err
    return (folder / "results/experiment/student.pt").read_bytes()


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


def test_data_of_other_classes(workspace, set_params, refused):
    set_params(workspace, model__num_classes=7)
    message = refused(workspace, "pipelines.teacher")
    assert message == "model.num_classes = 7, but the data has 10 classes"


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
def test_bad_checkpoint(kind, part, interrupted, refused, tmp_path):
    folder, checkpoint = interrupted
    marker = tmp_path / "executed"
    damage(checkpoint, kind, marker)
    message = refused(folder, QAT)
    assert message.startswith(f"{checkpoint.relative_to(folder)}")
    assert part in message
    assert message.endswith("delete it to start afresh")
    assert not marker.exists()


def test_advice_to_delete_it_is_good(interrupted, command, undisturbed):
    folder, checkpoint = interrupted
    damage(checkpoint, "truncated", None)
    checkpoint.unlink()
    assert command(folder, QAT).code == 0
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
