"""Stage `fit`: the cells of the tables fit the prepared data; asked before anything trains.

They alone wait for it: no experiment is refused because of a cell that will not run. Every stage
that trains asks for its own run again, for settings may change when the teacher is there already.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ofq_core.data import read_manifest
from ofq_core.data.order import epoch_steps, mix_group, positions
from ofq_core.distributed import World
from ofq_core.errors import DataError, ModelError
from ofq_core.files import write_atomic
from ofq_core.models import build_model, check_convertible, image_shape
from ofq_core.settings import DigitsSettings, ModelSettings, RunSettings, StudySettings
from pipelines.params import load_study
from pipelines.prepare import data_folder
from pipelines.stage import stage_main

Shape = tuple[int, ...]
OUTPUT = Path("data/checked/fit")


def main(argv: list[str]) -> None:
    """Check every cell and full-precision run of the tables."""
    study = load_study()
    runs = study.runs_of_grid()
    check_runs(study, runs, World())
    write_atomic(OUTPUT, b"The runs of the tables fit the data.\n")
    print(f"fit: {len(runs)} runs of the tables fit {data_folder(study)}")


def check_runs(study: StudySettings, runs: Iterable[RunSettings], world: World) -> None:
    """Check model and recipes of some runs by the manifest alone: no image is read or listed.

    Raises:
        DataError: nothing is prepared; the model takes other images or knows other classes; a batch
            is larger than an epoch, or too small for the processes.
        ModelError: there is no such model, or it cannot be quantized.
    """
    manifest = read_manifest(data_folder(study), needed=("classes", "splits"))
    # Without memory for its weights.
    with torch.device("meta"):
        model = build_model(study.model, 0)
    check_fits(model, study.model, manifest["classes"], _shape(study, manifest))
    for run in runs:
        if run.distill is not None:
            _check_convertible(model, study.model.name)
        key = _recipe_key(study, run)
        epoch_steps(manifest["splits"]["train"]["images"], run.recipe, key)
        positions(run.recipe.batch_size, world.share, mix_group(run.recipe), key)


def check_fits(model: nn.Module, settings: ModelSettings, classes: int, shape: Shape) -> None:
    """Check that a model takes images of a shape and knows so many classes.

    Args:
        shape: (channels, height, width).

    Raises:
        DataError: it does not.
    """
    if classes != settings.num_classes:
        raise DataError(
            f"model.num_classes = {settings.num_classes}, but the data has {classes} classes"
        )
    if image_shape(model) != shape:
        raise DataError(
            f"model.img_size = {settings.img_size}, model.in_chans = {settings.in_chans}: the "
            f"model takes images of shape {image_shape(model)}, the data has {shape} "
            "(channels, height, width)"
        )


def _check_convertible(model: nn.Module, name: str) -> None:
    try:
        check_convertible(model)
    except ModelError as error:
        raise ModelError(f"model.name = {name!r} cannot be quantized: {error}") from error


def _shape(study: StudySettings, manifest: dict[str, Any]) -> Shape:
    if isinstance(study.data, DigitsSettings):
        return tuple(manifest["image_shape"])
    return (study.data.channels, study.data.size, study.data.size)


def _recipe_key(study: StudySettings, run: RunSettings) -> str:
    """Where the settings say the batch size of a run."""
    if run.distill is None:
        return "teacher.recipe"
    return "recipe" if study.recipe.batch_size else f"recipe.by_bits.{run.quant.wbits}"


if __name__ == "__main__":
    stage_main(main, sys.argv[1:], __doc__)
