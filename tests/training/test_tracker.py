"""The tracker's figures against a recomputation, weight by weight, from the codes of each step."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from ofq_core.training import OscillationTracker
from ofq_core.training.tracker import BOUNDARY_RANGES

MOMENTUM, THRESHOLD = 0.01, 0.005
STEPS, EPOCHS, LAST_PHASE = 6, 4, 18  # per epoch; in all; the first step of the last phase


@dataclass
class Weight:
    """What became of one weight; `flips[t]` is 1 when its code changed at update t."""

    before_last_phase: float
    frequency: float
    reversals: int
    flips: list[int]


def naive(history):
    """Nagel et al., equations 4 to 6, for the codes of one weight at each step and at the end."""
    frequency, reversals, direction, earlier, flips = 0.0, 0, 0, 0.0, []
    for time, (before, code) in enumerate(pairwise(history), start=1):
        if time == LAST_PHASE:  # frequencies start from zero again; directions stay
            frequency, earlier = 0.0, frequency
        step = (code > before) - (code < before)
        against = step * direction < 0
        frequency = MOMENTUM * against + (1 - MOMENTUM) * frequency
        reversals += against
        flips.append(int(step != 0))
        direction = step or direction
    return Weight(earlier, frequency, reversals, flips)


class Recording:
    """Codes before each step and after the last, from the latent weights; not from the tracker."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.codes = {weight.name: [] for weight in trainer.tracker.weights}
        self.look()
        self.first_scales = dict(self.scales)
        trainer.observe = lambda event: self.look()
        trainer.run()

    def look(self):
        self.scales, self.bands = {}, {}
        for weight in self.trainer.tracker.weights:
            latent, quantizer = weight.latent(), weight.quantizer
            self.codes[weight.name].append(quantizer.codes(latent).flatten().tolist())
            self.scales[weight.name] = quantizer.scales(latent).clone()
            self.bands[weight.name] = {
                band: float(quantizer.free(latent, band).float().mean()) for band in BOUNDARY_RANGES
            }

    def weights(self, name):
        return [naive(history) for history in zip(*self.codes[name], strict=True)]


@pytest.fixture(params=["ofq", "lsq"])
def recording(request, micro, make_trainer, tmp_path):
    # Larger steps than elsewhere: some weights must turn back, and some not.
    recipe = {"epochs": EPOCHS - 1, "lr": 2e-2, "min_lr": 1e-2}
    return Recording(make_trainer(micro(request.param, recipe=recipe), tmp_path / "c.pt"))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_figures_of_every_layer(recording):
    layers = recording.trainer.oscillation_layers
    assert list(layers) == list(recording.codes)
    for name, layer in layers.items():
        weights = recording.weights(name)
        assert len(recording.codes[name]) == STEPS * EPOCHS + 1
        assert layer["weights"] == len(weights)
        assert layer["share"] == pytest.approx(
            mean(w.frequency > THRESHOLD for w in weights), abs=1e-7
        )
        assert layer["mean_frequency"] == pytest.approx(
            mean(w.frequency for w in weights), rel=1e-5, abs=1e-9
        )
        assert layer["reversals"] == sum(w.reversals for w in weights)
        # Of the weights after the last step, whichever epoch was selected.
        drift = (recording.scales[name] / recording.first_scales[name] - 1).abs().mean()
        assert layer["scale_drift"] == pytest.approx(float(drift), rel=1e-6)
        # The tracker divides, the definition compares: a weight on the last bit of a band's end is
        # in it for one of them alone.
        for band, inside in recording.bands[name].items():
            assert layer[f"in_band_{band}"] == pytest.approx(inside, abs=1.5 / len(weights))


def test_figures_over_all_weights(recording):
    summary = recording.trainer.oscillation
    everything = [w for name in recording.codes for w in recording.weights(name)]
    share = mean(w.frequency > THRESHOLD for w in everything)
    earlier = mean(w.before_last_phase > THRESHOLD for w in everything)
    assert 0.005 < share < 0.9, "some oscillate and some do not, or equality proves nothing"
    assert earlier != share
    assert summary["share"] == pytest.approx(share, abs=1e-7)
    assert summary["share_before_last_phase"] == pytest.approx(earlier, abs=1e-7)
    assert summary["mean_frequency"] == pytest.approx(
        mean(w.frequency for w in everything), rel=1e-5
    )
    assert summary["flip_rate"] == pytest.approx(mean(mean(w.flips) for w in everything))
    assert summary["flip_rate_last_phase"] == pytest.approx(
        mean(mean(w.flips[LAST_PHASE - 1 :]) for w in everything)
    )
    layers = recording.trainer.oscillation_layers.values()
    for key in ["scale_drift", *(f"in_band_{band}" for band in BOUNDARY_RANGES)]:
        weighted = sum(layer[key] * layer["weights"] for layer in layers)
        assert summary[key] == pytest.approx(weighted / len(everything), rel=1e-9)


def test_history_has_the_flips_of_each_epoch(recording):
    everything = [w for name in recording.codes for w in recording.weights(name)]
    for epoch, row in enumerate(recording.trainer.progress.history):
        # Update t compares step t with step t - 1; the first step has none before it.
        updates = slice(max(0, epoch * STEPS - 1), (epoch + 1) * STEPS - 1)
        expected = mean(mean(w.flips[updates]) for w in everything)
        assert row["flip_rate"] == pytest.approx(expected)
        assert row["oscillation_share"] > 0 or epoch == 0


def test_restart_forgets_frequencies_and_nothing_else(micro, make_trainer, tmp_path):
    trainer = make_trainer(micro("lsq", recipe={"cga_epochs": 0}), tmp_path / "c.pt")
    trainer.run()
    tracker = trainer.tracker
    before = {key: torch.as_tensor(value).clone() for key, value in vars(tracker.state).items()}
    tracker.restart()
    after = {key: torch.as_tensor(value) for key, value in vars(tracker.state).items()}
    assert before["frequency"].any()
    assert not after.pop("frequency").any()
    assert all(torch.equal(value, before[key]) for key, value in after.items())


def test_full_precision_has_nothing_to_track(micro, make_trainer, tmp_path):
    trainer = make_trainer(micro("fp"), tmp_path / "c.pt")
    history = trainer.run().history
    assert trainer.oscillation is None
    assert trainer.oscillation_layers == {}
    assert {row["oscillation_share"] for row in history} == {0.0}


def test_a_step_without_a_forward_is_an_error(micro, make_trainer, tmp_path):
    """Silence would count the codes of an older step twice."""
    trainer = make_trainer(micro("ofq"), tmp_path / "c.pt")
    with pytest.raises(RuntimeError, match=r"attn\.proj\.weight|attn\.qk"):
        OscillationTracker(trainer.model).update()


def test_state_survives_a_file(micro, make_trainer, tmp_path):
    trainer = make_trainer(micro("ofq"), tmp_path / "c.pt")
    trainer.run()
    torch.save(trainer.tracker.state_dict(), tmp_path / "tracker.pt")
    recorded = trainer.tracker.trajectory
    window = recorded.last_phase, trainer.epochs * trainer.steps
    other = OscillationTracker(trainer.model, every=trainer.recipe.oscillation_every, window=window)
    assert other.summary() is None
    other.load_state_dict(torch.load(tmp_path / "tracker.pt", weights_only=True))
    assert other.layers() == trainer.tracker.layers()
    assert other.summary() == trainer.tracker.summary()
    assert other.trajectory.report() == recorded.report()
    assert recorded.steps
    assert other.samples.phase.any()
