"""How a model is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, create_model, field_validator, model_validator
from pydantic.fields import FieldInfo

from ofq_core.errors import SettingsError
from ofq_core.explain import Model, validated
from ofq_core.settings.types import (
    Count,
    CountOrZero,
    Flag,
    FlagOrAuto,
    LowBits,
    NotNegative,
    OpenShare,
    Positive,
    Probability,
    Share,
    SmallCount,
)


class RecipeSettings(Model):
    """Training.

    epochs: cosine phase, warm-up included. cooldown_epochs: epochs at `min_lr` after it, only with
    `fidelity.cooldown`. cga_epochs: last phase at `min_lr`; with CGA on, the weights far from a
    threshold are frozen in it, with CGA off they train on, so both settings have the same number
    of epochs.

    batch_size: images per optimizer step over all processes; how it is split over GPUs and
    accumulation steps follows from the machine and does not change the mathematics.

    mixup, cutmix: alpha (0: off), with mix_prob and mix_switch_prob as in timm, one draw per
    mix_group images (null: the whole batch); mix_smoothing: label smoothing of mixed targets.
    repeated_augmentation: views of an image that come in a row (1: off).

    clip_grad: largest norm of the gradient (null: off). ema_decay: evaluate and keep an
    exponential moving average of the weights (null: off). precision: bf16 runs matrix products
    under autocast; quantizers stay in FP32. checkpoint_seconds: at least so long between two
    checkpoints (0: one after every epoch). oscillation_every: look closer at the low-bit weights
    every so many steps (0: never; the oscillation frequency counts all steps). threads: CPU threads
    of torch (null: all); sums depend on it in their last bits. compile: torch.compile for every
    block, which takes about a minute and also moves last bits; "auto": in long runs on a GPU, or
    on a CPU for which the quantizers have no kernels, where a compiler is found.
    """

    epochs: SmallCount
    cga_epochs: CountOrZero
    cooldown_epochs: CountOrZero = 0
    batch_size: Count
    lr: Positive
    min_lr: NotNegative = 1e-5
    warmup_lr: NotNegative = 1e-6
    warmup_epochs: CountOrZero = 0
    weight_decay: NotNegative = 0.05
    label_smoothing: Share = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    mix_prob: Probability = 1.0
    mix_switch_prob: Probability = 0.5
    mix_smoothing: Share = 0.1
    mix_group: Annotated[int, Field(ge=2, le=10**9, multiple_of=2, strict=True)] | None = None
    repeated_augmentation: SmallCount = 1
    clip_grad: Positive | None = None
    ema_decay: OpenShare | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: Flag = False
    checkpoint_seconds: NotNegative = 30.0
    oscillation_every: CountOrZero = 16
    threads: SmallCount | None = None
    compile: FlagOrAuto = "auto"

    @model_validator(mode="after")
    def _ordered(self) -> RecipeSettings:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs} must be below epochs = {self.epochs}"
            )
        if self.warmup_epochs and self.warmup_lr > self.lr:
            raise ValueError(
                f"warmup_lr = {self.warmup_lr:g}, where warm-up starts, must not exceed lr = "
                f"{self.lr:g}"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr = {self.min_lr:g} must not exceed lr = {self.lr:g}")
        if self.mixes and self.batch_size % (self.mix_group or 2):
            raise ValueError(
                f"batch_size = {self.batch_size} must be a multiple of mix_group = "
                f"{self.mix_group or 2} with mixup or cutmix: one draw is for so many images, "
                "which are mixed in pairs"
            )
        return self

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup > 0 or self.cutmix > 0


def _optional(field: FieldInfo) -> Any:
    """The type of a field, with its limits, or null."""
    limited: Any = field.annotation
    for limit in field.metadata:
        limited = Annotated[limited, limit]
    return limited | None


# As RecipeSettings, with every key optional: null leaves a key to `by_bits`.
_OPTIONAL: dict[str, Any] = {
    name: (_optional(field), None) for name, field in RecipeSettings.model_fields.items()
}
PartialRecipe: Any = create_model("PartialRecipe", __base__=Model, **_OPTIONAL)


class RecipeChoice(PartialRecipe):  # type: ignore[misc]
    """The recipe of every bit width: common keys, and in `by_bits` the ones that differ.

    A key that is set (not null) counts for all bit widths, so a value that is dialled always wins.
    A key that `by_bits` sets for one bit width must be set for each, unless null means something of
    its own: no bit width silently takes a default where another has a value from the paper.
    """

    by_bits: dict[LowBits, PartialRecipe] = Field(default_factory=dict)

    @field_validator("by_bits", mode="before")
    @classmethod
    def _keys_are_numbers(cls, value: Any) -> Any:
        # Hydra's overrides know text keys only.
        if not isinstance(value, dict):
            return value
        return {int(k) if str(k).isdigit() else k: v for k, v in value.items()}

    @model_validator(mode="after")
    def _every_recipe_is_one(self) -> RecipeChoice:
        """Without `by_bits`; else the recipe of a bit width is looked at when a run takes it."""
        if not self.by_bits:
            RecipeSettings.model_validate(_set_keys(self))
        return self

    def resolve(self, wbits: int, source: str, cooldown: bool = True) -> RecipeSettings:
        """The recipe of one bit width; without a cool-down it may lack the epochs of one.

        Raises:
            SettingsError: a key is set neither here nor for this bit width, or keys contradict
                each other.
        """
        missing = self._missing(wbits)
        if not cooldown and "cooldown_epochs" in missing:
            missing.remove("cooldown_epochs")
        if missing and wbits in self.by_bits:
            raise SettingsError(
                f"{source}: recipe.by_bits.{wbits} lacks {', '.join(missing)}: expected every key "
                "that any bit width or every recipe needs"
            )
        if missing:
            known = ", ".join(str(bits) for bits in sorted(self.by_bits))
            keys = ", ".join(f"recipe.{key}" for key in missing)
            raise SettingsError(
                f"{source}: quant.wbits = {wbits}: recipe.by_bits has a recipe for {known} bits "
                f"only; take one of these, or set {keys}"
            )
        return validated(RecipeSettings, self.merged(wbits), source, prefix="recipe")

    def merged(self, wbits: int) -> dict[str, Any]:
        """What is set for a bit width: here, or else in `by_bits`."""
        special = _set_keys(self.by_bits[wbits]) if wbits in self.by_bits else {}
        return {**special, **_set_keys(self)}

    def is_complete(self, wbits: int) -> bool:
        """Whether there is a recipe for a bit width that contradicts itself nowhere."""
        try:
            self.resolve(wbits, "recipe", cooldown=False)
        except SettingsError:
            return False
        return True

    def _missing(self, wbits: int) -> list[str]:
        """Keys without a value at a bit width, though `by_bits` or every recipe needs one."""
        somewhere = {key for recipe in self.by_bits.values() for key in _set_keys(recipe)}
        here = self.merged(wbits)
        return [
            key
            for key, field in RecipeSettings.model_fields.items()
            if key not in here
            and (field.is_required() or (key in somewhere and field.default is not None))
        ]


def _set_keys(recipe: Any) -> dict[str, Any]:
    values = recipe.model_dump(exclude={"by_bits"})
    return {key: value for key, value in values.items() if value is not None}


class DistillSettings(Model):
    """Distillation: cross-entropy on the class head plus soft cross-entropy to the teacher.

    cache_teacher: keep the teacher's logits on disk, so that students that see the same images do
    not compute them again; changes no number. Without effect with `fidelity.teacher_mode` = train.
    """

    hard_weight: NotNegative = 1.0
    soft_weight: NotNegative = 1.0
    temperature: Positive = 1.0
    cache_teacher: Flag = False

    @model_validator(mode="after")
    def _something_to_learn(self) -> DistillSettings:
        if self.hard_weight == 0 and self.soft_weight == 0:
            raise ValueError(
                "hard_weight = soft_weight = 0 leaves nothing to learn: one must be > 0"
            )
        return self
