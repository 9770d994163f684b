"""Measure whether data loading limits training:

    python -m benchmarks.loader --no-model        the loader alone
    python -m benchmarks.loader                   and how long a training step waits for it

Images per second of the data loader with 0, 1, 2, ... worker processes, each beside a bare loop
in one process that opens, decodes and transforms the same files without a loader. The images are
generated JPEG files of 500 x 375 pixels, or yours: --images FOLDER, with train/<class>/<image> and
val/<class>/<image>. Transforms are those of conf/data/imagenet.yaml. Wall time, torch on one thread
(workers have one each), rounds interleaved.
"""

from __future__ import annotations

import argparse
import gzip
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.commits import ROOT
from benchmarks.interleave import Ratio
from benchmarks.subjects import SIZES, Step, make_model, threads
from ofq_core.data import Batch, Data, Share, augment, load_prepared, open_data, prepare_data
from ofq_core.data.transforms import eval_transform, train_transform
from ofq_core.settings import DigitsSettings, ImageSettings, RecipeSettings
from ofq_core.yaml_files import read_yaml

CPU = torch.device("cpu")
NAME = "benchmark"
CLASSES, SIDES = 4, (500, 375)
BATCH = 16
# Debian's package dataset-fashion-mnist.
FASHION, FASHION_IMAGES = Path("/usr/share/datasets/fashion-mnist"), 2048


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loader",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--no-model", action="store_true", help="the loader alone")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="measure these images")
    parser.add_argument("--count", type=int, default=128, help="images to generate")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    found = measure_loader(arguments.workers, arguments.rounds, arguments.count, arguments.images)
    print(text(found))
    if not arguments.no_model:
        for workers in arguments.workers:
            share = waiting(workers, arguments.count, arguments.images)
            print(f"DeiT-T, W2A2, {workers} workers: {share:.1%} of a step waits for its images")


def text(found: dict[str, Any]) -> str:
    """The result for people, one line each."""
    lines = []
    for kind, rows in found.items():
        for name, row in rows.items():
            rate = f"{kind}, {name}: {row['images_per_second']:.0f} images/s"
            if "per_worker" in row:
                part = row["ratio_per_worker"]["median"]
                rate += f", {row['per_worker']:.0f} a worker, {part:.2f} of the bare loop"
            lines.append(rate)
    return "\n".join(lines)


def measure_loader(
    workers: list[int], rounds: int, count: int, images: Path | None = None
) -> dict[str, Any]:
    """Images per second by kind of data: of the bare loop, and with so many workers.

    Args:
        workers: numbers of worker processes; 0 reads in the training process.
        count: images to generate where `images` names none.
    """
    with threads(1), image_folder(images, count) as (root, prepared):
        settings = imagenet_settings()
        result = {
            "imagenet_train": _compare(
                lambda: bare_loop(root / "train", train_transform(settings)),
                {n: _train(settings, prepared, n) for n in workers},
                rounds,
            ),
            "imagenet_eval": _compare(
                lambda: bare_loop(root / "val", eval_transform(settings)),
                {n: _eval(settings, prepared, n) for n in workers},
                rounds,
            ),
        }
        result["digits"] = _digits(prepared.parent / "digits", rounds)
        if FASHION.is_dir():
            result["fashion_mnist"] = _fashion(prepared.parent / "fashion", workers, rounds)
    return result


def waiting(workers: int, count: int, images: Path | None = None) -> float:
    """Share of the time of DeiT-T's training steps that is spent waiting for the loader."""
    size = SIZES["deit_tiny"]
    step = Step(make_model(size, "statsq"), size, BATCH)
    with threads(1), image_folder(images, count) as (_, prepared):
        os.environ["OFQ_WORKERS"] = str(workers)
        data = open_data(imagenet_settings(), prepared)
        batches = train_batches(data)
        next(batches)  # workers start
        waited, began = 0.0, time.perf_counter()
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                return waited / (time.perf_counter() - began)
            step.images, step.labels = batch.images, batch.targets
            step()


def _compare(
    bare: Callable[[], int], loaders: dict[int, Callable[[], int]], rounds: int
) -> dict[str, Any]:
    """Images per second of the bare loop and of each loader, and per worker over the bare loop."""
    rates: dict[str, list[float]] = {"bare loop": []}
    named = {f"{n} workers": (n, run) for n, run in loaders.items()}
    rates |= {name: [] for name in named}
    for number in range(rounds + 1):
        for name, run in (("bare loop", bare), *((k, run) for k, (_, run) in named.items())):
            began = time.perf_counter()
            images = run()
            if number:  # the first round warms up
                rates[name].append(images / (time.perf_counter() - began))
    rows: dict[str, Any] = {
        name: {"images_per_second": statistics.median(values)} for name, values in rates.items()
    }
    for name, (count, _) in named.items():
        per_worker = [rate / max(count, 1) for rate in rates[name]]
        pairs = zip(per_worker, rates["bare loop"], strict=True)
        rows[name]["per_worker"] = statistics.median(per_worker)
        rows[name]["ratio_per_worker"] = Ratio.of([a / b for a, b in pairs]).as_dict()
    return rows


def bare_loop(folder: Path, transform: Callable[[Image.Image], torch.Tensor]) -> int:
    """Open, decode, transform and stack every image below a folder; their number."""
    done, kept = 0, []
    for path in sorted(folder.rglob("*.*")):
        with Image.open(path) as image:
            kept.append(transform(image.convert("RGB")))
        done += 1
        if len(kept) == BATCH:
            torch.stack(kept)
            kept = []
    return done


def train_batches(data: Data) -> Iterator[Batch]:
    """All batches of the first epoch."""
    recipe = RecipeSettings(epochs=1, cga_epochs=0, batch_size=BATCH, lr=1e-5)
    return data.train_batches(recipe, 0, 0, 0, Share(), CPU)


def _train(settings: ImageSettings, prepared: Path, workers: int) -> Callable[[], int]:
    os.environ["OFQ_WORKERS"] = str(workers)
    data = open_data(settings, prepared)
    return lambda: sum(len(batch.images) for batch in train_batches(data))


def _eval(settings: ImageSettings, prepared: Path, workers: int) -> Callable[[], int]:
    os.environ["OFQ_WORKERS"] = str(workers)
    data = open_data(settings, prepared)

    def run() -> int:
        return sum(len(b.images) for b in data.eval_batches("test", BATCH, Share(), CPU))

    return run


def _digits(prepared: Path, rounds: int) -> dict[str, Any]:
    """Arrays in memory, which no worker reads; beside a bare loop over them."""
    settings = DigitsSettings(name="digits")
    prepare_data(settings, prepared)
    arrays = load_prepared(prepared)
    data = open_data(settings, prepared)

    def bare() -> int:
        draws, done = torch.Generator().manual_seed(0), 0
        for index in torch.split(torch.randperm(len(arrays.train)), BATCH):
            done += len(arrays.normalise(augment(arrays.train.images[index], settings, draws)))
        return done

    return _compare(bare, {0: lambda: sum(len(b.images) for b in train_batches(data))}, rounds)


def _fashion(prepared: Path, workers: list[int], rounds: int) -> dict[str, Any]:
    """2,048 images of Fashion-MNIST, which lie in memory as one array."""
    loaded = read_yaml(ROOT / "conf/data/fashion_mnist.yaml")
    settings = ImageSettings(**loaded | {"subset": FASHION_IMAGES})
    prepare_data(settings, prepared)
    packed = gzip.decompress((FASHION / "train-images-idx3-ubyte.gz").read_bytes())
    pixels = np.frombuffer(packed, np.uint8, offset=16).reshape(-1, 28, 28)
    transform = train_transform(settings)

    def bare() -> int:
        for first in range(0, FASHION_IMAGES, BATCH):
            views = [transform(Image.fromarray(p)) for p in pixels[first : first + BATCH]]
            torch.stack(views)
        return FASHION_IMAGES

    return _compare(bare, {n: _train(settings, prepared, n) for n in workers}, rounds)


def imagenet_settings() -> ImageSettings:
    """ImageNet's settings for the folder of the benchmark."""
    loaded = read_yaml(ROOT / "conf/data/imagenet.yaml")
    return ImageSettings(**loaded | {"name": NAME, "val_share": 0.0})


@contextmanager
def image_folder(images: Path | None, count: int) -> Iterator[tuple[Path, Path]]:
    """Folders of the images and of what `prepare` writes; environment variables as they were."""
    before = {key: os.environ.get(key) for key in ("OFQ_DATA_DIR", "OFQ_WORKERS", "XDG_CACHE_HOME")}
    with tempfile.TemporaryDirectory(prefix="ofq-loader-") as place:
        sets = Path(place) / "sets"
        root = sets / NAME
        if images is None:
            generate(root / "train", count)
            generate(root / "val", count, seed=1)
        else:
            sets.mkdir()
            root.symlink_to(images.resolve())
        os.environ["OFQ_DATA_DIR"] = str(sets)
        os.environ["XDG_CACHE_HOME"] = str(Path(place) / "cache")
        try:
            prepared = Path(place) / "prepared"
            prepare_data(imagenet_settings(), prepared)
            yield root, prepared
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


def generate(folder: Path, count: int, seed: int = 0) -> None:
    """Write smooth random JPEG images, <class>/<number>.JPEG, some 100 kB each as ImageNet's."""
    draws = np.random.RandomState(seed)
    for number in range(count):
        small = Image.fromarray(draws.randint(0, 256, (48, 64, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize(SIDES, Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (pixels + draws.randint(-16, 17, pixels.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"class{number % CLASSES}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(path, quality=90)


if __name__ == "__main__":
    main()
