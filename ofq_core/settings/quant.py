"""What is quantized and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ofq_core.errors import shortened
from ofq_core.explain import Model, did_you_mean
from ofq_core.settings.methods import WEIGHT_METHODS
from ofq_core.settings.types import Bits, EdgeBits, Flag, Text

BoundaryRange = Annotated[float, Field(gt=0, le=0.5, strict=True)]
Options = dict[Text, Annotated[float, Field(strict=True)] | None]


def method_name(weight: str, qkr: bool, cga: bool) -> str:
    """Name of a combination of components; StatsQ with QKR and CGA is 'ofq'."""
    name = weight + ("_qkr" if qkr else "") + ("_cga" if cga else "")
    return {"statsq_qkr_cga": "ofq"}.get(name, name)


def known_weight(name: str) -> str:
    """The name of a method, or ValueError."""
    if name not in WEIGHT_METHODS:
        raise ValueError(
            f"unknown method {shortened(name)}{did_you_mean(name, WEIGHT_METHODS)}; known are "
            f"{', '.join(WEIGHT_METHODS)}"
        )
    return name


def checked_options(
    weight: str, options: dict[str, float | None], bits: int | None
) -> dict[str, float | None]:
    """All options of a method; those that are not given, or null, at their default for `bits`.

    Without bits, as for a row of several bit widths, only those that are given. ValueError.
    """
    known = WEIGHT_METHODS[weight].options
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name not in known:
            allowed = f"known are {', '.join(known)}" if known else "it has none"
            raise ValueError(
                f"options.{shortened(name)[1:-1]}: weight = {weight!r} has no such option"
                f"{did_you_mean(name, known)}; {allowed}"
            )
        low, high = known[name].low, known[name].high
        if not low <= value <= high:
            raise ValueError(
                f"options.{name} = {value:g}: expected a number in [{low:g}, {high:g}]"
            )
    if bits is None:
        return dict(given)
    return {
        name: given.get(name, option.default_at.get(bits, option.default))
        for name, option in known.items()
    }


class _Combination(Model):
    """A weight quantizer with or without QKR and CGA, as far as that has a meaning."""

    weight: Text
    qkr: Flag
    cga: Flag
    options: Options = Field(default_factory=dict)

    @field_validator("weight")
    @classmethod
    def _known(cls, value: str) -> str:
        return known_weight(value)

    @model_validator(mode="after")
    def _has_a_meaning(self) -> _Combination:
        method = WEIGHT_METHODS[self.weight]
        for part, wanted, reason in (
            ("qkr", self.qkr, method.no_qkr),
            ("cga", self.cga, method.no_cga),
        ):
            if wanted and reason:
                raise ValueError(
                    f"{part} = true has no meaning with weight = {self.weight!r}: {reason}"
                )
        # Assigning would validate once more, without an end.
        self.__dict__["options"] = checked_options(
            self.weight, self.options, getattr(self, "wbits", None)
        )
        return self


class QuantSettings(_Combination):
    """What is quantized and how.

    weight: method that quantizes the low-bit weights, with its `options`. wbits, abits: bits of
    weights and activations (32: off). edge_bits: bits of the first and last layer, always LSQ (32:
    off). qkr: query-key reparameterisation. cga: confidence-guided annealing in the last phase.
    boundary_range: half width of CGA's free band, in quantization steps.
    """

    wbits: Bits
    abits: Bits
    edge_bits: EdgeBits = 8
    boundary_range: BoundaryRange = 0.005

    @model_validator(mode="after")
    def _consistent(self) -> QuantSettings:
        if self.cga and self.wbits == 32:
            raise ValueError("cga = true needs quantized weights, but wbits = 32")
        allowed = WEIGHT_METHODS[self.weight].bits
        if self.wbits != 32 and self.wbits not in allowed:
            raise ValueError(
                f"wbits = {self.wbits} with weight = {self.weight!r}: expected one of "
                f"{', '.join(map(str, allowed))}, or 32"
            )
        return self

    @property
    def method(self) -> str:
        """Name of the combination, as used in run folders: it cannot disagree with the toggles."""
        if self.wbits == 32 and self.abits == 32:
            return "fp"
        return method_name(self.weight, self.qkr, self.cga)

    @property
    def trains(self) -> bool:
        """Whether there is anything to train: post-training quantization has nothing."""
        return WEIGHT_METHODS[self.weight].trains or (self.wbits == 32 and self.abits == 32)


class MethodSettings(_Combination):
    """A row of the tables: what it sets together.

    fidelity: run it with all switches as described or as released, whatever the study's are (null).
    boundary_range: run it with this one instead of the grid's (null).
    """

    fidelity: Literal["described", "released"] | None = None
    boundary_range: BoundaryRange | None = None

    @property
    def name(self) -> str:
        """What such a row is called: its run folders and tables say what it is."""
        name = method_name(self.weight, self.qkr, self.cga)
        if self.fidelity is not None:
            name += f"_{self.fidelity}"
        if self.boundary_range is not None:
            name += f"_br{self.boundary_range:g}".replace(".", "p")
        return name


class CommonQuantSettings(Model):
    """What the cells of a grid have in common; see `QuantSettings`."""

    edge_bits: EdgeBits = 8
    boundary_range: BoundaryRange = 0.005
