"""What is quantized and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ofq_core.explain import Model
from ofq_core.settings.types import Bits, whole_number


def method_name(weight: str, qkr: bool, cga: bool) -> str:
    """Name of a combination of components; StatsQ with QKR and CGA is 'ofq'."""
    name = weight + ("_qkr" if qkr else "") + ("_cga" if cga else "")
    return {"statsq_qkr_cga": "ofq"}.get(name, name)


class QuantSettings(Model):
    """What is quantized and how.

    weight: quantizer of the low-bit weights. wbits, abits: bits of weights and activations (32:
    off). edge_bits: bits of the first and last layer, always LSQ (32: off). qkr: query-key
    reparameterisation. cga: confidence-guided annealing in the last phase. boundary_range: half
    width of CGA's free band, in quantization steps.
    """

    weight: Literal["statsq", "lsq"]
    wbits: Bits
    abits: Bits
    edge_bits: Literal[8, 32] = 8
    qkr: bool
    cga: bool
    boundary_range: Annotated[float, Field(gt=0, le=0.5)] = 0.005

    @field_validator("wbits", "abits", "edge_bits", mode="before")
    @classmethod
    def _whole_number(cls, value: Any) -> Any:
        return whole_number(value)

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
