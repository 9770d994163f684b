"""One command evaluates any checkpoint: exact counts, JSON, a full-precision reference."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageOps

from ofq_core import checkpoints
from ofq_core.checkpoints import export_released, load_released, released, save_released, subject
from ofq_core.data import load_prepared, prepare_data
from ofq_core.errors import CheckpointError, DataError
from ofq_core.evaluation import wilson_interval
from ofq_core.models import build_model, unlike_released
from ofq_core.settings import ImageSettings, ModelSettings, TeacherSettings

FULL = {"weight": "statsq", "wbits": 32, "abits": 32, "edge_bits": 32, "qkr": False, "cga": False}
PER_CLASS = 4


def expected_digits(model, digits, split="test", batch_size=1000):
    """Counts by the shortest possible way, in the batches that the command is told.

    In FP32 the number of rows may decide how a product is added up, and so now and then a code.
    """
    prepared = load_prepared(digits)
    part = getattr(prepared, split)
    with torch.no_grad():
        batches = prepared.normalise(part.images).split(batch_size)
        found = torch.cat([model.eval()(images).argmax(1) for images in batches])
    hits = found == part.labels
    return [int(hits[part.labels == label].sum()) for label in range(10)], len(part)


def test_run_folder(run_folder, digits, capsys, run):
    folder, model = run_folder()
    per_class, total = expected_digits(model, digits, batch_size=7)
    content = run(folder, "--data", digits, "--batch-size", 7)
    result = content["result"]
    assert (result["n_correct"], result["n_images"]) == (sum(per_class), total)
    assert result["per_class_correct"] == per_class
    assert sum(result["per_class_images"]) == total
    assert 0 < sum(per_class) < total, "a count that could be wrong"
    low, high = wilson_interval(sum(per_class), total)
    assert content["reference"] is None
    assert content["checkpoint"]["quant"]["wbits"] == 2
    assert content["checkpoint"]["source"] == str(folder / "student.pt")
    top1 = 100 * sum(per_class) / total
    printed = capsys.readouterr().out.splitlines()
    assert (
        printed[0] == f"{folder / 'student.pt'}: deit_tiny_distilled_patch16_224, statsq_qkr, w2a2"
    )
    assert printed[1].startswith(
        f"  top-1 {top1:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f}), top-5 "
    )
    assert printed[1].endswith(f"{sum(per_class)} of {total} test images")


def test_file_of_weights_in_a_run_folder(run_folder, digits, run):
    folder, _ = run_folder()
    content = run(folder / "student.pt", "--data", digits)
    assert content["result"] == run(folder, "--data", digits)["result"]


def test_other_split(run_folder, digits, run):
    folder, model = run_folder()
    per_class, total = expected_digits(model, digits, "val")
    result = run(folder, "--data", digits, "--split", "val")["result"]
    assert (result["per_class_correct"], result["n_images"]) == (per_class, total)


def test_full_precision_run_and_teacher(run_folder, digits, run):
    for name in ("student.pt", "teacher.pt"):
        folder, model = run_folder(FULL, name=name, weights=name)
        content = run(folder, "--data", digits)
        assert content["checkpoint"]["quant"] is None
        assert content["result"]["n_correct"] == sum(expected_digits(model, digits)[0])


def test_reference(run_folder, digits, capsys, run):
    """A folder or a file of full-precision weights, on the same images."""
    folder, _ = run_folder()
    teacher, full = run_folder(FULL, "teacher", "teacher.pt", seed=2)
    expected = sum(expected_digits(full, digits)[0])
    bare = (teacher.parent / "bare.pt", teacher / "beside_settings.pt")
    for path in bare:
        checkpoints.save(path, full.state_dict())
    for reference in (teacher, teacher / "teacher.pt", *bare):
        content = run(folder, "--data", digits, "--reference", reference)
        assert content["reference"]["result"]["n_correct"] == expected
        assert content["reference"]["quant"] is None
        assert content["result"]["loss"] != content["reference"]["result"]["loss"]
        ours, theirs = content["result"]["top1"], content["reference"]["result"]["top1"]
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == f"difference: {ours - theirs:+.2f} points of top-1"


def test_given_teacher(run_folder, digits, run):
    """The teacher's stage took its weights from elsewhere: it was no run of this study."""
    folder, _ = run_folder()
    teacher, full = run_folder(FULL, "teacher", "teacher.pt", seed=2)
    path = teacher / "settings.yaml"
    settings = yaml.safe_load(path.read_text())
    kept = {key: settings[key] for key in ("study", "model", "data")}
    given = TeacherSettings(seed=2, recipe=None, checkpoint="x.pt").model_dump()
    path.write_text(yaml.safe_dump({**kept, "teacher": given}))
    expected = sum(expected_digits(full, digits)[0])
    assert run(teacher, "--data", digits)["result"]["n_correct"] == expected
    content = run(folder, "--data", digits, "--reference", teacher)
    assert content["reference"]["result"]["n_correct"] == expected
    assert content["reference"]["quant"] is None


@pytest.mark.parametrize(("source", "pads_first"), [("torchvision", True), ("timm", False)])
def test_a_published_reference_computes_what_its_source_does(source, pads_first, monkeypatch):
    """Windows of 4 do not fit maps of 10 x 10 tokens; torchvision pads them before it shifts."""
    sizes = {"img_size": 40, "patch_size": 4, "window_size": 4, "embed_dim": 8}
    sizes |= {"depths": (2, 2), "heads_per_stage": (1, 2), "num_classes": 5}
    settings = ModelSettings(name="swin_tiny_patch4_window7_224", **sizes)
    monkeypatch.setattr(subject, "load_pretrained", lambda settings, _: build_model(settings, 0))
    given = subject.Subject(build_model(settings, 0), "", None, settings, None)
    reference = subject.open_reference(source, given)
    assert (unlike_released(reference.model) is None) == pads_first


def test_reference_of_another_shape(run_folder, digits, capsys, run):
    """Any usual file; what was taken of it is said."""
    folder, _ = run_folder()
    _, full = run_folder(FULL, "teacher", "teacher.pt", seed=2)
    path = folder.parent / "x.pth"
    wrapped = {f"module.{key}": value for key, value in full.state_dict().items()}
    torch.save({"model": wrapped, "model_ema": full.state_dict(), "epoch": 1}, path)
    content = run(folder, "--data", digits, "--reference", path)
    assert content["reference"]["result"]["n_correct"] == sum(expected_digits(full, digits)[0])
    said = f"{path} (weights of its key 'model', left out: model_ema, epoch): deit_tiny"
    assert said in capsys.readouterr().out


def test_released_checkpoint_on_prepared_digits(run_folder, digits, tmp_path, run):
    """The manifest says how the data are read; the counts are those of the run it came from."""
    folder, model = run_folder(fidelity="released")
    save_released(tmp_path / "x.pth", export_released(model), {"wq_bitw": 2, "aq_bitw": 2})
    content = run(tmp_path / "x.pth", "--data", digits)
    assert content["result"] == run(folder, "--data", digits)["result"]
    assert content["checkpoint"]["source"] == str(tmp_path / "x.pth")


def expected_pictures(model, root):
    """Spec 8, step by step: shorter side to floor(32 / 0.9) = 35, bicubic, centre crop.

    All in one batch, as the command has them.
    """
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    images = []
    for name in ("class_0", "class_1", "class_2", "class_3", "class_10"):
        for number in range(PER_CLASS):
            with Image.open(root / name / f"{number}.png") as image:
                small = image.convert("RGB").resize((52, 35), Image.Resampling.BICUBIC)
            pixels = np.asarray(small.crop((10, 2, 42, 34)), dtype=np.float32) / 255
            images.append((torch.from_numpy(pixels).permute(2, 0, 1) - mean) / std)
    with torch.no_grad():
        found = model(torch.stack(images)).argmax(1).view(-1, PER_CLASS)
    return [int((row == label).sum()) for label, row in enumerate(found)]


def test_images_that_nobody_prepared(converted, write, class_folders, run):
    """Image size from the model, preprocessing of spec 8, classes in the order of numbers."""
    for seed in range(20):
        model = converted(seed=seed)
        correct = expected_pictures(model, class_folders)
        if len(set(correct)) > 1 and sum(correct) > PER_CLASS:
            break
    assert len(set(correct)) > 1, "counts that could be those of another order"
    path = write(export_released(model))
    content = run(path, "--images", class_folders)
    assert content["result"]["per_class_correct"] == correct
    assert content["result"]["per_class_images"] == [PER_CLASS] * 5
    assert content["manifest_sha256"] is None


ORDER = ["class_0", "class_1", "class_2", "class_3", "class_10"]


def test_classes_of_the_training(picture_run, class_folders, capsys, run):
    """Folders are known by their names, whatever their order on this disk is."""
    usual = run(picture_run(ORDER), "--images", class_folders)["result"]
    other = run(picture_run(ORDER[::-1]), "--images", class_folders)["result"]
    assert "note" not in capsys.readouterr().err
    assert other != usual
    for old in ORDER:
        (class_folders / old).rename(class_folders / f"away_{old}")
    for old, new in zip(ORDER, ORDER[::-1], strict=True):
        (class_folders / f"away_{old}").rename(class_folders / new)
    assert run(picture_run(ORDER), "--images", class_folders)["result"] == other


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ant", *ORDER[1:]], r"holdout: class 0 is 'class_0', and .*pt was trained with 'ant' th"),
        ([*ORDER[:4], "x"], r"class 4 is 'class_10', and .* was trained with 'x' there"),
        (ORDER[:4], r"has 5 classes, and .* was trained on 4"),
    ],
)
def test_other_classes_than_those_of_the_training(names, message, picture_run, class_folders, run):
    with pytest.raises(DataError, match=message):
        run(picture_run(names), "--images", class_folders)


def test_prepared_classes_in_another_order(run_folder, digits, run):
    folder, _ = run_folder()
    run(folder, "--data", digits)
    names = [str(digit) for digit in range(10)]
    (folder / "env.json").write_text(json.dumps({"class_names": names[::-1]}))
    with pytest.raises(DataError, match=r"class 0 is '0', .* with '9' there, the same classes in"):
        run(folder, "--data", digits)
    teacher, _ = run_folder(FULL, "teacher")
    (teacher / "env.json").write_text(json.dumps({"class_names": names[::-1]}))
    with pytest.raises(DataError, match="the same classes in another order"):
        run(run_folder()[0], "--data", digits, "--reference", teacher)


@pytest.mark.parametrize("content", ["{", "[]", '{"class_names": 3}'])
def test_damaged_names_of_classes(content, picture_run, class_folders, run):
    folder = picture_run(ORDER)
    (folder / "env.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"env\.json is damaged"):
        run(folder, "--images", class_folders)


def test_classes_without_names(picture_run, written, class_folders, capsys, run):
    """A released file does not say them, nor do runs of earlier versions."""
    for path in (written(), picture_run(None)):
        run(path, "--images", class_folders)
        assert "note: the order of the classes was not checked: " in capsys.readouterr().err


def test_accents_are_written_in_two_ways(picture_run, class_folders, run):
    (class_folders / "class_0").rename(class_folders / "caf\u00e9")
    result = run(picture_run(["cafe\u0301", *ORDER[1:]]), "--images", class_folders)["result"]
    assert result["per_class_images"] == [PER_CLASS] * 5


def test_unreadable_images_are_counted(written, class_folders, capsys, run):
    (class_folders / "class_3" / "1.png").write_bytes(b"no image")
    result = run(written(), "--images", class_folders)["result"]
    assert (result["n_images"], result["n_unreadable"]) == (19, 1)
    assert result["per_class_images"] == [4, 4, 4, 3, 4]
    assert capsys.readouterr().out.rstrip().endswith("19 test images, 1 unreadable")


def test_what_is_left_out_of_images_is_named(written, class_folders, capsys, run):
    """Other formats are read; what is no image is named, in the text and in the JSON."""
    with Image.open(class_folders / "class_3" / "1.png") as image:
        image.save(class_folders / "class_3" / "1.WebP", lossless=True)
    (class_folders / "class_3" / "1.png").unlink()
    (class_folders / "class_3" / "2.png").write_bytes(b"no image")
    (class_folders / "class_0" / "notes.txt").write_text("none either")
    content = run(written(), "--images", class_folders)
    assert content["result"]["per_class_images"] == [4, 4, 4, 3, 4]
    assert content["left_out"] == {
        f"{class_folders.name}/class_0/notes.txt": "no suffix of an image",
        f"{class_folders.name}/class_3/2.png": "no image that Pillow knows",
    }
    assert "left out: 2 files: " in capsys.readouterr().out


def test_released_checkpoint_on_prepared_images(written, class_folders, tmp_path, run):
    """What `prepare` wrote for image folders says all that is needed besides the model's size."""
    for path in class_folders.rglob("*.png"):
        other = class_folders.parent / "train" / path.relative_to(class_folders)
        other.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            ImageOps.invert(image).save(other)
    settings = ImageSettings(
        name="pictures", source="folder", train_split="train", test_split="holdout", val_share=0.2
    )
    folder = tmp_path / "data" / "pictures"
    prepare_data(settings, folder)
    path = written()
    content = run(path, "--data", folder)
    assert content["result"] == run(path, "--images", class_folders)["result"]
    assert len(content["manifest_sha256"]) == 64
    assert run(path, "--data", folder, "--split", "val")["result"]["n_images"] == 4


def test_command_of_the_importer(written, class_folders, tmp_path, capsys, run):
    """Report, then the same evaluation."""
    path, out = written(arch="deit", epoch=329), tmp_path / "report.json"
    released.main([str(path), "--images", str(class_folders), "--json", str(out), "--map"])
    printed = capsys.readouterr().out
    assert "18 tokens" in printed
    assert "QKR, 2-bit weights, 2-bit activations" in printed
    assert "the file says: arch deit, epoch 329" in printed
    assert "nothing left over" in printed
    assert "blocks.0.attn.q.weight (24, 24) -> blocks.0.attn.q_weight" in printed
    assert "top-1" in printed
    content = json.loads(out.read_text())
    assert content["result"] == run(path, "--images", class_folders)["result"]
    assert content["report"]["mapped"]["pos_embed"]["ours"] == ["pos_embed"]


def test_report_alone(golden_model, tmp_path, capsys):
    """Without data: only what became of the tensors, and how near the logits come.

    How near that is, test_golden_logits_are_reproduced says.
    """
    released.main([str(golden_model), "--json", str(tmp_path / "report.json")])
    printed = capsys.readouterr().out
    assert "logits of the file reproduced to" in printed
    assert "top-1" not in printed
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["report"]["reproduced"] == load_released(golden_model).report.reproduced
    assert set(content) == {"report"}


def test_as_processes(written, run_folder, digits, tmp_path):
    """Exit codes: 0, or 1 with one line on stderr; and no warning about modules imported twice."""
    folder, _ = run_folder()

    def start(*command):
        return subprocess.run(
            [sys.executable, "-W", "error::RuntimeWarning", "-m", *map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    done = start("ofq_core.evaluate", folder, "--data", digits)
    assert (done.returncode, done.stderr) == (0, "")
    assert "test images" in done.stdout
    done = start("ofq_core.checkpoints.released", written())
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing left over" in done.stdout
    done = start("ofq_core.checkpoints.released", tmp_path / "missing.pth")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path / 'missing.pth'}: no such file\n"
