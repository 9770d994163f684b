"""Every setting of a run as frozen pydantic models. Unknown keys are errors.

This module imports no torch, so that bad settings are reported in well under a second.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from ofq_core.errors import SettingsError
from ofq_core.explain import Model, did_you_mean, model_at, unknown, validated

Bits = Literal[2, 3, 4, 5, 6, 7, 8, 32]
LowBits = Literal[2, 3, 4, 5, 6, 7, 8]
Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
CountOrZero = Annotated[int, Field(ge=0, strict=True)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Share = Annotated[float, Field(ge=0, lt=1)]


def method_name(weight: str, qkr: bool, cga: bool) -> str:
    """Name of a combination of components; StatsQ with QKR and CGA is 'ofq'."""
    name = weight + ("_qkr" if qkr else "") + ("_cga" if cga else "")
    return {"statsq_qkr_cga": "ofq"}.get(name, name)


class QuantSettings(Model):
    """What is quantized and how.

    weight: quantizer of the low-bit weights. wbits, abits: bits of weights and activations (32:
    off). edge_bits: bits of the first and last layer, always LSQ (32: off). qkr: query-key
    reparameterisation. cga: confidence-guided annealing in the last phase. boundary_range: half
    width of CGA's free band, in quantization steps. qk_bias: what QKR does with the query bias
    (fold it exactly, or drop it as the released code does).
    """

    weight: Literal["statsq", "lsq"]
    wbits: Bits
    abits: Bits
    edge_bits: Literal[8, 32] = 8
    qkr: bool
    cga: bool
    boundary_range: Annotated[float, Field(gt=0, le=0.5)] = 0.005
    qk_bias: Literal["fold", "drop"] = "fold"

    @field_validator("wbits", "abits", "edge_bits", mode="before")
    @classmethod
    def _whole_number(cls, value: Any) -> Any:
        # pydantic's Literal takes 2.0 and True for 2 and 1.
        if type(value) is not int:
            raise ValueError("expected a whole number")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> QuantSettings:
        if self.cga and self.wbits == 32:
            raise ValueError("cga = true needs quantized weights, but wbits = 32")
        return self

    @property
    def method(self) -> str:
        """Name of the combination, as used in run folders: it cannot disagree with the toggles."""
        if self.wbits == 32 and self.abits == 32:
            return "fp"
        return method_name(self.weight, self.qkr, self.cga)


class MethodSettings(Model):
    """The toggles that a method sets together."""

    weight: Literal["statsq", "lsq"]
    qkr: bool
    cga: bool


class CommonQuantSettings(Model):
    """What the cells of a grid have in common; see `QuantSettings`."""

    edge_bits: Literal[8, 32] = 8
    boundary_range: Annotated[float, Field(gt=0, le=0.5)] = 0.005
    qk_bias: Literal["fold", "drop"] = "fold"


class ModelSettings(Model):
    """A timm vision transformer; null takes timm's own number for the named model."""

    name: str
    num_classes: Annotated[int, Field(ge=2, strict=True)]
    img_size: Count | None = None
    patch_size: Count | None = None
    in_chans: Count | None = None
    embed_dim: Count | None = None
    depth: Count | None = None
    num_heads: Count | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _divisible(self) -> ModelSettings:
        for whole, part in (("embed_dim", "num_heads"), ("img_size", "patch_size")):
            a, b = getattr(self, whole), getattr(self, part)
            if a is not None and b is not None and a % b:
                raise ValueError(f"{whole} = {a} must be a multiple of {part} = {b}")
        return self


class DataSettings(Model):
    """Which data, how it is split, and its augmentation.

    test_share, val_share: shares of all images; the rest trains. shift_pixels: random shift in
    each direction, zero-padded. scale_range, rotate_degrees: random zoom and rotation. noise:
    standard deviation of additive noise, in units of the image's range [0, 1].
    """

    name: Literal["digits"]
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    split_seed: Seed = 0
    subset: Count | None = None
    shift_pixels: Annotated[float, Field(ge=0, le=4)] = 1.0
    scale_range: Share = 0.1
    rotate_degrees: Annotated[float, Field(ge=0, le=45)] = 10.0
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _train_left(self) -> DataSettings:
        if self.test_share + self.val_share >= 1:
            raise ValueError(
                f"test_share + val_share = {self.test_share + self.val_share:g} leaves no "
                "training images: their sum must be below 1"
            )
        return self


class RecipeSettings(Model):
    """Training. The learning rate is stepped once an epoch, as in the released code.

    epochs: cosine phase, warm-up included. cga_epochs: last phase at `min_lr`; with CGA on, the
    weights far from a threshold are frozen in it, with CGA off they train on, so both settings
    have the same number of epochs. checkpoint_seconds: at least so long between two checkpoints (0:
    one after every epoch). threads: CPU threads of torch (null: all); sums depend on it in their
    last bits.
    """

    epochs: Count
    cga_epochs: CountOrZero
    batch_size: Count
    lr: Annotated[float, Field(gt=0)]
    min_lr: Annotated[float, Field(ge=0)] = 1e-5
    warmup_lr: Annotated[float, Field(ge=0)] = 1e-6
    warmup_epochs: CountOrZero = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    label_smoothing: Share = 0.0
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0
    threads: Count | None = None

    @model_validator(mode="after")
    def _ordered(self) -> RecipeSettings:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs} must be below epochs = {self.epochs}"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr = {self.min_lr:g} must not exceed lr = {self.lr:g}")
        return self


class DistillSettings(Model):
    """Distillation: cross-entropy on the class head plus soft cross-entropy to the teacher.

    teacher_head: which output of a distilled teacher is the soft target: its inference output
    (mean of both heads) or the class head alone (released code).
    """

    hard_weight: Annotated[float, Field(ge=0)] = 1.0
    soft_weight: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    teacher_head: Literal["mean", "cls"] = "mean"

    @model_validator(mode="after")
    def _something_to_learn(self) -> DistillSettings:
        if self.hard_weight == 0 and self.soft_weight == 0:
            raise ValueError(
                "hard_weight = soft_weight = 0 leaves nothing to learn: one must be > 0"
            )
        return self


class TeacherSettings(Model):
    """The full-precision model: trained by this recipe, or read from `checkpoint`."""

    seed: Seed
    recipe: RecipeSettings
    checkpoint: str | None = None


class GridSettings(Model):
    """The cells of the tables: every method at every bit width with every seed."""

    methods: Annotated[tuple[Name, ...], Field(min_length=1)]
    bits: Annotated[tuple[LowBits, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    quant: CommonQuantSettings

    @field_validator("bits", mode="before")
    @classmethod
    def _whole_numbers(cls, value: Any) -> Any:
        for item in value if isinstance(value, list | tuple) else ():
            if type(item) is not int:
                raise ValueError(f"expected whole numbers from 2 to 8, found {item!r}")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> GridSettings:
        for key in ("methods", "bits", "seeds"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key} = {list(values)} names a value twice")
        return self


class StudySettings(Model):
    """All of params.yaml."""

    study: Name
    fidelity: Literal["described"] = "described"
    seed: Seed
    quant: QuantSettings
    grid: GridSettings
    methods: dict[Name, MethodSettings]
    model: ModelSettings
    data: DataSettings
    recipe: RecipeSettings
    distill: DistillSettings
    teacher: TeacherSettings

    @field_validator("study")
    @classmethod
    def _own_folder(cls, value: str) -> str:
        if value in ("teacher", "experiment"):
            raise ValueError(f"results/{value} is taken by a stage: expected another name")
        return value

    @model_validator(mode="after")
    def _known_methods(self) -> StudySettings:
        for name in self.grid.methods:
            if name not in self.methods:
                raise ValueError(
                    f"grid.methods: unknown method {name!r}{did_you_mean(name, self.methods)}; "
                    f"known are {', '.join(self.methods)}"
                )
        for name, toggles in self.methods.items():
            derived = method_name(toggles.weight, toggles.qkr, toggles.cga)
            if name != derived:
                raise ValueError(f"methods.{name}: these toggles make the method {derived!r}")
        return self

    def experiment(self) -> RunSettings:
        """The one run that is dialled under `quant` and `seed`."""
        return self._run(self.quant, self.seed, self.recipe)

    def cell(self, method: str, bits: int, seed: int) -> RunSettings:
        """One cell of the grid.

        Raises:
            SettingsError: the method is not in `methods`, or the bit width is not allowed.
        """
        if method not in self.methods:
            raise SettingsError(
                f"method = {method!r} is unknown{did_you_mean(method, self.methods)}; "
                f"known are {', '.join(self.methods)}"
            )
        raw = {
            **self.methods[method].model_dump(),
            **self.grid.quant.model_dump(),
            "wbits": bits,
            "abits": bits,
        }
        quant = validated(QuantSettings, raw, f"grid cell {method}-{bits}-{seed}", prefix="quant")
        return self._run(quant, seed, self.recipe)

    def full_precision(self, seed: int) -> RunSettings:
        """A full-precision run by the teacher's recipe, without distillation."""
        quant = QuantSettings(
            weight="statsq", wbits=32, abits=32, edge_bits=32, qkr=False, cga=False
        )
        return self._run(quant, seed, self.teacher.recipe, distill=False)

    def _run(
        self, quant: QuantSettings, seed: int, recipe: RecipeSettings, distill: bool = True
    ) -> RunSettings:
        raw = {
            "study": self.study,
            "method": quant.method,
            "fidelity": self.fidelity,
            "seed": seed,
            "quant": quant,
            "model": self.model,
            "data": self.data,
            "recipe": recipe,
            "distill": self.distill if distill else None,
        }
        return validated(RunSettings, raw, f"run {quant.method} with seed {seed}")


class RunSettings(Model):
    """Everything that decides the result of one run; written to its settings.yaml."""

    study: Name
    method: Name
    fidelity: Literal["described"]
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

    @property
    def name(self) -> str:
        """Folder of the run: method, bits and seed."""
        return f"{self.method}-w{self.quant.wbits}a{self.quant.abits}-s{self.seed}"

    def sha256(self) -> str:
        """Hash over all settings, independent of the order of keys."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def unknown_key(key: str) -> str:
    """The message for a dotted key of params.yaml that does not exist, with the keys that do."""
    location = key.split(".")
    # The part that is wrong is the first one that its parent does not have.
    while len(location) > 1 and model_at(StudySettings, location[:-1]) is None:
        location.pop()
    return f"{key}: {unknown(StudySettings, location)}"
