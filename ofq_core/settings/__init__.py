"""Every setting of a run as frozen pydantic models. Unknown keys are errors.

This package imports no torch, so that bad settings are reported in well under a second.
"""

from ofq_core.settings.data import DataSettings, DigitsSettings, ImageSettings
from ofq_core.settings.fidelity import BUNDLES, FidelitySettings
from ofq_core.settings.model import ModelSettings
from ofq_core.settings.quant import CommonQuantSettings, MethodSettings, QuantSettings
from ofq_core.settings.recipe import DistillSettings, RecipeChoice, RecipeSettings
from ofq_core.settings.study import (
    GivenTeacherSettings,
    GridSettings,
    RunSettings,
    StudySettings,
    TeacherSettings,
    unknown_key,
)

__all__ = [
    "BUNDLES",
    "CommonQuantSettings",
    "DataSettings",
    "DigitsSettings",
    "DistillSettings",
    "FidelitySettings",
    "GivenTeacherSettings",
    "GridSettings",
    "ImageSettings",
    "MethodSettings",
    "ModelSettings",
    "QuantSettings",
    "RecipeChoice",
    "RecipeSettings",
    "RunSettings",
    "StudySettings",
    "TeacherSettings",
    "unknown_key",
]
