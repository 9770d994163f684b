"""The full-precision architecture."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ofq_core.explain import Model
from ofq_core.settings.types import Depth, Positive, SmallCount, Text

PerStage = Annotated[tuple[SmallCount, ...], Field(min_length=1)]


class ModelSettings(Model):
    """A timm vision transformer or Swin transformer; null takes timm's number for that model.

    depth, num_heads: numbers for a vision transformer. depths, heads_per_stage, window_size: for
    Swin, whose embed_dim is that of the first stage.
    """

    name: Text
    num_classes: Annotated[int, Field(ge=2, le=1_000_000, strict=True)]
    img_size: SmallCount | None = None
    patch_size: SmallCount | None = None
    in_chans: SmallCount | None = None
    embed_dim: SmallCount | None = None
    depth: Depth | None = None
    num_heads: SmallCount | None = None
    depths: Annotated[tuple[Depth, ...], Field(min_length=1)] | None = None
    heads_per_stage: PerStage | None = None
    window_size: SmallCount | None = None
    mlp_ratio: Positive | None = None

    @model_validator(mode="after")
    def _divisible(self) -> ModelSettings:
        for whole, part in (("embed_dim", "num_heads"), ("img_size", "patch_size")):
            a, b = getattr(self, whole), getattr(self, part)
            if a is not None and b is not None and a % b:
                raise ValueError(f"{whole} = {a} must be a multiple of {part} = {b}")
        # The narrowest that timm has, where the width is its own.
        width = self.embed_dim or (96 if self.name.startswith("swin_") else 192)
        if self.mlp_ratio is not None and width * self.mlp_ratio < 1:
            raise ValueError(
                f"mlp_ratio = {self.mlp_ratio:g} of embed_dim = {width} makes an MLP of width "
                f"zero: expected at least {1 / width:g}"
            )
        stages = self.heads_per_stage
        if stages is not None and self.depths is not None and len(stages) != len(self.depths):
            raise ValueError(
                f"heads_per_stage = {list(stages)} and depths = {list(self.depths)} must have as "
                "many entries as there are stages"
            )
        for stage, heads in enumerate(stages or ()):
            wide = None if self.embed_dim is None else self.embed_dim * 2**stage
            if wide is not None and wide % heads:
                raise ValueError(
                    f"heads_per_stage.{stage} = {heads} must divide the width of its stage, "
                    f"embed_dim * {2**stage} = {wide}"
                )
        return self
