"""A batch that is split over processes or cut into pieces trains as one that is not.

In FP64, over whole runs with CGA; every step is compared from equal states (`doubled`).
"""

import json

import pytest
import torch

from ofq_core.distributed import World
from ofq_core.errors import DataError
from pipelines.training import Inputs
from tests.training.doubled import (
    assert_same_outcome,
    doubled_trainer,
    follow_gradients,
    outcome,
    record_gradients,
)

METHODS = ["lsq_cga", "statsq", "ofq"]
# 32 images in three unequal parts, and a batch that two processes cannot halve: 31 = 16 + 15.
SIZES = {"even": 32, "odd": 31}
RUNS = [(method, "even") for method in METHODS] + [("ofq", "odd")]


@pytest.fixture(scope="module")
def inputs(digits, teacher_file):
    return Inputs(digits, teacher_file)


@pytest.fixture(scope="module")
def settings(micro):
    return lambda method, size: micro(method, recipe={"batch_size": SIZES[size]})


@pytest.fixture(scope="module")
def whole(settings, inputs, tmp_path_factory):
    """One process, one piece: outcome, first images, and the gradients of every step."""
    made = {}

    def run(method, size):
        if (method, size) not in made:
            folder = tmp_path_factory.mktemp("whole")
            trainer = doubled_trainer(settings(method, size), inputs, folder / "c.pt")
            gradients = record_gradients(trainer)
            trainer.run()
            assert len(gradients) == 18
            found = {"seen": trainer.data.seen[:4], "gradients": gradients}
            made[method, size] = outcome(trainer) | found
        return made[method, size]

    return run


@pytest.fixture(scope="module")
def two_processes(settings, inputs, whole, tmp_path_factory, in_two_processes):
    """All runs in two gloo processes: what each of them ended with."""
    folder = tmp_path_factory.mktemp("two")
    runs = {f"{m}-{size}": settings(m, size).model_dump(mode="json") for m, size in RUNS}
    job = {"data": str(inputs.data), "teacher": str(inputs.teacher), "runs": runs}
    (folder / "job.json").write_text(json.dumps(job))
    gradients = {f"{m}-{size}": whole(m, size)["gradients"] for m, size in RUNS}
    torch.save(gradients, folder / "gradients.pt")
    return in_two_processes("tests.training.parallel_runs", folder)


@pytest.mark.parametrize(("method", "size"), RUNS)
def test_two_processes(method, size, whole, two_processes):
    expected = whole(method, size)
    for found in two_processes:
        assert_same_outcome(found[f"{method}-{size}"], expected)


@pytest.mark.parametrize(("method", "size"), RUNS)
def test_two_processes_see_the_images_of_one(method, size, whole, two_processes):
    """Bit for bit, augmentation included, each image in one of them."""
    expected = whole(method, size)["seen"]
    parts = [found[f"{method}-{size}"]["seen"] for found in two_processes]
    for step, images in enumerate(expected):
        assert torch.equal(torch.cat([part[step] for part in parts]), images)


def test_all_processes_end_alike(two_processes):
    first, second = two_processes
    for name, run in first.items():
        for key, value in run["state"].items():
            assert torch.equal(value, second[name]["state"][key]), (name, key)


@pytest.mark.parametrize("micro_batch", [16, 11, 1])
@pytest.mark.parametrize("method", ["lsq_cga", "ofq"])
def test_pieces(method, micro_batch, whole, settings, inputs, tmp_path):
    """Two equal pieces, three unequal ones, one image at a time."""
    world = World(micro_batch=micro_batch)
    trainer = doubled_trainer(settings(method, "even"), inputs, tmp_path / "c.pt", world)
    follow_gradients(trainer, whole(method, "even")["gradients"])
    trainer.run()
    assert trainer.gradients.pieces == -(-32 // micro_batch)
    assert_same_outcome(outcome(trainer), whole(method, "even"))


def test_what_the_size_of_the_batch_decides(settings, inputs, tmp_path, monkeypatch):
    """LSQ that is not told the whole batch takes gradients of its scales that are too large."""
    monkeypatch.setattr("ofq_core.training.step.set_whole_batch", lambda model, factor: None)
    gradients = {}
    for micro_batch in (32, 8):
        world = World(micro_batch=micro_batch)
        run = settings("lsq_cga", "even")
        trainer = doubled_trainer(run, inputs, tmp_path / f"{micro_batch}.pt", world)
        where = (run.recipe, run.seed, 0, 0, world.share, world.device)
        trainer.model.train()
        trainer.gradients.fill(next(trainer.data.train_batches(*where)), 0, 0)
        quantizer = trainer.model.blocks[0].mlp.fc1.input_quantizer
        gradients[micro_batch] = quantizer.scale.grad.clone(), quantizer.bias_before.grad.clone()
    torch.testing.assert_close(gradients[8][0], 2.0 * gradients[32][0])
    torch.testing.assert_close(gradients[8][1], gradients[32][1])


def test_memory_that_runs_out_halves_the_pieces(whole, settings, inputs, tmp_path, monkeypatch):
    """The step is repeated in smaller pieces; nothing of the attempt that failed is left."""
    log = []
    trainer = doubled_trainer(settings("ofq", "even"), inputs, tmp_path / "c.pt", log=log.append)
    losses = trainer.gradients._losses

    def crowded(model, images, targets):
        result = losses(model, images, targets)
        if len(images) > 8:
            result.total.backward(retain_graph=True)  # it got as far as gradients
            raise torch.OutOfMemoryError("by the test")
        return result

    monkeypatch.setattr(trainer.gradients, "_losses", crowded)
    follow_gradients(trainer, whole("ofq", "even")["gradients"])
    trainer.run()
    assert [line.split(":")[0] for line in log if "memory" in line] == [
        "out of memory with 32 images per forward",
        "out of memory with 16 images per forward",
    ]
    assert trainer.gradients.pieces == 4
    assert_same_outcome(outcome(trainer), whole("ofq", "even"))


def test_more_processes_than_images(settings, inputs, tmp_path, micro):
    run = micro("ofq", recipe={"batch_size": 3})
    with pytest.raises(DataError, match=r"batch_size = 3: 3 images cannot be split over 4 proc"):
        doubled_trainer(run, inputs, tmp_path / "c.pt", World(rank=0, size=4))


def test_a_run_may_go_on_with_other_pieces(whole, settings, inputs, tmp_path):
    """Cut off in the middle of CGA, resumed on a machine with less memory."""
    run = settings("ofq", "even")
    often = run.recipe.model_copy(update={"checkpoint_seconds": 1e-9})
    run = run.model_copy(update={"recipe": often})

    class CutOffError(Exception):
        pass

    def cut_off(event):
        if (event.epoch, event.step) == (2, 3):
            raise CutOffError

    first = doubled_trainer(run, inputs, tmp_path / "c.pt", observe=cut_off)
    follow_gradients(first, whole("ofq", "even")["gradients"])
    with pytest.raises(CutOffError):
        first.run()
    second = doubled_trainer(run, inputs, tmp_path / "c.pt", World(micro_batch=11))
    follow_gradients(second, whole("ofq", "even")["gradients"])
    second.run()
    assert len(second.data.seen) == 3, "steps 3, 4 and 5 of the last epoch were left"
    assert_same_outcome(outcome(second), whole("ofq", "even"))
