"""Evaluate any checkpoint with one command.

    python -m ofq_core.evaluate PATH --data FOLDER [--reference PATH|timm|torchvision] [--json OUT]
    python -m ofq_core.evaluate PATH --images ROOT          ROOT/<class>/<image>, nothing prepared

PATH is a run's folder, the teacher's folder, the weights in one of them, or a checkpoint in the
layout of the released code. Under torchrun the images are shared out; counts stay exact.
See docs/checkpoints.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ofq_core.checkpoints.subject import Subject, open_reference, open_subject
from ofq_core.data import Data, check_alike, check_class_names, open_data, read_manifest
from ofq_core.data.class_names import composed
from ofq_core.data.folder import FolderOrigin
from ofq_core.data.images import ImageData
from ofq_core.data.manifest import PreparedImages, not_images
from ofq_core.data.rows import Rows, shown
from ofq_core.distributed import join_world
from ofq_core.errors import DataError, OFQError
from ofq_core.evaluation import Evaluation, evaluate
from ofq_core.explain import validated
from ofq_core.files import write_json
from ofq_core.models import image_shape
from ofq_core.output import any_output
from ofq_core.settings import DataSettings, DigitsSettings, ImageSettings

Shape = tuple[int, int, int]
# The mean and deviation that are known without settings are those of colour images.
COLOURS = 3
# How many names a message gives.
SHOWN = 5
INTERRUPTED = 130  # as shells report a command that Ctrl-C ended


def prepared_data(folder: Path, shape: Shape, settings: DataSettings | None) -> Data:
    """What the prepare stage wrote, as a model takes it.

    Args:
        shape: (channels, height, width) of the images that the model takes.
        settings: of the model's own run. None: what the manifest says, and for all else the
            preprocessing of spec 8.

    Raises:
        DataError: missing, damaged, or not what the settings say.
    """
    if settings is None:
        manifest = read_manifest(folder, needed=("classes",))
        known = manifest.get("settings", {})
        if "arrays_sha256" in manifest:
            settings = validated(DigitsSettings, {"name": "digits", **known}, str(folder))
        else:
            settings = _image_settings(folder.name, shape, known)
    return open_data(settings, folder)


def images_in(
    root: Path, shape: Shape, settings: DataSettings | None, names: list[str] | None = None
) -> Data:
    """All images of root/<class>/<image> as the test split, without preparing anything.

    Args:
        settings: of the model's own run, for its preprocessing; None: spec 8.
        names: the model's classes. Where the folders are called so, they are numbered so, whatever
            their own order.

    Raises:
        DataError: no class folders, one class only, or a class without images.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected {root}/<class>/<image>")
    root = root.resolve()
    where: dict[str, Any] = {
        "source": "folder",
        "train_split": root.name,
        "test_split": root.name,
        # Unreadable ones are reported; how many are too many is for the reader to say.
        "max_unreadable": 0.999,
    }
    if not isinstance(settings, ImageSettings):
        settings = _image_settings("images", shape, {"source": "folder"})
    # Unchecked: settings for training would not have one folder for both splits.
    settings = settings.model_copy(update=where)
    origin = FolderOrigin(settings, root.parent)
    catalogue = origin.catalogue(fresh=False)
    classes, test = catalogue.classes, catalogue.test
    known = composed(names or [])
    if sorted(known) == sorted(composed(classes)):
        numbers = np.array([known.index(name) for name in composed(classes)])
        classes, test = known, dataclasses.replace(test, labels=numbers[test.labels])
    splits = {"train": Rows.of([]), "val": Rows.of([]), "test": test}
    return ImageData(PreparedImages(origin, splits, classes, "", not_images(catalogue)), settings)


def _image_settings(name: str, shape: Shape, known: dict[str, Any]) -> ImageSettings:
    channels, size, _ = shape
    if channels != COLOURS:
        raise DataError(
            f"the model takes images of {channels} channel, and their mean and deviation are not "
            "known: evaluate the folder of its run, whose settings say them"
        )
    return validated(ImageSettings, {"name": name, **known, "size": size}, "data", prefix="data")


def run(subject: Subject, arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluate a model, and the reference that was asked for, on the data that was asked for.

    Returns:
        What goes to JSON: the checkpoint, the data, the result with counts per class, the files
        that were left out and why, the reference.

    Raises:
        DataError: the data do not fit the model.
        ModelError: a logit of one of the models is NaN or infinite.
    """
    data = _open(subject, arguments)
    reference = None
    if arguments.reference is not None:
        reference = open_reference(arguments.reference, subject)
        used = data.settings if isinstance(data, ImageData) else subject.data
        check_alike(f"reference {reference.source}", reference.data, used)
        _check_fits(reference, data, arguments.data or arguments.images)
    content: dict[str, Any] = {
        "checkpoint": subject.as_dict(),
        "data": str(arguments.data or arguments.images),
        "manifest_sha256": data.manifest_sha256 or None,
        "split": arguments.split,
        "reference": None,
    }
    with join_world() as world:

        def measure(subject: Subject) -> Evaluation:
            return evaluate(
                subject.model.to(world.device),
                data,
                arguments.split,
                arguments.batch_size,
                world.share,
                world.device,
                name=subject.source,
            )

        result = measure(subject)
        content["result"] = result.as_dict()
        left_out: dict[str, str] = {}
        for part in world.gathered(data.left_out()):
            left_out |= part
        content["left_out"] = left_out
        lines = [_left_out(left_out)] if left_out else []
        lines += [subject.describe(), f"  {_line(result, arguments.split)}"]
        if reference is not None:
            other = measure(reference)
            content["reference"] = {**reference.as_dict(), "result": other.as_dict()}
            lines += [reference.describe(), f"  {_line(other, arguments.split)}"]
            lines.append(f"difference: {result.top1 - other.top1:+.2f} points of top-1")
        if world.main:
            print("\n".join(lines))
    return content


def _open(subject: Subject, arguments: argparse.Namespace) -> Data:
    shape, place = image_shape(subject.model), arguments.data or arguments.images
    if arguments.images is not None and arguments.split != "test":
        raise DataError(f"{place}: images that nobody prepared have no {arguments.split} split")
    if arguments.images is None:
        data = prepared_data(place, shape, subject.data)
    else:
        data = images_in(place, shape, subject.data, subject.class_names)
    _check_fits(subject, data, place)
    if data.split_size(arguments.split) == 0:
        raise DataError(f"{place}: the split {arguments.split} is empty")
    return data


def _check_fits(subject: Subject, data: Data, place: Path) -> None:
    if data.classes != subject.settings.num_classes:
        raise DataError(
            f"{subject.source} tells {subject.settings.num_classes} classes apart, and the data "
            f"has {data.classes}"
        )
    if image_shape(subject.model) != data.shape:
        raise DataError(
            f"{subject.source} takes images of shape {image_shape(subject.model)} (channels, "
            f"height, width), and the data has {data.shape}"
        )
    checked = check_class_names(subject.source, subject.class_names, data.class_names, str(place))
    if not checked and os.environ.get("RANK", "0") == "0":
        silent = subject.source if subject.class_names is None else place
        print(
            f"note: the order of the classes was not checked: {silent} does not say their names",
            file=sys.stderr,
        )


def _line(result: Evaluation, split: str) -> str:
    unreadable = f", {result.n_unreadable} unreadable" if result.n_unreadable else ""
    return (
        f"top-1 {result.top1:.2f} % (95 % interval {result.top1_low:.2f} to "
        f"{result.top1_high:.2f}), top-5 {result.top5:.2f} %, {result.n_correct} of "
        f"{result.n_images} {split} images{unreadable}"
    )


def _left_out(files: dict[str, str]) -> str:
    some = ", ".join(f"{shown(name)} ({files[name]})" for name in sorted(files)[:SHOWN])
    return f"left out: {len(files)} files: {some}{', ...' * (len(files) > SHOWN)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that this command and `ofq_core.checkpoints.released` share."""
    parser.add_argument("path", type=Path, help="folder of a run, or a checkpoint")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--data", type=Path, help="folder that the prepare stage wrote")
    data.add_argument("--images", type=Path, help="folder of class folders of images")
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--batch-size", type=_positive, default=256, help="images per forward")
    parser.add_argument(
        "--reference", help="full-precision model to compare with: timm, torchvision or a path"
    )
    parser.add_argument("--json", type=Path, help="write everything here")
    for name in ("wbits", "abits", "num-heads"):
        parser.add_argument(
            f"--{name}", type=_positive, help="where a released checkpoint does not say it"
        )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return int(text)


def write_report(path: Path | None, content: dict[str, Any]) -> None:
    """Write the JSON that was asked for; under torchrun one process does."""
    if path is not None and os.environ.get("RANK", "0") == "0":
        write_json(path, content)


@any_output()
def command(run_main: Callable[[list[str]], None]) -> NoReturn:
    """Run a command and exit: 0, or 1 with one message on stderr; 130 when interrupted, 141 when
    nobody reads the output."""
    try:
        run_main(sys.argv[1:])
    except OFQError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)


def main(argv: list[str]) -> None:
    """Parse the command line, evaluate, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m ofq_core.evaluate", description="Evaluate any checkpoint."
    )
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.data is None and arguments.images is None:
        parser.error("give --data FOLDER (prepared) or --images ROOT (class folders)")
    subject = open_subject(arguments.path, arguments.wbits, arguments.abits, arguments.num_heads)
    write_report(arguments.json, run(subject, arguments))


if __name__ == "__main__":
    command(main)
