"""The teacher's answers of earlier runs: the same numbers with them and without."""

import json

import pytest
import torch
from torch import nn

from ofq_core.training import Teacher, TeacherCache
from pipelines import training

CACHED = {"distill": {"cache_teacher": True}}


class Asked(nn.Module):
    """Counts how often it is asked."""

    def __init__(self, factor=2.0):
        super().__init__()
        self.factor, self.times = factor, 0

    def forward(self, images):
        self.times += 1
        return self.factor * images.flatten(1)[:, :3]


def images(seed):
    return torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def teacher_of(folder, model=None, log=print):
    return Teacher(model or Asked(), "mean", cache=TeacherCache(folder, log))


def filled(folder):
    """What a run leaves that asked about two batches of epoch 3."""
    teacher = teacher_of(folder)
    teacher.cache.enter(3)
    answers = [teacher(images(seed)) for seed in (0, 1)]
    teacher.cache.finish()
    return answers


def answered(folder, *seeds, epoch=3):
    """Answers of a later run, and how often it had to ask."""
    teacher = teacher_of(folder)
    teacher.cache.enter(epoch)
    answers = [teacher(images(seed)) for seed in seeds]
    teacher.cache.finish()
    return answers, teacher.model.times


def test_answers_are_taken_for_the_same_images_alone(tmp_path):
    first = filled(tmp_path)
    answers, times = answered(tmp_path, 1, 0)
    assert times == 0
    assert torch.equal(answers[0], first[1])
    assert torch.equal(answers[1], first[0])
    assert answered(tmp_path, 2)[1] == 1, "other images"
    assert answered(tmp_path, 0, epoch=4)[1] == 1, "another epoch"


def test_one_bit_more_is_another_image(tmp_path):
    filled(tmp_path)
    teacher = teacher_of(tmp_path)
    teacher.cache.enter(3)
    batch = images(0)
    batch[0, 0, 0, 0] = torch.nextafter(batch[0, 0, 0, 0], torch.tensor(9.0))
    teacher(batch)
    teacher(images(0)[:2])
    teacher(images(0).view(4, 4, 1, 1))
    assert teacher.model.times == 3


def test_what_is_new_joins_what_was_there(tmp_path):
    """A run that was cut off writes nothing of its epoch; the next one adds the rest."""
    filled(tmp_path)
    answered(tmp_path, 1, 2)
    assert answered(tmp_path, 0, 1, 2)[1] == 0


def test_the_next_epoch_writes_the_one_before(tmp_path):
    teacher = teacher_of(tmp_path)
    for epoch in (0, 0, 1):
        teacher.cache.enter(epoch)
        teacher(images(epoch))
    assert answered(tmp_path, 0, epoch=0)[1] == 0


def test_compiled_answers_are_kept_apart(tmp_path):
    filled(tmp_path)
    teacher = teacher_of(tmp_path)
    teacher.cache.enter(3, compiled=True)
    teacher(images(0))
    assert teacher.model.times == 1


def flip(path):
    content = bytearray(path.read_bytes())
    place = content.index((2 * images(0).flatten(1)[:, :3]).numpy().tobytes())
    content[place + 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "bit": flip,
    "rewritten": lambda path: torch.save(torch.load(path, weights_only=True), path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_of_and_replaced(damage, tmp_path):
    (expected, _), path = filled(tmp_path), tmp_path / "3.pt"
    DAMAGES[damage](path)
    log = []
    teacher = teacher_of(tmp_path, log=log.append)
    teacher.cache.enter(3)
    assert torch.equal(teacher(images(0)), expected)
    teacher.cache.finish()
    assert teacher.model.times == 1
    (line,) = log
    assert line.startswith(f"{path}")
    assert line.endswith(": the teacher answers anew")
    assert answered(tmp_path, 0)[1] == 0


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "file").touch()
    assert answered(tmp_path / "file" / "below", 0)[1] == 1


def test_answers_that_are_not_finite_are_asked_again(tmp_path):
    for _ in range(2):
        teacher = teacher_of(tmp_path, Asked(float("nan")))
        teacher.cache.enter(0)
        teacher(images(0))
        teacher.cache.finish()
        assert teacher.model.times == 1


def test_a_teacher_that_draws_is_not_cached(tmp_path):
    with pytest.raises(ValueError, match="drawn"):
        Teacher(Asked(), "mean", "train", TeacherCache(tmp_path, print))


def test_a_run_is_the_same_with_and_without(micro, train_run, tmp_path, monkeypatch):
    """And the second student of a seed, of another method, asks nothing."""
    plain = train_run(micro("ofq"), tmp_path / "plain")
    cold = train_run(micro("ofq", **CACHED), tmp_path / "cached")
    lsq = train_run(micro("lsq"), tmp_path / "plain")

    def ask(self, batch):
        raise AssertionError("asked again")

    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "_ask", ask)
        warm = train_run(micro("lsq", **CACHED), tmp_path / "cached")
    for one, other in ((plain, cold), (lsq, warm)):
        assert one.student_bytes == other.student_bytes
        assert json.dumps(one.history) == json.dumps(other.history)
        assert one.oscillation == other.oscillation


def test_a_folder_says_what_may_change_an_answer(micro, teacher_file):
    """Another seed, format or model: another folder. Another method: the same."""
    world = training.World()

    def folder(method="ofq", world=world, **changes):
        settings = micro(method, **changes)
        return training._answers_folder(settings, teacher_file, world)

    here = folder()
    assert folder("lsq") == here
    others = [
        folder(seed=7),
        folder(recipe={"precision": "bf16"}),
        folder(recipe={"batch_size": 16}),
        folder(fidelity={"teacher_head": "cls"}),
        folder(world=training.World(1, 2)),
    ]
    assert len({here, *others}) == 6
