"""Any checkpoint as a model that can be evaluated: of a run, a teacher, released, published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from ofq_core.checkpoints.io import SETTINGS, WEIGHTS, fill_weights, load_weights, open_weights
from ofq_core.checkpoints.released_load import ReleasedModel, load_released
from ofq_core.checkpoints.size import check_size
from ofq_core.data.class_names import stored_class_names
from ofq_core.errors import CheckpointError, SettingsError
from ofq_core.explain import validated
from ofq_core.files import sha256_file
from ofq_core.models import QuantPlan, build_model, convert, load_pretrained, pad_before_shift
from ofq_core.settings import (
    DataSettings,
    GivenTeacherSettings,
    ModelSettings,
    QuantSettings,
    RunSettings,
)
from ofq_core.yaml_files import read_yaml

PRETRAINED = ("timm", "torchvision")


@dataclass(frozen=True)
class Subject:
    """A model to evaluate: where its weights are from, and how it was made.

    weights: the file, or None for published weights. quant: None for a full-precision model. data:
    the data of its own run, or None. class_names: of that data, or None where nothing says them.
    """

    model: nn.Module
    source: str
    weights: Path | None
    settings: ModelSettings
    quant: QuantSettings | None
    data: DataSettings | None = None
    class_names: list[str] | None = None

    def describe(self) -> str:
        """One line: name and bits."""
        if self.quant is None:
            return f"{self.source}: {self.settings.name}, full precision"
        bits = f"w{self.quant.wbits}a{self.quant.abits}"
        return f"{self.source}: {self.settings.name}, {self.quant.method}, {bits}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "source": self.source,
            "weights_sha256": None if self.weights is None else sha256_file(self.weights),
            "model": self.settings.model_dump(mode="json"),
            "quant": None if self.quant is None else self.quant.model_dump(mode="json"),
        }


def open_subject(
    path: Path,
    wbits: int | None = None,
    abits: int | None = None,
    num_heads: int | None = None,
) -> Subject:
    """The model of a run's folder, of a file of weights beside its settings, or of a released file.

    Args:
        wbits, abits, num_heads: what a released file may not say; see `load_released`.

    Raises:
        CheckpointError: there is no such file or folder, it holds no weights or no settings, or
            they do not fit each other.
        SettingsError: the settings are damaged.
    """
    if path.is_dir():
        weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if weights is None:
            raise CheckpointError(f"{path}: no {' and no '.join(WEIGHTS)} in this folder")
        if not (path / SETTINGS).is_file():
            raise CheckpointError(
                f"{path}: no {SETTINGS} beside {weights.name}, so its model is unknown; expected "
                "the folder of a run, or results/teacher"
            )
        return _of_run(weights)
    if _in_run(path):
        return _of_run(path)
    return released_subject(load_released(path, wbits, abits, num_heads))


def released_subject(loaded: ReleasedModel) -> Subject:
    """A model that has been read from a file in the released layout."""
    path, facts = loaded.file.path, loaded.facts
    return Subject(loaded.model, str(path), path, facts.model, facts.quant)


def open_reference(where: str, subject: Subject) -> Subject:
    """The full-precision model that a subject is compared with.

    Args:
        where: `timm` or `torchvision` for published weights of the subject's model, the folder of a
            full-precision run or of the teacher, or a file with weights for the subject's model.

    Raises:
        CheckpointError, ModelError: there are none, they do not fit, or they are quantized.
    """
    if where in PRETRAINED:
        source = cast(Literal["timm", "torchvision"], where)
        model = load_pretrained(subject.settings, source)
        if source == "torchvision":
            pad_before_shift(model)
        return Subject(model, where, None, subject.settings, None)
    path = Path(where)
    if path.is_dir() or _in_run(path):
        reference = open_subject(path)
        if reference.quant is not None:
            raise CheckpointError(
                f"reference {where} is quantized ({reference.quant.method}): expected a "
                "full-precision model, such as results/teacher"
            )
        return reference
    model = build_model(subject.settings, seed=0)
    says = load_weights(model, path, "reference").says()
    return Subject(model, f"{where} ({says})" if says else where, path, subject.settings, None)


def data_of_run(weights: Path) -> DataSettings | None:
    """The data of the run that weights are from; None where nothing says them."""
    try:
        return _settings(weights.parent / SETTINGS).data if _in_run(weights) else None
    except SettingsError:
        # Of an earlier version, or of another program.
        return None


def _in_run(path: Path) -> bool:
    return path.name in WEIGHTS and (path.parent / SETTINGS).is_file()


def _of_run(weights: Path) -> Subject:
    settings = _settings(weights.parent / SETTINGS)
    found = open_weights(weights)
    check_size(settings.model, found.state, f"{weights.parent / SETTINGS}")
    model, quant = build_model(settings.model, seed=0), None
    if isinstance(settings, RunSettings) and not _full_precision(settings.quant):
        quant = settings.quant
        convert(model, QuantPlan.from_settings(quant, settings.fidelity))
    fill_weights(model, found, weights.stem)
    names = stored_class_names(weights)
    return Subject(model, str(weights), weights, settings.model, quant, settings.data, names)


def _full_precision(quant: QuantSettings) -> bool:
    return quant.wbits == quant.abits == quant.edge_bits == 32 and not quant.qkr


def _settings(path: Path) -> RunSettings | GivenTeacherSettings:
    content = read_yaml(path)
    if isinstance(content, dict) and "teacher" in content:
        return validated(GivenTeacherSettings, content, str(path))
    return validated(RunSettings, content, str(path))
