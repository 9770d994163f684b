"""Processes that train together: who they are, and trouble that only one of them has."""

import json
import socket

import pytest
import torch

from ofq_core import checkpoints, distributed
from ofq_core.distributed import World, join_world
from ofq_core.errors import SettingsError
from pipelines.training import Inputs
from tests.training.doubled import (
    assert_same_outcome,
    doubled_trainer,
    follow_gradients,
    outcome,
    record_gradients,
)
from tests.training.shared_troubles import CutOffError, cut_off

NAMES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
    *("SLURM_JOB_ID", "OFQ_DEVICE", "OFQ_MICRO_BATCH"),
)
# Nobody listens there: the port of discarding, without its server.
MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}


@pytest.fixture
def joined(monkeypatch):
    def join(**environment):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with join_world() as world:
            return world

    return join


def test_alone(joined):
    """Without a launcher there is one process, which does what the main one does."""
    world = joined(OFQ_DEVICE="cpu")
    assert world == World()
    assert world.main
    assert (world.told("a"), world.gathered(3)) == ("a", [3])
    assert torch.equal(world.total(torch.tensor([2, 5])), torch.tensor([2, 5]))
    world.wait()


def test_most_images_of_a_forward(joined):
    assert joined(OFQ_MICRO_BATCH="24").micro_batch == 24


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OFQ_DEVICE": "gpu"}, "OFQ_DEVICE = 'gpu': expected cpu or cuda"),
        ({"OFQ_MICRO_BATCH": "0"}, "OFQ_MICRO_BATCH = '0': expected a whole number, at least 1"),
        ({"OFQ_MICRO_BATCH": "8.5"}, "OFQ_MICRO_BATCH = '8.5': expected a whole number"),
        ({"OFQ_MICRO_BATCH": "²"}, "OFQ_MICRO_BATCH = '²': expected a whole number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two': expected a whole number, at least 1"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", **MEETING},
            "RANK = 2: expected a number below WORLD_SIZE = 2",
        ),
        (
            {"RANK": "1"},
            "RANK = 1: expected a number below WORLD_SIZE = 1; without a launcher such as torchrun "
            "unset RANK",
        ),
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE = 2, but there is no RANK and no MASTER_ADDR and no MASTER_PORT: no "
            "launcher such as torchrun started this process; unset WORLD_SIZE",
        ),
        (
            {"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": ""},
            "WORLD_SIZE = 4, but there is no MASTER_PORT: no launcher",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", **MEETING, "MASTER_PORT": "http"},
            "MASTER_PORT = 'http': expected a whole number",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", **MEETING, "MASTER_PORT": "65536"},
            "MASTER_PORT = '65536': expected a whole number, at most 65535",
        ),
    ],
)
def test_values_that_cannot_be(environment, message, joined):
    with pytest.raises(SettingsError) as error:
        joined(**environment)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_others_that_do_not_come(rank, joined, monkeypatch, capfd):
    """All that a launcher sets was left over: it ends, with one message and nothing else."""
    monkeypatch.setattr(distributed, "BY_HAND_SECONDS", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with pytest.raises(SettingsError) as error:
        joined(WORLD_SIZE="2", RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    expected = (
        f"WORLD_SIZE = 2, RANK = {rank}: the 2 processes did not meet at 127.0.0.1:{port} within 1 "
        "s ("
    )
    assert str(error.value).startswith(expected)
    assert "; without a launcher such as torchrun unset WORLD_SIZE and" in str(error.value)
    assert capfd.readouterr().err == ""


def test_cuda_that_is_not_there(joined, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="torch finds no CUDA device here: set cpu"):
        joined(OFQ_DEVICE="cuda")
    assert joined().device == torch.device("cpu")


def test_more_processes_than_cuda_devices(joined, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SettingsError, match=r"process 2 .* start at most 2 .*OFQ_PROCESSES"):
        joined(WORLD_SIZE="3", RANK="2", LOCAL_RANK="2", **MEETING)


@pytest.fixture(scope="module")
def inputs(digits, teacher_file):
    return Inputs(digits, teacher_file)


@pytest.fixture(scope="module")
def settings(micro):
    """A checkpoint after every step."""
    return micro("ofq", recipe={"checkpoint_seconds": 1e-9})


@pytest.fixture(scope="module")
def whole(settings, inputs, tmp_path_factory):
    """What one process ends with that nothing disturbs, and the gradients of its steps."""
    trainer = doubled_trainer(settings, inputs, tmp_path_factory.mktemp("whole") / "c.pt")
    gradients = record_gradients(trainer)
    trainer.run()
    return outcome(trainer) | {"gradients": gradients}


@pytest.fixture(scope="module")
def troubled(settings, inputs, whole, tmp_path_factory, in_two_processes):
    """The folder of two gloo processes, and what each of them ended with."""
    folder = tmp_path_factory.mktemp("troubled")
    with pytest.raises(CutOffError):
        doubled_trainer(settings, inputs, folder / "alone.pt", observe=cut_off).run()
    job = {
        "data": str(inputs.data),
        "teacher": str(inputs.teacher),
        "settings": settings.model_dump(mode="json"),
    }
    (folder / "job.json").write_text(json.dumps(job))
    torch.save(whole["gradients"], folder / "gradients.pt")
    return folder, in_two_processes("tests.training.shared_troubles", folder)


def test_not_a_number_in_one_process_stops_both(troubled):
    """With the same message, which names what the other one found; the checkpoint stays good."""
    folder, (first, second) = troubled
    assert first["broken"] == second["broken"]
    # The teacher sees the images first.
    expected = "loss = nan at step 8 (epoch 1), first in teacher.patch_embed.proj;"
    assert first["broken"].startswith(expected)
    assert f"last good checkpoint: {folder / 'broken.pt'}" in first["broken"]
    state = checkpoints.load(folder / "broken.pt")
    assert (state["progress"]["epoch"], state["progress"]["running"]["steps"]) == (1, 2)
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())


def test_a_validation_that_one_process_cannot_tell_stops_both(troubled):
    expected = "after step 6 (epoch 0), 1 of 30 val images get logits that are NaN or"
    for result in troubled[1]:
        assert result["unknown"].startswith(expected)


def test_both_take_the_same_checkpoint(troubled, identical):
    """Of a damaged one both say so and take the one before; the result is the same."""
    folder = troubled[0]
    for result in troubled[1]:
        assert result["unread by one"] == f"{folder / 'torn.pt'} cannot be read by one"
        mended = result["mended"]
        assert mended.pop("steps") == 18 - 7
        damaged, going_on = mended.pop("log")
        assert damaged.endswith(
            f"; not used, kept as {folder / 'torn.unusable'} until the run is done"
        )
        assert going_on.endswith(f"after epoch 1, step 1 from {folder / 'torn.previous.pt'}")
        identical(mended, result["undisturbed"])


def test_memory_of_one_process_decides_for_both(troubled, whole):
    """They agree before the first step, which is then taken once, and nothing else changes."""
    for found in (result["crowded"] for result in troubled[1]):
        memory = [line for line in found["log"] if "memory" in line]
        assert [line.split()[4] for line in memory] == ["16", "8"]
        assert found["pieces"] == 4
        assert found["steps"] == 18
        assert_same_outcome(found, whole)


def test_images_that_one_process_cannot_read_count_once(troubled):
    for result in troubled[1]:
        assert result["unread"] == (["0.png", "1.png", "both.png"], [3, 3, 3])


def test_asking_one_process_stops_both(troubled, identical):
    """After the same step, when the checkpoint is written; it goes on as if nothing had been."""
    for result in troubled[1]:
        assert result["stopped"].startswith(
            "stopped on request after epoch 1, step 4; run the same"
        )
        again = result["again"]
        assert again.pop("written")
        assert again.pop("steps") == [10, 8]
        identical(again, result["undisturbed"])


def test_two_processes_go_on_for_one(troubled, whole):
    """In the middle of an epoch: the step that was cut off and those after it."""
    for found in (result["going on"] for result in troubled[1]):
        assert found["steps"] == 18 - 8
        assert_same_outcome(found, whole)


def test_one_process_goes_on_for_two(troubled, whole, settings, inputs):
    trainer = doubled_trainer(settings, inputs, troubled[0] / "together.pt")
    follow_gradients(trainer, whole["gradients"])
    trainer.run()
    assert len(trainer.data.seen) == 18 - 8
    assert_same_outcome(outcome(trainer), whole)
