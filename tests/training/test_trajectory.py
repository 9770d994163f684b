"""Paths of single weights: which steps, which weights, which numbers."""

import json

import pytest
import torch
from torch import nn

from ofq_core.methods.lsq import LSQWeight
from ofq_core.training.lowbit import LowBitWeight
from ofq_core.training.trajectory import MOST_POINTS, WEIGHTS, TrajectoryRecorder


def low_bit(name, values):
    parameter = nn.Parameter(torch.tensor(values))
    quantizer = LSQWeight(parameter.detach(), 2)
    quantizer.scale.data.fill_(1.0)
    return LowBitWeight(name, quantizer, parameter, parameter.detach, lambda: parameter)


@pytest.fixture
def pair():
    """Six and four weights."""
    return [
        low_bit("a", [[0.1, 0.2, 0.3], [0.4, 0.6, 0.8]]),
        low_bit("b", [[-0.1, -0.7], [-1.6, 5.0]]),
    ]


def recorded(recorder, steps, frequency=None):
    frequency = torch.zeros(10) if frequency is None else frequency
    for step in range(steps):
        recorder.after_step(step, frequency)
    return recorder.steps


# Which steps


@pytest.mark.parametrize(
    ("last_phase", "steps", "first", "stride"),
    [
        (12, 18, 6, 1),
        (5, 18, 0, 1),  # the last phase is longer than what is before it
        (9, 18, 0, 1),
        (17, 18, 16, 1),
        (500, 1000, 0, 1),
        (501, 1001, 1, 1),  # exactly as many as fit
        (1000, 1501, 499, 2),
        (2000, 3000, 1000, 2),
        (2000, 4500, 0, 5),
    ],
)
def test_window(last_phase, steps, first, stride, pair):
    recorder = TrajectoryRecorder(pair, last_phase, steps)
    assert (recorder.first, recorder.stride) == (first, stride)
    found = recorded(recorder, steps)
    assert found == list(range(first, steps, stride))
    assert len(found) <= MOST_POINTS
    assert len(recorder.report()["scales"]["a"]) == len(found)


def test_as_many_points_as_the_limit_allows(pair):
    for steps in (999, 1000, 1001, 1999, 2000, 2001, 7777):
        recorder = TrajectoryRecorder(pair, 0, steps)
        points = -(-steps // recorder.stride)
        assert points <= MOST_POINTS
        assert recorder.stride == 1 or -(-steps // (recorder.stride - 1)) > MOST_POINTS


def test_no_weights():
    recorder = TrajectoryRecorder([], 0, 10)
    assert recorded(recorder, 10, torch.zeros(0)) == []
    assert recorder.report()["weights"] == []


# Which weights


def test_the_most_oscillating_when_recording_begins(pair):
    frequency = torch.tensor([0.1, 0.9, 0.2, 0.9, 0.3, 0.0, 0.9, 0.4, 0.0, 0.5])
    recorder = TrajectoryRecorder(pair, 2, 4)
    recorder.after_step(0, frequency)
    recorder.after_step(1, 1 - frequency)  # later frequencies change nothing
    places = [(layer, index) for layer, index, _ in recorder.chosen]
    # 0.9 three times by index, 0.5, 0.4, 0.3, 0.2, 0.1; the second matrix begins at 6
    assert places == [(0, 1), (0, 3), (1, 0), (1, 3), (1, 1), (0, 4), (0, 2), (0, 0)]
    assert len(places) == WEIGHTS
    assert [row["frequency"] for row in recorder.report()["weights"][:4]] == [0.9, 0.9, 0.9, 0.5]


def test_frequency_before_the_window_does_not_matter(pair):
    recorder = TrajectoryRecorder(pair, 3, 4)
    assert recorder.first == 2
    recorder.after_step(1, torch.arange(10.0))
    recorder.after_step(2, torch.arange(10.0).flip(0))
    assert recorder.chosen[0] == (0, 0, 9.0)


def test_ties_go_to_the_lowest_index(pair):
    recorder = TrajectoryRecorder(pair, 0, 1)
    recorded(recorder, 1)
    places = [(layer, index) for layer, index, _ in recorder.chosen]
    assert places == [(0, n) for n in range(6)] + [(1, 0), (1, 1)]


def test_ties_among_many():
    """A sort of few numbers is stable by itself."""
    recorder = TrajectoryRecorder([low_bit("a", [[0.1] * 300])], 0, 1)
    frequency = torch.zeros(300)
    frequency[7::3] = 0.5
    recorder.after_step(0, frequency)
    assert [index for _, index, _ in recorder.chosen] == [7, 10, 13, 16, 19, 22, 25, 28]


def test_fewer_weights_than_are_followed():
    recorder = TrajectoryRecorder([low_bit("a", [[0.1, 0.2]])], 0, 2)
    recorded(recorder, 2, torch.tensor([0.0, 1.0]))
    assert [row["index"] for row in recorder.report()["weights"]] == [1, 0]


# Which numbers


def test_report(pair):
    """Six significant digits; scales have nine, as a mean over rows."""
    recorder = TrajectoryRecorder(pair, 1, 2)
    frequency = torch.zeros(10)
    frequency[9], frequency[4] = 0.123456789, 0.1
    recorder.after_step(0, frequency)
    with torch.no_grad():
        pair[0].parameter[1, 1] = 1 / 3
        pair[0].quantizer.scale.copy_(torch.tensor([1.0, 2.0]))
        pair[1].quantizer.scale.fill_(1 / 3)
    recorder.after_step(1, frequency)
    report = recorder.report()
    assert report["steps"] == [0, 1]
    assert report["last_phase"] == 1
    assert report["scales"] == {"a": [1.0, 1.5], "b": [1.0, 0.333333343]}
    assert report["weights"][0] == {
        "layer": "b",
        "index": 3,
        "frequency": 0.123457,
        "latent": [5.0, 5.0],
        "position": [1.5, 1.5],
        "code": [1, 1],
    }
    assert report["weights"][1] == {
        "layer": "a",
        "index": 4,
        "frequency": 0.1,
        "latent": [0.6, 0.333333],
        "position": [0.6, 0.166667],
        "code": [1, 0],
    }
    assert json.loads(json.dumps(report)) == report


def test_state(pair):
    recorder, other = TrajectoryRecorder(pair, 2, 4), TrajectoryRecorder(pair, 2, 4)
    recorder.after_step(0, torch.arange(10.0))
    recorder.after_step(1, torch.zeros(10))
    other.load_state_dict(recorder.state_dict())
    assert other.report() == recorder.report()
    for each in (recorder, other):
        each.after_step(2, torch.zeros(10))
    assert other.report() == recorder.report()
    assert other.chosen[0] == (1, 3, 9.0)


@pytest.mark.parametrize("method", ["ofq", "lsq"])
def test_in_a_run(method, micro, make_trainer, tmp_path):
    """Every number is that of the weights after the step; recording is part of every run.

    After each step the signs of all matrices are turned round, so that codes flip in every step
    whatever training does with them.
    """
    trainer = make_trainer(micro(method), tmp_path / "c.pt")
    seen, frequencies = {}, {}

    def look(event):
        step = event.epoch * event.steps + event.step
        frequencies[step] = trainer.tracker.state.frequency.clone()
        seen[step] = [places(weight) for weight in trainer.tracker.weights]
        with torch.no_grad():
            for name, parameter in trainer.model.blocks.named_parameters():
                # Of a query-key product one factor.
                if parameter.ndim == 2 and not name.endswith("k_weight"):
                    parameter.neg_()

    def places(weight):
        latent, quantizer = weight.latent(), weight.quantizer
        rows = latent.clone(), quantizer.position(latent), quantizer.codes(latent)
        return *(row.flatten() for row in rows), quantizer.scales(latent).clone()

    trainer.observe = look
    trainer.run()
    report = trainer.tracker.trajectory.report()
    assert report["last_phase"] == 12
    assert report["steps"] == list(range(6, 18))
    names = [weight.name for weight in trainer.tracker.weights]
    assert list(report["scales"]) == names
    for layer, name in enumerate(names):
        means = [float(seen[step][layer][3].mean()) for step in report["steps"]]
        assert report["scales"][name] == pytest.approx(means, rel=1e-8)
    assert len(report["weights"]) == WEIGHTS
    moved = 0
    for row in report["weights"]:
        layer, index = names.index(row["layer"]), row["index"]
        for number, step in enumerate(report["steps"]):
            latent, position, codes, _ = seen[step][layer]
            assert row["latent"][number] == pytest.approx(float(latent[index]), rel=1e-5)
            assert row["position"][number] == pytest.approx(float(position[index]), rel=1e-5)
            assert row["code"][number] == int(codes[index])
        moved += len(set(row["code"])) > 1
        start = sum(seen[6][n][0].numel() for n in range(layer))
        assert row["frequency"] == pytest.approx(float(frequencies[6][start + index]), rel=1e-5)
    assert moved == WEIGHTS, "each of them flips"
    highest = frequencies[6].sort(descending=True).values[:WEIGHTS].tolist()
    assert [row["frequency"] for row in report["weights"]] == pytest.approx(highest, rel=1e-5)
    assert highest[0] > 0


def test_a_run_without_a_last_phase_ends_with_a_tenth(micro, make_trainer, tmp_path):
    settings = micro("lsq", recipe={"epochs": 4, "cga_epochs": 0})
    trainer = make_trainer(settings, tmp_path / "c.pt")
    trainer.run()
    report = trainer.tracker.trajectory.report()
    assert report["last_phase"] == 22
    assert report["steps"] == [20, 21, 22, 23]
