"""Images that cannot be read: never fatal in silence, never left out in silence."""

import warnings

import pytest
import torch
from PIL import Image, features

from ofq_core.data import Share
from ofq_core.data.order import epoch_order
from ofq_core.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def cut(path):
    """Keep the header, lose the pixels, as after a broken download."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def junk(path):
    path.write_bytes(b"<html>404</html>")


def epoch(data, recipe, share=None):
    return list(data.train_batches(recipe, 0, 0, 0, share or Share(), torch.device("cpu")))


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("damage", [cut, junk])
def test_training_takes_the_next_image(workers, damage, pets, opened, recipe, monkeypatch):
    """The next one of the list with its own class; counted and named, from workers too."""
    monkeypatch.setenv("OFQ_WORKERS", workers)
    for name in ("ant_3.png", "ant_4.JPEG"):
        damage(pets / "train/ant" / name)
    for name in ("cat_8.JPEG", "cat_9.png"):
        damage(pets / "train/cat" / name)
    plain = {"auto_augment": None, "erase_prob": 0.0, "hflip": 0.0, "crop_scale": None}
    data = opened(val_share=0.0, max_unreadable=0.1, **plain)
    rows = data.prepared.splits["train"]
    names = [rows.name(i) for i in range(len(rows))]
    bad = [f"train/ant/{n}" for n in ("ant_3.png", "ant_4.JPEG")]
    bad += [f"train/cat/{n}" for n in ("cat_8.JPEG", "cat_9.png")]
    seen = epoch(data, recipe(batch_size=42))[0]
    assert data.unreadable() == bad
    after = {bad[0]: "train/ant/ant_5.png", bad[2]: names[(names.index(bad[3]) + 1) % 42]}
    after |= {bad[1]: after[bad[0]], bad[3]: after[bad[2]]}
    assert names.index(bad[1]) == names.index(bad[0]) + 1, "two in a row"
    # With these settings a view is the image, so that a view tells which image it is of.
    order = epoch_order(42, recipe(batch_size=42), 0, 0).tolist()
    views = {names[k]: (seen.images[p], int(seen.targets[p])) for p, k in enumerate(order)}
    for name, stand_in in after.items():
        assert torch.equal(views[name][0], views[stand_in][0])
        assert views[name][1] == views[stand_in][1]
    assert len({view.numpy().tobytes() for view, _ in views.values()}) == 38


def test_the_stream_is_the_same_for_any_number_of_workers(pets, opened, recipe, monkeypatch):
    cut(pets / "train/bee/bee_1.png")
    alone = epoch(opened(max_unreadable=0.1), recipe())
    monkeypatch.setenv("OFQ_WORKERS", "2")
    for a, b in zip(alone, epoch(opened(max_unreadable=0.1), recipe()), strict=True):
        assert torch.equal(a.images, b.images)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_evaluation_leaves_them_out(workers, pets, opened, cpu, monkeypatch):
    """They are missing from the count, and named; a batch may even be empty."""
    monkeypatch.setenv("OFQ_WORKERS", workers)
    good = torch.cat([b.images for b in opened().eval_batches("test", 4, Share(), cpu)])
    for name in ("ant_1.png", "ant_2.JPEG"):
        cut(pets / "val/ant" / name)
    data = opened(max_unreadable=0.2)
    for batch in (1, 2, 4):
        found = list(data.eval_batches("test", batch, Share(), cpu))
        assert torch.equal(torch.cat([b.images for b in found]), good[[0, *range(3, 15)]])
        assert sum(len(b.targets) for b in found) == 13
    assert data.unreadable() == ["val/ant/ant_1.png", "val/ant/ant_2.JPEG"]
    assert data.split_size("test") == 15


def test_each_process_names_its_own(pets, opened, cpu):
    cut(pets / "val/ant/ant_1.png")
    first, second = opened(max_unreadable=0.2), opened(max_unreadable=0.2)
    list(first.eval_batches("test", 4, Share(0, 2), cpu))
    list(second.eval_batches("test", 4, Share(1, 2), cpu))
    assert (first.unreadable(), second.unreadable()) == ([], ["val/ant/ant_1.png"])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_too_many_stop_training(workers, pets, opened, recipe, monkeypatch):
    """Files that went bad after they were prepared, headers and all."""
    monkeypatch.setenv("OFQ_WORKERS", workers)
    data = opened(max_unreadable=0.05, val_share=0.0)
    for path in sorted((pets / "train/cat").iterdir()):
        cut(path)
    with pytest.raises(DataError) as error:
        epoch(data, recipe())
    message = str(error.value)
    assert "of 42 images of split 'train' cannot be read" in message
    assert "data.max_unreadable = 0.05 allows 2: train/cat/cat_" in message
    assert len(data.unreadable()) >= 3


def test_too_many_stop_evaluation_and_calibration(pets, opened, cpu):
    data = opened(max_unreadable=0.0)
    cut(pets / "val/bee/bee_0.JPEG")
    with pytest.raises(DataError, match=r"1 of 15 images of split 'test' .*val/bee/bee_0.JPEG"):
        list(data.eval_batches("test", 4, Share(), cpu))
    for path in (pets / "train").rglob("*.*"):
        cut(path)
    with pytest.raises(DataError, match="images of split 'train' cannot be read"):
        data.calibration_images(0, 4)


def test_calibration_passes_over_them(pets, opened):
    data = opened(max_unreadable=0.2, val_share=0.0)
    before = data.calibration_images(0, 42)
    bad = data.prepared.splits["train"].name(0)
    cut(pets / bad)
    after = data.calibration_images(0, 42)
    assert len(after) == 41
    assert data.unreadable() == [bad]
    position = next(i for i in range(42) if i == 41 or not torch.equal(before[i], after[i]))
    assert torch.equal(after[position:], before[position + 1 :])


def test_preparing_names_bad_headers(pets, opened):
    junk(pets / "train/ant/ant_3.png")
    junk(pets / "val/cat/cat_0.JPEG")
    with pytest.raises(
        DataError, match=r"1 of 42 images of split 'train' cannot be read, .*allows"
    ):
        opened()
    with pytest.raises(DataError, match=r"1 of 15 images of split 'val' .*: val/cat/cat_0.JPEG"):
        opened(max_unreadable=0.05)
    data = opened(max_unreadable=0.1)
    assert data.train_size == 34, "they stay in their split, and are met again in training"


def test_a_message_names_five_files_at_most(pets, opened):
    for path in (pets / "train/bee").iterdir():
        junk(path)
    with pytest.raises(DataError, match=r"14 of 42 .* and 9 more\. Mend or remove") as error:
        opened()
    assert str(error.value).count("train/bee/") == 5


class Odd:
    """A source whose decoder fails in its own way, or warns, for one image.

    The error is made anew: one that is kept would keep all that it has passed, readers included.
    """

    def __init__(self, origin, victim, make_error):
        self.origin, self.victim, self.make_error = origin, victim, make_error

    def image(self, name, place, size):
        error = self.make_error() if name == self.victim else None
        if isinstance(error, Warning):
            warnings.warn(error, stacklevel=1)
        elif error is not None:
            raise error
        return self.origin.image(name, place, size)


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize(
    ("make_error", "count"),
    [
        (lambda: RuntimeError("Failed to decode frame 0: Truncated data"), 1),
        (ZeroDivisionError, 1),
        (AssertionError, 1),
        (lambda: Image.DecompressionBombWarning("99999999 pixels"), 0),
        (lambda: UserWarning("Corrupt EXIF data"), 0),
    ],
)
@pytest.mark.usefixtures("pets")
def test_any_error_of_a_decoder(workers, make_error, count, opened, recipe, monkeypatch, cpu):
    """Of a damaged AVIF, say; and no warning is an error, though pytest makes all of them that."""
    monkeypatch.setenv("OFQ_WORKERS", workers)
    data = opened(max_unreadable=0.05, val_share=0.0)
    victim = data.prepared.splits["train"].name(3)
    data._images["train"].origin = Odd(data.prepared.origin, victim, make_error)
    assert len(epoch(data, recipe())) == 5
    data.calibration_images(0, 42)
    assert data.unreadable() == [victim] * count


@pytest.mark.skipif(not features.check("avif"), reason="a Pillow without AVIF")
def test_damaged_avif(pets, opened):
    """Its header is whole; the decoder raises a RuntimeError."""
    path = pets / "train/ant/ant_1.avif"
    with Image.open(pets / "train/ant/ant_1.png") as image:
        image.save(path)
    content = path.read_bytes()
    pixels = content.index(b"mdat") + 4
    path.write_bytes(content[:pixels] + bytes(len(content) - pixels))
    data = opened(max_unreadable=0.05, val_share=0.0)
    data.calibration_images(0, 43)
    assert data.unreadable() == ["train/ant/ant_1.avif"]
    with pytest.raises(DataError, match=r"1 of 43 .*allows 0: train/ant/ant_1.avif \(.*decode"):
        opened(val_share=0.0).calibration_images(0, 43)


def test_warnings_of_headers(pets, opened, monkeypatch):
    """A large image is no error, even where warnings are."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    assert opened(val_share=0.0).train_size == 42
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    (pets / "train/ant/ant_1.png").touch()
    with pytest.raises(DataError, match=r"ant_1.png \(Image size \(480 pixels\) exceeds limit"):
        opened(val_share=0.0)


def test_a_link_that_broke_after_preparing(pets, opened, recipe):
    """The class folder has not changed: the image is missed where it is read, and named."""
    (pets / "kept.png").write_bytes((pets / "train/ant/ant_1.png").read_bytes())
    (pets / "train/ant/ant_1.png").unlink()
    (pets / "train/ant/ant_1.png").symlink_to(pets / "kept.png")
    data = opened(max_unreadable=0.05, val_share=0.0)
    (pets / "kept.png").unlink()
    epoch(data, recipe())
    data.calibration_images(0, 42)
    assert data.unreadable() == ["train/ant/ant_1.png"]
    assert data.left_out() == {"train/ant/ant_1.png": "No such file or directory"}
