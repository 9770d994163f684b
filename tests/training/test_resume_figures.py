"""Sampled figures and trajectories of runs that are cut off; and of Swin's matrices."""

import pytest
import torch

from ofq_core.models import QuantPlan, build_model, convert
from ofq_core.nn import calibrate
from ofq_core.settings import FidelitySettings, ModelSettings, QuantSettings
from ofq_core.training import OscillationTracker
from tests.training.conftest import without_times

# Six steps an epoch, two epochs of QAT, one more; a checkpoint after every step. Every fourth step
# is sampled: 0, 4, 8, 12, 16; the last phase begins with step 12, trajectories with step 6.
OFTEN = {"checkpoint_seconds": 1e-9, "oscillation_every": 4, "lr": 2e-2, "min_lr": 1e-2}
STEPS = 18
# Frequencies of a few steps are far below the usual thresholds.
QUANT = {"freezing": {"weight": "freezing", "options": {"first_threshold": 0.0015}}}


class CutOffError(Exception):
    """As if the process were killed."""


def cut_off_after(steps):
    def observe(event):
        if event.epoch * event.steps + event.step + 1 == steps:
            raise CutOffError

    return observe


@pytest.fixture(scope="module")
def settings(micro):
    def make(method):
        base = "lsq" if method == "freezing" else method
        return micro(base, recipe=OFTEN, quant=QUANT.get(method, {}))

    return make


def outcome(trainer):
    tracker = trainer.tracker
    return without_times(
        {
            "summary": trainer.oscillation,
            "layers": trainer.oscillation_layers,
            "histogram": tracker.histogram(),
            "trajectory": tracker.trajectory.report(),
            "history": trainer.progress.history,
            "paths": tracker.samples.paths,
            "model": trainer.model.state_dict(),
        }
    )


@pytest.fixture(scope="module")
def undisturbed(settings, make_trainer, tmp_path_factory):
    made = {}

    def run(method):
        if method not in made:
            folder = tmp_path_factory.mktemp("whole")
            trainer = make_trainer(settings(method), folder / "c.pt")
            trainer.run()
            made[method] = outcome(trainer)
        return made[method]

    return run


# The step that is cut off is repeated: (2,) goes on after step 0, which was sampled, before the
# gradients of step 1 are compared with its own; (6,) after step 4 in the middle of an epoch; (14,)
# after step 12, the first of the last phase; (8,) goes on within the trajectory.
@pytest.mark.parametrize("cuts", [(1,), (2,), (6,), (8,), (13,), (14,), (18,), (2, 6, 10, 14, 17)])
@pytest.mark.parametrize("method", ["ofq", "lsq", "freezing"])
def test_figures_of_a_run_that_was_cut_off(
    method, cuts, settings, make_trainer, undisturbed, identical, tmp_path
):
    for steps in cuts:
        with pytest.raises(CutOffError):
            make_trainer(settings(method), tmp_path / "c.pt", cut_off_after(steps)).run()
    left = []
    trainer = make_trainer(settings(method), tmp_path / "c.pt", left.append)
    trainer.run()
    assert len(left) == STEPS - (cuts[-1] - 1)
    identical(outcome(trainer), undisturbed(method))


@pytest.mark.parametrize("method", ["ofq", "lsq", "freezing"])
def test_there_is_something_to_compare(method, undisturbed):
    found = undisturbed(method)
    summary, earlier = found["summary"], found["summary"]["before_last_phase"]
    assert found["trajectory"]["steps"] == list(range(6, STEPS))
    for sampled in (summary, earlier):
        assert sampled["flips_weight"] > 0
        assert sampled["path_ratio"] > 0
        assert sampled["gradient_flips"]["0.5"] > 0
    assert 0 < summary["path_ratio_above_16"] < 1
    assert len(found["history"]) == 3
    assert any(row["gradient_flips"] for row in found["history"])
    assert all(row["flips_weight"] > 0 for row in found["history"])
    assert sum(found["histogram"]["position"]["counts"]) > 100
    if method == "freezing":
        frozen = [v.float().mean() for k, v in found["model"].items() if k.endswith(".frozen")]
        assert 0 < sum(frozen) < len(frozen)


@pytest.mark.parametrize("method", ["ofq", "freezing"])
def test_a_run_that_is_over_says_the_same_again(
    method, settings, make_trainer, undisturbed, identical, tmp_path
):
    """Killed after its last checkpoint, before anything was published."""
    make_trainer(settings(method), tmp_path / "c.pt").run()
    again = make_trainer(settings(method), tmp_path / "c.pt", lambda event: pytest.fail("a step"))
    again.run()
    identical(outcome(again), undisturbed(method))


# Swin

# 4 x 4 tokens in shifted windows of 2 x 2, then 2 x 2 tokens in one window.
SWIN = {
    "name": "swin_tiny_patch4_window7_224",
    "num_classes": 10,
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 8,
    "depths": (2, 2),
    "heads_per_stage": (2, 4),
    "window_size": 2,
    "mlp_ratio": 2.0,
}


@pytest.mark.parametrize(("weight", "qkr"), [("statsq", True), ("lsq", True), ("lsq", False)])
def test_swin(weight, qkr, draw_weights):
    """Four steps by hand: figures for every low-bit matrix, products and reduction too."""
    model = draw_weights(build_model(ModelSettings(**SWIN), 0))
    quant = QuantSettings(weight=weight, wbits=2, abits=2, qkr=qkr, cga=False)
    convert(model, QuantPlan.from_settings(quant, FidelitySettings()))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    calibrate(model, images)
    tracker = OscillationTracker(model.train(), every=1, window=(2, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(4):
        tracker.begin_step()
        optimizer.zero_grad()
        for weights in tracker.weights:
            weights.quantizer.gradient = None
        torch.nn.functional.cross_entropy(model(images), torch.arange(16) % 10).backward()
        tracker.before_update()
        optimizer.step()
        tracker.update()
    tracker.finish()
    linear = ["attn.v" if qkr else "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    names = {f"layers.{s}.blocks.{b}.{n}.weight" for s in (0, 1) for b in (0, 1) for n in linear}
    products = {f"layers.{s}.blocks.{b}.attn.qk" for s in (0, 1) for b in (0, 1)} if qkr else set()
    layers = tracker.layers()
    assert set(layers) == names | products | {"layers.1.downsample.reduction.weight"}
    for name, layer in layers.items():
        assert layer["flips_weight"] > 0, name
        assert layer["path_ratio"] > 0, name
        assert layer["code_entropy"] > 0, name
        assert layer["gradient_flips"]["0.5"] > 0, name
        assert layer["dead_share"] < 1, name
        assert 0 <= layer["path_ratio_above_16"] < 1, name
    for stage, (dim, heads) in enumerate(((8, 2), (16, 4)) if qkr else ()):
        assert layers[f"layers.{stage}.blocks.0.attn.qk"]["weights"] == heads * dim * dim
    everything = sum(layer["weights"] for layer in layers.values())
    assert tracker.samples.phase[:, 0].sum() == 4 * everything
    report = tracker.trajectory.report()
    assert report["steps"] == [0, 1, 2, 3]
    assert set(report["scales"]) == set(layers)
    assert sum(tracker.histogram()["distance"]["counts"]) > 0.5 * everything
