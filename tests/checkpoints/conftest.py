"""Small converted models with all their tensors at random, files in the released layout, folders of
runs, and images to evaluate on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ofq_core import checkpoints, evaluate
from ofq_core.checkpoints import export_released, save_released
from ofq_core.data import load_prepared, prepare_digits
from ofq_core.models import QuantPlan, build_model, convert, image_shape
from ofq_core.nn import LSQActivation, calibrate
from ofq_core.settings import BUNDLES, DigitsSettings, ModelSettings, QuantSettings, RunSettings

GOLDEN = Path(__file__).parents[1] / "golden"
DEIT = {
    "name": "deit_tiny_distilled_patch16_224",
    "num_classes": 5,
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "mlp_ratio": 2.0,
}
SIZES = {
    "deit": DEIT,
    "deit_one_head": {**DEIT, "name": "deit_tiny_patch16_224"},
    # Maps of 14 x 14 and 7 x 7: a shifted stage, and one that its window covers.
    "swin": {
        "name": "swin_tiny_patch4_window7_224",
        "num_classes": 5,
        "img_size": 28,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": (2, 1),
        "heads_per_stage": (1, 2),
        "window_size": 7,
        "mlp_ratio": 2.0,
    },
}

DIGITS = {"name": "digits", "subset": 300}
RUN_MODEL = {
    "name": "deit_tiny_distilled_patch16_224",
    "num_classes": 10,
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 2.0,
}
LOW = {"weight": "statsq", "wbits": 2, "abits": 2, "qkr": True, "cga": False}
FULL = {**LOW, "wbits": 32, "abits": 32, "edge_bits": 32, "qkr": False}
CLASSES = ("class_2", "class_10", "class_3", "class_1", "class_0")
PER_CLASS = 4


def golden_path(name):
    """A whole model measured from the released code; the test fails where the file is missing."""
    path = GOLDEN / f"{name}.npz"
    assert path.is_file(), f"{path} is missing: it belongs to the repository"
    return path


@pytest.fixture(
    params=[
        "released_deit_micro_w2a2_plain",
        "released_deit_micro_w2a2_qkr",
        "released_deit_micro_w4a4_qkr",
        "released_swin_micro_w2a2_qkr",
    ]
)
def golden_model(request):
    """One of the files measured from the released code after the other."""
    return golden_path(request.param)


def randomize(model, seed=0):
    """Give every tensor values of a sensible size, all different; scales fit the activations."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("quantizer.scale") and not parameter.isnan().any():
                parameter.mul_(1 + 0.1 * noise.abs())
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif parameter.ndim >= 2 and name.endswith("weight"):
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif not name.endswith("scale"):
                parameter.copy_(0.3 * noise)
    calibrate(model, torch.randn(4, *image_shape(model), generator=generator))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LSQActivation):
                noise = torch.rand(module.scale.shape, generator=generator)
                module.scale.mul_(0.8 + 0.4 * noise)


@pytest.fixture(scope="session")
def converted():
    """A small converted model, `kind` of `SIZES`, with random values in every tensor."""

    def build(kind="deit", fidelity=BUNDLES["released"], seed=0, sizes=None, **quant):
        model = build_model(ModelSettings(**{**SIZES[kind], **(sizes or {})}), 0)
        raw = {"weight": "statsq", "wbits": 2, "abits": 2, "qkr": True, "cga": False, **quant}
        convert(model, QuantPlan.from_settings(QuantSettings(**raw), fidelity))
        randomize(model, seed)
        return model.eval()

    return build


@pytest.fixture
def write(tmp_path):
    """Write a state dict as the released code does; arguments become those of its command."""

    def run(state, name="checkpoint.pth.tar", **meta):
        path = tmp_path / name
        save_released(path, state, {"wq_bitw": 2, "aq_bitw": 2, **meta})
        return path

    return run


@pytest.fixture
def written(converted, write):
    """The file of a small model, after `change` has had its way with the state."""

    def run(change=lambda state: None, kind="deit", qkr=True, **meta):
        state = export_released(converted(kind, qkr=qkr))
        change(state)
        return write(state, **meta)

    return run


@pytest.fixture(scope="session")
def images():
    """Random images for a model of `SIZES`."""

    def make(kind="deit", batch=2, seed=0):
        size = SIZES[kind]["img_size"]
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, 3, size, size, generator=generator)

    return make


@pytest.fixture(autouse=True)
def _own_machine(tmp_path, monkeypatch):
    """Caches of a test are its own, and images are read by this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OFQ_DATA_DIR", str(tmp_path / "sets"))
    monkeypatch.setenv("OFQ_WORKERS", "0")
    monkeypatch.setenv("OFQ_DEVICE", "cpu")


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare_digits(DigitsSettings(**DIGITS), folder)
    return folder


@pytest.fixture
def run_folder(tmp_path, digits):
    """A folder as a stage leaves it: settings, weights (not trained) and names of the classes."""

    def make(quant=LOW, name="run", weights="student.pt", seed=0, fidelity="described"):
        settings = RunSettings(
            study="x",
            method="x",
            fidelity=BUNDLES[fidelity],
            seed=seed,
            quant=quant,
            model=RUN_MODEL,
            data=DIGITS,
            recipe={"epochs": 1, "cga_epochs": 0, "batch_size": 8, "lr": 1e-3},
            distill=None,
        )
        model = build_model(settings.model, seed)
        with torch.no_grad():
            model.head.weight.normal_(generator=torch.Generator().manual_seed(seed))
        if quant["wbits"] != 32:
            convert(model, QuantPlan.from_settings(settings.quant, settings.fidelity))
            prepared = load_prepared(digits)
            calibrate(model, prepared.normalise(prepared.train.images[:64]))
        folder = tmp_path / name
        checkpoints.save(folder / weights, model.state_dict())
        text = yaml.safe_dump(settings.model_dump(mode="json"))
        (folder / "settings.yaml").write_text(text)
        names = [str(digit) for digit in range(10)]
        (folder / "env.json").write_text(json.dumps({"class_names": names}))
        return folder, model

    return make


@pytest.fixture
def picture_run(converted, tmp_path):
    """The folder of a run that was trained on images of classes with these names."""

    def make(names):
        settings = RunSettings(
            study="x",
            method="x",
            fidelity=BUNDLES["released"],
            seed=0,
            quant={"weight": "statsq", "wbits": 2, "abits": 2, "qkr": True, "cga": False},
            model=SIZES["deit"],
            data={"name": "pictures", "source": "folder", "size": 32},
            recipe={"epochs": 1, "cga_epochs": 0, "batch_size": 8, "lr": 1e-3},
            distill=None,
        )
        folder = tmp_path / "run"
        checkpoints.save(folder / "student.pt", converted().state_dict())
        text = yaml.safe_dump(settings.model_dump(mode="json"))
        (folder / "settings.yaml").write_text(text)
        (folder / "env.json").write_text(json.dumps({"class_names": names}))
        return folder

    return make


@pytest.fixture(scope="session")
def run():
    """Evaluate by the command; what it writes as JSON."""

    def call(*arguments):
        out = arguments[0].parent / "out.json"
        evaluate.main([str(a) for a in (*arguments, "--json", out)])
        return json.loads(out.read_text())

    return call


@pytest.fixture
def class_folders(tmp_path):
    """ROOT/<class>/<image>: 5 classes, sorted as numbers sort, 4 images each."""
    root = tmp_path / "sets" / "pictures" / "holdout"
    for seed, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = np.random.RandomState(10 * seed + number).randint(0, 256, (4, 6, 3))
            picture = Image.fromarray(pixels.astype(np.uint8)).resize((60, 40))
            picture.save(root / name / f"{number}.png")
    return root
