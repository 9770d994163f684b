"""Whether the runs of a study fit the prepared data: asked before the first of them trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ofq_core.data import read_manifest
from ofq_core.data.order import epoch_steps, mix_group, positions
from ofq_core.distributed import World
from ofq_core.errors import DataError, ModelError
from ofq_core.models import build_model, check_convertible, image_shape
from ofq_core.settings import DigitsSettings, ModelSettings, RunSettings, StudySettings
from pipelines.prepare import data_folder
from pipelines.teacher import is_given

Shape = tuple[int, ...]


def check_study(study: StudySettings, world: World) -> None:
    """Check every run that the settings describe, the teacher's own training included.

    Whatever stage trains first asks, so nothing is trained for a study that cannot be finished.

    Raises:
        DataError, ModelError: see `check_runs`.
    """
    runs = study.every_run()
    if not is_given(study):
        runs.append(study.full_precision(study.teacher.seed))
    check_runs(study, runs, world)


def check_runs(study: StudySettings, runs: Iterable[RunSettings], world: World) -> None:
    """Check model and recipes of some runs by the manifest alone: no image is read or listed.

    Raises:
        DataError: nothing is prepared; the model takes other images or knows other classes; a batch
            is larger than an epoch, or too small for the processes.
        ModelError: there is no such model, or it cannot be quantized.
    """
    manifest = read_manifest(data_folder(study), needed=("classes", "splits"))
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
