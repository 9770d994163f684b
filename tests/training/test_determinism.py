"""The same settings and seed give the same bits; every draw has a seed of its own."""

import pytest
import torch

from ofq_core.data import arrays
from ofq_core.training import derive_seed


@pytest.mark.parametrize("method", ["ofq", "lsq", "fp"])
def test_same_seed_same_bits(method, micro, train_run, identical, tmp_path):
    """Weights, optimizer, tracker, random state and losses, run twice."""
    settings = micro(method)
    first = train_run(settings, tmp_path / "first")
    torch.rand(7)  # what happened in the process before does not matter
    second = train_run(settings, tmp_path / "second")
    identical(first.state, second.state)
    assert first.student_bytes == second.student_bytes
    assert first.oscillation == second.oscillation
    assert first.training == second.training


def test_runs_compared_above_are_real(micro, train_run, tmp_path):
    """Weights moved, codes flipped and losses changed, or equality would prove nothing."""
    run = train_run(micro("ofq"), tmp_path)
    assert len({row["train_loss"] for row in run.history}) == 3
    assert [row["phase"] for row in run.history] == ["qat", "qat", "anneal"]
    tracked = run.state["tracker"]["state"]
    assert tracked["flips"] > 100
    assert tracked["reversals"].sum() > 0
    assert len(run.state["optimizer"]["state"]) > 20


def test_another_seed_is_another_run(micro, train_run, tmp_path):
    one, two = (train_run(micro("ofq", seed=seed), tmp_path / str(seed)) for seed in (0, 1))
    assert one.history[0]["train_loss"] != two.history[0]["train_loss"]
    name = "blocks.0.mlp.fc1.weight"
    assert not torch.equal(one.student[name], two.student[name])


@pytest.fixture
def seen(monkeypatch, micro, make_trainer, tmp_path):
    """Images of every step of a run, before and after augmentation."""

    def watch(method="ofq", seed=0, **groups):
        before, after = [], []
        augment = arrays.augment

        def spy(images, settings, source):
            before.append(images.clone())
            after.append(augment(images, settings, source))
            return after[-1]

        with monkeypatch.context() as patch:
            patch.setattr(arrays, "augment", spy)
            number = len(list(tmp_path.iterdir()))
            settings = micro(method, seed=seed, **groups)
            make_trainer(settings, tmp_path / f"{number}.pt").run()
        return torch.stack(before), torch.stack(after)

    return watch


def test_all_methods_see_the_same_images(seen):
    reference = seen("ofq")
    assert reference[0].shape == (18, 32, 1, 8, 8)
    for method in ("lsq", "statsq", "fp"):
        before, after = seen(method)
        assert torch.equal(before, reference[0]), f"{method}: order"
        assert torch.equal(after, reference[1]), f"{method}: augmentation"


def test_order_does_not_depend_on_augmentation(seen):
    none = {"shift_pixels": 0.0, "scale_range": 0.0, "rotate_degrees": 0.0, "noise": 0.0}
    before, after = seen("ofq", data=none)
    reference = seen("ofq")
    assert torch.equal(before, reference[0])
    assert not torch.equal(after, reference[1])


def test_augmentation_does_not_depend_on_what_was_drawn_before(seen):
    """A longer run starts with the same steps; noise draws nothing from anyone else."""
    reference = seen("ofq")
    longer = seen("ofq", recipe={"epochs": 3})
    assert torch.equal(longer[0][:12], reference[0][:12])
    assert torch.equal(longer[1][:12], reference[1][:12])


def test_every_epoch_and_step_draws_afresh(seen):
    before, after = seen("fp")
    first, second = before[:6], before[6:12]
    assert not torch.equal(first, second), "another order in every epoch"
    shifts = after - before
    assert not torch.equal(shifts[0], shifts[1])


def test_an_epoch_shows_no_image_twice(seen, digits):
    before, _ = seen("fp")
    epoch = before[:6].flatten(0, 1).flatten(1)
    assert len(epoch.unique(dim=0)) == len(epoch) == 192


def test_derived_seeds_differ_by_seed_and_purpose():
    purposes = [("order", 0), ("order", 1), ("augment", 0, 1), ("augment", 1, 0), ("torch",)]
    seeds = {derive_seed(seed, *purpose) for seed in (0, 1, 11) for purpose in purposes}
    assert len(seeds) == 15
    # ("a", 1, 23) and ("a", 12, 3) must not run together.
    assert derive_seed(0, "augment", 1, 23) != derive_seed(0, "augment", 12, 3)
    assert derive_seed(1, "order") != derive_seed(0, 1, "order")
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_derived_seeds_never_change():
    """sha256 of "0/order/0" and so on: another derivation would change every result."""
    assert derive_seed(0, "order", 0) == 3_955_691_223_199_900_983
    assert derive_seed(1000, "augment", 3, 5) == 235_167_395_907_414_752
