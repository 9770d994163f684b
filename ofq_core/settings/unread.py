"""Settings that nothing would read: a value that has no effect is refused, not passed over.

A key at its default is not "set": every preset writes many of them. Nor are the keys of `by_bits`:
those are published recipes, whole, for whom turns on what they need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from ofq_core.settings.data import ImageSettings
from ofq_core.settings.fidelity import BUNDLES, FidelitySettings
from ofq_core.settings.quant import CommonQuantSettings, checked_options
from ofq_core.settings.recipe import DistillSettings, RecipeSettings

if TYPE_CHECKING:
    from ofq_core.settings.study import StudySettings

_MIXES = "mixup = cutmix = 0"
_LABELS = "mixed images have labels of their own (mix_smoothing), or distill.hard_weight = 0"

# Keys of a recipe: whether a run reads it that learns by this recipe and, or not, from a teacher.
_OF_RECIPE: dict[str, tuple[Callable[[RecipeSettings, DistillSettings | None], bool], str]] = {
    "label_smoothing": (lambda recipe, distill: not recipe.mixes and _hard(distill), _LABELS),
    "mix_smoothing": (
        lambda recipe, distill: recipe.mixes and _hard(distill),
        f"{_MIXES}, or distill.hard_weight = 0",
    ),
    "mix_group": (lambda recipe, _: recipe.mixes, _MIXES),
    "mix_prob": (lambda recipe, _: recipe.mixes, _MIXES),
    "mix_switch_prob": (
        lambda recipe, _: recipe.mixup > 0 and recipe.cutmix > 0,
        "mixup or cutmix is 0, so there is nothing to switch between",
    ),
    "warmup_lr": (lambda recipe, _: recipe.warmup_epochs > 0, "warmup_epochs = 0"),
}


def _hard(distill: DistillSettings | None) -> bool:
    return distill is None or distill.hard_weight > 0


def refuse_unread(study: StudySettings) -> None:
    """Raise ValidationError with every key that is set and has no effect."""
    wrong = [
        InitErrorDetails(
            type=PydanticCustomError("unread", f"has no effect: {reason}"),
            loc=tuple(key.split(".")),
            input=value,
        )
        for key, value, reason in _unread(study)
    ]
    if wrong:
        raise ValidationError.from_exception_data("study", wrong)


def _unread(study: StudySettings) -> Iterator[tuple[str, Any, str]]:
    """Key, value, and why nothing reads it."""
    fidelities = [study.fidelity]
    rows = [study.methods[method] for method in {cell[0] for cell in study.grid.all_cells()}]
    fidelities += [BUNDLES[row.fidelity] for row in rows if row.fidelity is not None]
    yield from _of_recipes(study, fidelities)
    yield from _of_distill(study.distill, fidelities)
    yield from _of_quant(study, rows)
    if isinstance(study.data, ImageSettings):
        yield from _of_images(study.data)


def _of_recipes(
    study: StudySettings, fidelities: list[FidelitySettings]
) -> Iterator[tuple[str, Any, str]]:
    common: Any = study.recipe
    special: dict[int, Any] = common.by_bits
    complete = [
        RecipeSettings(**common.merged(bits))
        for bits in {*special, study.quant.wbits}
        if common.is_complete(bits)
    ]
    for key, (reads, reason) in _OF_RECIPE.items():
        read = any(reads(recipe, study.distill) for recipe in complete)
        if complete and not read and _is_set(common, key):
            yield f"recipe.{key}", getattr(common, key), reason
        own = study.teacher.recipe
        if own is not None and _is_set(own, key) and not reads(own, None):
            yield f"teacher.recipe.{key}", getattr(own, key), reason
    if common.cooldown_epochs and not any(fidelity.cooldown for fidelity in fidelities):
        yield "recipe.cooldown_epochs", common.cooldown_epochs, "fidelity.cooldown = false"
    own = study.teacher.recipe
    if own is not None and own.cooldown_epochs and not study.fidelity.cooldown:
        yield "teacher.recipe.cooldown_epochs", own.cooldown_epochs, "fidelity.cooldown = false"
    # Who runs other bit widths than a preset knows sets every key for all of them, as asked to.
    for bits, recipe in special.items() if study.quant.wbits in special else ():
        keys = [key for key in RecipeSettings.model_fields if getattr(recipe, key) is not None]
        if all(getattr(common, key) is not None for key in keys):
            for key in keys:
                reason = f"recipe.{key} = {getattr(common, key)!r} counts for every bit width"
                yield f"recipe.by_bits.{bits}.{key}", getattr(recipe, key), reason


def _is_set(recipe: Any, key: str) -> bool:
    """Whether a recipe says something else than the default, which null stands for."""
    value = getattr(recipe, key)
    return value is not None and value != RecipeSettings.model_fields[key].default


def _of_distill(
    distill: DistillSettings, fidelities: list[FidelitySettings]
) -> Iterator[tuple[str, Any, str]]:
    soft = "distill.soft_weight = 0"
    if distill.soft_weight == 0 and distill.temperature != 1:
        yield "distill.temperature", distill.temperature, soft
    if distill.cache_teacher and distill.soft_weight == 0:
        yield "distill.cache_teacher", True, soft
    elif distill.cache_teacher and all(f.teacher_mode == "train" for f in fidelities):
        yield "distill.cache_teacher", True, "fidelity.teacher_mode = train answers anew each time"


def _of_quant(study: StudySettings, rows: list[Any]) -> Iterator[tuple[str, Any, str]]:
    quant, common = study.quant, study.grid.quant.boundary_range
    no_cga = "only CGA has a boundary range"
    if quant.boundary_range != common and not quant.cga:
        yield "quant.boundary_range", quant.boundary_range, f"quant.cga = false, and {no_cga}"
    default = CommonQuantSettings.model_fields["boundary_range"].default
    annealed = any(row.cga and row.boundary_range is None for row in rows) or quant.cga
    if common != default and not annealed:
        yield "grid.quant.boundary_range", common, f"no method has cga = true, and {no_cga}"
    for name, row in study.methods.items():
        if row.boundary_range is not None and not row.cga:
            key = f"methods.{name}.boundary_range"
            yield key, row.boundary_range, f"its cga = false, and {no_cga}"
    if quant.wbits == quant.abits == 32:
        usual = checked_options(quant.weight, {}, quant.wbits)
        for name, value in quant.options.items():
            if value != usual[name]:
                yield f"quant.options.{name}", value, "quant.wbits = quant.abits = 32"


def _of_images(data: ImageSettings) -> Iterator[tuple[str, Any, str]]:
    fields = ImageSettings.model_fields
    for key, unread, reason in (
        ("erase_mode", data.erase_prob == 0, "data.erase_prob = 0"),
        ("erase_count", data.erase_prob == 0, "data.erase_prob = 0"),
        ("crop_ratio", data.crop_scale is None, "data.crop_scale = null"),
        ("pad", data.crop_scale is not None, "data.crop_scale is set, so nothing is padded"),
    ):
        if unread and getattr(data, key) != fields[key].default:
            yield f"data.{key}", getattr(data, key), reason
