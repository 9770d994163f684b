"""What the evaluation command refuses, in one line that says what would be right."""

import re
import shutil

import pytest
import torch
import yaml

from ofq_core import checkpoints, evaluate
from ofq_core.checkpoints import export_released, save_released
from ofq_core.checkpoints.subject import open_subject
from ofq_core.errors import CheckpointError, DataError, ModelError, OFQError, SettingsError
from ofq_core.models import build_model
from ofq_core.settings import ModelSettings
from tests.checkpoints.conftest import CLASSES, FULL


def test_quantized_reference_is_refused(run_folder, digits, run):
    folder, _ = run_folder()
    with pytest.raises(CheckpointError, match=r"is quantized \(statsq_qkr\)"):
        run(folder, "--data", digits, "--reference", folder)


def test_reference_that_does_not_fit(run_folder, digits, tmp_path, run):
    folder, _ = run_folder()
    checkpoints.save(tmp_path / "other.pt", {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="this reference does not fit the model"):
        run(folder, "--data", digits, "--reference", tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("key", "value"), [("split_seed", 1), ("test_share", 0.5), ("val_share", 0.2), ("subset", None)]
)
def test_digits_that_were_split_in_another_way(key, value, run_folder, digits, run):
    """Test images of one split are training images of the other."""
    folder, _ = run_folder()
    teacher, _ = run_folder(FULL, "teacher", "teacher.pt")
    change_data(teacher, key, value)
    with pytest.raises(DataError, match=rf"teacher.pt is of a run with data.{key} = {value}, and"):
        run(folder, "--data", digits, "--reference", teacher)
    change_data(folder, key, value)
    with pytest.raises(DataError, match=rf"data.{key} = {value}, but .* was prepared with"):
        run(folder, "--data", digits)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", [0.5] * 3),
        ("std", [0.5] * 3),
        ("crop_pct", 1.0),
        ("eval_interpolation", "bilinear"),
    ],
)
def test_reference_for_images_that_are_prepared_in_another_way(
    key, value, picture_run, class_folders, run
):
    folder = picture_run(CLASSES)
    teacher = shutil.copytree(folder, folder.with_name("teacher"))
    settings = yaml.safe_load((teacher / "settings.yaml").read_text())
    settings["quant"] = FULL
    (teacher / "settings.yaml").write_text(yaml.safe_dump(settings))
    model = build_model(ModelSettings(**settings["model"]), 0)
    checkpoints.save(teacher / "student.pt", model.state_dict())
    assert run(folder, "--images", class_folders, "--reference", teacher)["reference"]
    change_data(teacher, key, value)
    with pytest.raises(DataError, match=rf"student.pt is of a run with data.{key} = .*, and here"):
        run(folder, "--images", class_folders, "--reference", teacher)


def change_data(folder, key, value):
    path = folder / "settings.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["data"][key] = value
    path.write_text(yaml.safe_dump(settings))


def test_logits_that_are_not_finite(run_folder, digits, tmp_path, run):
    """Of the model or of its reference, which is named; all weights are finite, nothing is told."""
    folder, _ = run_folder()
    _, full = run_folder(FULL, "teacher", "teacher.pt", seed=2)
    overflow = {key: torch.full((10,), 3e38) for key in ("head.bias", "head_dist.bias")}
    bare = tmp_path / "bare.pt"
    checkpoints.save(bare, {**full.state_dict(), **overflow})
    with pytest.raises(ModelError) as error:
        run(folder, "--data", digits, "--reference", bare)
    expected = "75 of 75 test images get logits that are NaN or infinite, first in "
    assert str(error.value).startswith(f"{bare}: {expected}")
    student = folder / "student.pt"
    checkpoints.save(student, {**torch.load(student, weights_only=True), **overflow})
    with pytest.raises(ModelError) as error:
        run(folder, "--data", digits)
    assert str(error.value).startswith(f"{student}: {expected}")


def test_folder_without_settings(run_folder, digits, run):
    folder, _ = run_folder()
    (folder / "settings.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"no settings\.yaml beside student\.pt"):
        run(folder, "--data", digits)


def test_folder_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"no student\.pt and no teacher\.pt"):
        open_subject(tmp_path)


def test_damaged_settings(run_folder):
    folder, _ = run_folder()
    (folder / "settings.yaml").write_text("a: [")
    with pytest.raises(SettingsError, match=r"settings\.yaml: no valid YAML"):
        open_subject(folder)
    (folder / "settings.yaml").write_text("a: 1")
    with pytest.raises(SettingsError, match="unknown key"):
        open_subject(folder)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"embed_dim": 2**16}, "MiB, and the weights for it are 0.0 MiB"),
        ({"mlp_ratio": 1e17}, "a model of impossible size"),
        ({"img_size": 2**16}, "MiB, and the weights for it are"),
        ({"num_classes": 10**6}, "MiB, and the weights for it are"),
        ({"mlp_ratio": 1e9}, "MiB, and the weights for it are"),
        ({"depth": 1000}, "a model of 1000 blocks, and there are"),
        (
            {
                "name": "swin_tiny_patch4_window7_224",
                "depth": None,
                "num_heads": None,
                "img_size": 4000,
                "embed_dim": 1,
                "depths": [1],
                "heads_per_stage": [1],
                "window_size": 2000,
            },
            "MiB, and the weights for it are",
        ),
    ],
)
def test_settings_of_a_giant(sizes, said, run_folder):
    """Beside weights of a few kilobytes: refused before room is made for it."""
    folder, _ = run_folder()
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    settings["model"] |= sizes
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(CheckpointError, match=r"settings\.yaml: .*" + re.escape(said)):
        open_subject(folder)


def test_weights_of_another_model(run_folder):
    folder, model = run_folder()
    state = model.state_dict()
    state["pos_embed"] = torch.zeros(1, 50, 16)
    checkpoints.save(folder / "student.pt", state)
    with pytest.raises(CheckpointError, match=r"pos_embed has shape \(1, 50, 16\), the model"):
        open_subject(folder)


def test_other_number_of_classes(written, class_folders, run):
    (class_folders / "class_11").mkdir()
    source = class_folders / "class_0" / "0.png"
    (class_folders / "class_11" / "0.png").write_bytes(source.read_bytes())
    with pytest.raises(DataError, match=r"tells 5 classes apart, and the data has 6"):
        run(written(), "--images", class_folders)


def test_other_size_of_images(converted, write, digits, run):
    sizes = {"num_classes": 10, "in_chans": 1, "img_size": 16}
    path = write(export_released(converted(sizes=sizes)))
    with pytest.raises(DataError, match=r"shape \(1, 16, 16\) .* the data has \(1, 8, 8\)"):
        run(path, "--data", digits)


def test_missing_images(written, tmp_path, run):
    with pytest.raises(DataError, match=r"nowhere: no such folder; expected .*/<class>/<image>"):
        run(written(), "--images", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        run(written(), "--images", tmp_path / "empty")


def test_missing_prepared_data(written, tmp_path, run):
    with pytest.raises(DataError, match=r"no manifest\.json there"):
        run(written(), "--data", tmp_path)


def test_images_have_no_validation_split(written, class_folders, run):
    with pytest.raises(DataError, match="no val split"):
        run(written(), "--images", class_folders, "--split", "val")


def test_grey_images_need_settings(run_folder, class_folders, tmp_path, run):
    """Their mean and deviation are nowhere to be found."""
    _, model = run_folder(fidelity="released")
    save_released(tmp_path / "x.pth", export_released(model), {"wq_bitw": 2, "aq_bitw": 2})
    with pytest.raises(DataError, match="1 channel"):
        run(tmp_path / "x.pth", "--images", class_folders)


def test_pretrained_reference_that_does_not_exist(written, class_folders, run):
    """No such weights for a model of these sizes: said before anything is evaluated."""
    with pytest.raises(OFQError, match="torchvision"):
        run(written(), "--images", class_folders, "--reference", "torchvision")


@pytest.mark.parametrize(
    "arguments",
    [["x"], ["x", "--data", "a", "--images", "b"], ["x", "--data", "a", "--wbits", "0"]],
)
def test_command_line_mistakes(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(arguments)
    assert stop.value.code == 2
    assert "usage: python -m ofq_core.evaluate" in capsys.readouterr().err
