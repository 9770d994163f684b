"""All of params.yaml, and the runs that it describes."""

from __future__ import annotations

import hashlib
import json
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ofq_core.errors import SettingsError, shortened
from ofq_core.explain import Model, did_you_mean, models_at, unknown, validated
from ofq_core.settings.data import DataSettings, ImageSettings
from ofq_core.settings.fidelity import BUNDLES, FidelitySettings
from ofq_core.settings.methods import WEIGHT_METHODS
from ofq_core.settings.model import ModelSettings
from ofq_core.settings.quant import CommonQuantSettings, MethodSettings, QuantSettings
from ofq_core.settings.recipe import DistillSettings, RecipeChoice, RecipeSettings
from ofq_core.settings.types import LowBits, Name, Seed, Text
from ofq_core.settings.unread import refuse_unread


class TeacherSettings(Model):
    """The full-precision model: trained by `recipe`, read from `checkpoint`, or `pretrained`.

    pretrained: weights from timm (downloaded or from its cache) or from torchvision (Swin: the
    weights that the released code uses). Exactly one of the three is set.
    """

    seed: Seed
    recipe: RecipeSettings | None = None
    checkpoint: Text | None = None
    pretrained: Literal["timm", "torchvision"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TeacherSettings:
        if self.checkpoint is not None and self.pretrained is not None:
            raise ValueError(
                f"checkpoint = {shortened(self.checkpoint)} and pretrained = {self.pretrained!r} "
                "name two teachers: set one of them to null"
            )
        if self.recipe is None and self.checkpoint is None and self.pretrained is None:
            raise ValueError("expected a recipe, a checkpoint or pretrained weights: all are null")
        return self


class _Cells(Model):
    """Cells of the tables: every method at every bit width with every seed."""

    methods: tuple[Name, ...]
    bits: tuple[LowBits, ...]
    seeds: tuple[Seed, ...]

    @field_validator("bits", mode="before")
    @classmethod
    def _whole_numbers(cls, value: Any) -> Any:
        for item in value if isinstance(value, list | tuple) else ():
            if type(item) is not int:
                raise ValueError(f"expected whole numbers from 2 to 8, found {shortened(item)}")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> _Cells:
        for key in ("methods", "bits", "seeds", "full_precision_seeds"):
            values = getattr(self, key, ())
            if len(set(values)) < len(values):
                raise ValueError(f"{key} = {list(values)} names a value twice")
        return self

    def cells(self) -> list[tuple[str, int, int]]:
        """Method, bits and seed of each cell."""
        return list(product(self.methods, self.bits, self.seeds))


class OtherCells(_Cells):
    """Cells beside those of the main methods, with bit widths and seeds of their own."""

    methods: tuple[Name, ...] = ()
    bits: tuple[LowBits, ...] = ()
    seeds: tuple[Seed, ...] = ()


class GridSettings(_Cells):
    """The cells of the tables: every method at every bit width with every seed.

    full_precision_seeds: seeds of the full-precision runs of the table's ceiling; empty for a
    teacher that is not trained here. rivals: other methods. variants: the main methods in another
    way, such as with the released code's defects or another boundary range.
    """

    methods: Annotated[tuple[Name, ...], Field(min_length=1)]
    bits: Annotated[tuple[LowBits, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    full_precision_seeds: tuple[Seed, ...] = ()
    rivals: OtherCells = OtherCells()
    variants: OtherCells = OtherCells()
    quant: CommonQuantSettings

    @model_validator(mode="after")
    def _once(self) -> GridSettings:
        seen = set(self.methods)
        for key, other in (("rivals", self.rivals), ("variants", self.variants)):
            twice = seen & set(other.methods)
            if twice:
                raise ValueError(
                    f"{key}.methods = {list(other.methods)} names {', '.join(sorted(twice))}, "
                    "which the grid has already: expected other methods"
                )
            seen |= set(other.methods)
        return self

    def all_cells(self) -> list[tuple[str, int, int]]:
        """Method, bits and seed of each cell, rivals and variants included."""
        return self.cells() + self.rivals.cells() + self.variants.cells()


class StudySettings(Model):
    """All of params.yaml."""

    study: Name
    fidelity: FidelitySettings = FidelitySettings()
    seed: Seed
    quant: QuantSettings
    grid: GridSettings
    methods: dict[Name, MethodSettings]
    model: ModelSettings
    data: DataSettings
    recipe: RecipeChoice
    distill: DistillSettings
    teacher: TeacherSettings

    @field_validator("study")
    @classmethod
    def _own_folder(cls, value: str) -> str:
        # Not in another case either: there are file systems on which that is the same folder.
        if value.lower() in ("teacher", "experiment", "noise"):
            raise ValueError(f"results/{value.lower()} is taken by a stage: expected another name")
        return value

    @model_validator(mode="after")
    def _known_methods(self) -> StudySettings:
        grid = self.grid
        for key, cells in (("", grid), ("rivals.", grid.rivals), ("variants.", grid.variants)):
            for name in cells.methods:
                if name not in self.methods:
                    hint = did_you_mean(name, self.methods)
                    raise ValueError(
                        f"grid.{key}methods: unknown method {shortened(name)}{hint}; "
                        f"known are {', '.join(self.methods)}"
                    )
        for name, row in self.methods.items():
            if name != row.name:
                raise ValueError(f"methods.{name}: these toggles make the method {row.name!r}")
        return self

    @model_validator(mode="after")
    def _model_fits(self) -> StudySettings:
        pairs = (("img_size", "size"), ("in_chans", "channels"))
        for ours, theirs in pairs if isinstance(self.data, ImageSettings) else ():
            wanted, given = getattr(self.model, ours), getattr(self.data, theirs)
            if wanted is not None and wanted != given:
                raise ValueError(
                    f"model.{ours} = {wanted}, but data.{theirs} = {given}: expected the same"
                )
        if self.teacher.pretrained == "torchvision" and not self.model.name.startswith("swin_"):
            raise ValueError(
                f"teacher.pretrained = 'torchvision' is for Swin, but model.name = "
                f"{shortened(self.model.name)}: expected 'timm'"
            )
        return self

    @model_validator(mode="after")
    def _teacher_is_no_ceiling(self) -> StudySettings:
        teacher, seeds = self.teacher, self.grid.full_precision_seeds
        trained = teacher.checkpoint is None and teacher.pretrained is None
        if trained and teacher.seed in seeds:
            raise ValueError(
                f"grid.full_precision_seeds = {list(seeds)} holds teacher.seed = {teacher.seed}: "
                "the ceiling would be the teacher itself, expected other seeds"
            )
        return self

    @model_validator(mode="after")
    def _everything_is_read(self) -> StudySettings:
        refuse_unread(self)
        return self

    def runs_of_grid(self) -> list[RunSettings]:
        """The cells of the grid, then the full-precision runs.

        Raises:
            SettingsError: one of them cannot be.
        """
        return [
            *(self.cell(*cell) for cell in self.grid.all_cells()),
            *(self.full_precision(seed) for seed in self.grid.full_precision_seeds),
        ]

    def experiment(self) -> RunSettings:
        """The one run that is dialled under `quant` and `seed`.

        Raises:
            SettingsError: there is no recipe for its bit width.
        """
        what = f"experiment {self.quant.method}"
        recipe = self.recipe.resolve(self.quant.wbits, what, self.fidelity.cooldown)
        return self._resolved(self.quant, self.seed, recipe, self.distill, what)

    def cell(self, method: str, bits: int, seed: int) -> RunSettings:
        """One cell of the grid.

        Raises:
            SettingsError: the method is not in `methods`, the bit width is not allowed, or there
                is no recipe for it.
        """
        if method not in self.methods:
            raise SettingsError(
                f"method = {method!r} is unknown{did_you_mean(method, self.methods)}; "
                f"known are {', '.join(self.methods)}"
            )
        row = self.methods[method]
        own = row.model_dump(exclude={"fidelity"}, exclude_none=True)
        raw = {**self.grid.quant.model_dump(), **own, "wbits": bits, "abits": bits}
        what = f"grid cell {method}-{bits}-{seed}"
        quant = validated(QuantSettings, raw, what, prefix="quant")
        fidelity = self.fidelity if row.fidelity is None else BUNDLES[row.fidelity]
        recipe = self.recipe.resolve(quant.wbits, what, fidelity.cooldown)
        return self._resolved(quant, seed, recipe, self.distill, what, method, fidelity)

    def full_precision(self, seed: int) -> RunSettings:
        """A full-precision run by the teacher's recipe, without distillation.

        Raises:
            SettingsError: the teacher is not trained here, so there is no recipe.
        """
        if self.teacher.recipe is None:
            raise SettingsError(
                f"full-precision run with seed {seed}: teacher.recipe = None: the teacher is not "
                "trained here, so there is no recipe for this run; set teacher.recipe, or "
                "grid.full_precision_seeds = []"
            )
        quant = QuantSettings(
            weight="statsq", wbits=32, abits=32, edge_bits=32, qkr=False, cga=False
        )
        what = f"full-precision run with seed {seed}"
        return self._resolved(quant, seed, self.teacher.recipe, None, what)

    def _resolved(
        self,
        quant: QuantSettings,
        seed: int,
        recipe: RecipeSettings,
        distill: Any,
        what: str,
        method: str | None = None,
        fidelity: FidelitySettings | None = None,
    ) -> RunSettings:
        raw = {
            "study": self.study,
            "method": method or quant.method,
            "fidelity": fidelity or self.fidelity,
            "seed": seed,
            "quant": quant,
            "model": self.model,
            "data": self.data,
            "recipe": recipe,
            "distill": distill,
        }
        return validated(RunSettings, raw, what)


class RunSettings(Model):
    """Everything that decides the result of one run; written to its settings.yaml."""

    study: Name
    method: Name
    fidelity: FidelitySettings
    seed: Seed
    quant: QuantSettings
    model: ModelSettings
    data: DataSettings
    recipe: RecipeSettings
    distill: DistillSettings | None

    @model_validator(mode="after")
    def _cga_has_epochs(self) -> RunSettings:
        if self.quant.cga and self.recipe.cga_epochs == 0:
            raise ValueError(
                "quant.cga = true, but recipe.cga_epochs = 0: CGA acts only in those epochs, "
                "expected at least 1"
            )
        return self

    @model_validator(mode="after")
    def _average_has_a_meaning(self) -> RunSettings:
        reason = WEIGHT_METHODS[self.quant.weight].no_average
        if reason and self.recipe.ema_decay is not None and self.quant.wbits != 32:
            raise ValueError(
                f"recipe.ema_decay = {self.recipe.ema_decay:g} has no meaning with quant.weight = "
                f"{self.quant.weight!r}: {reason}; expected null"
            )
        return self

    @property
    def name(self) -> str:
        """Folder of the run: method, bits and seed."""
        return f"{self.method}-w{self.quant.wbits}a{self.quant.abits}-s{self.seed}"

    def sha256(self) -> str:
        """Hash over all settings, independent of the order of keys."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class GivenTeacherSettings(Model):
    """What settings.yaml says of a teacher whose weights were given, not trained."""

    study: Name
    model: ModelSettings
    data: DataSettings
    teacher: TeacherSettings


def unknown_key(key: str) -> str:
    """Why a dotted key cannot be dialled: it is no setting, or conf/ has no entry for it."""
    location = key.split(".")
    # The part that is wrong is the first one that its parent does not have.
    while len(location) > 1 and not models_at(StudySettings, location[:-1]):
        location.pop()
    places = models_at(StudySettings, location[:-1])
    if any(location[-1] in place.model_fields for place in places):
        return f"{key}: conf/ has no such entry to change; +{key}=... adds it"
    return f"{key}: {unknown(places, location[-1])}"
