"""The full-precision architecture."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ofq_core.explain import Model
from ofq_core.settings.types import Count, Positive

PerStage = Annotated[tuple[Count, ...], Field(min_length=1)]


class ModelSettings(Model):
    """A timm vision transformer or Swin transformer; null takes timm's number for that model.

    depth, num_heads: numbers for a vision transformer. depths, heads_per_stage, window_size: for
    Swin, whose embed_dim is that of the first stage.
    """

    name: str
    num_classes: Annotated[int, Field(ge=2, strict=True)]
    img_size: Count | None = None
    patch_size: Count | None = None
    in_chans: Count | None = None
    embed_dim: Count | None = None
    depth: Count | None = None
    num_heads: Count | None = None
    depths: PerStage | None = None
    heads_per_stage: PerStage | None = None
    window_size: Count | None = None
    mlp_ratio: Positive | None = None

    @model_validator(mode="after")
    def _divisible(self) -> ModelSettings:
        for whole, part in (("embed_dim", "num_heads"), ("img_size", "patch_size")):
            a, b = getattr(self, whole), getattr(self, part)
            if a is not None and b is not None and a % b:
                raise ValueError(f"{whole} = {a} must be a multiple of {part} = {b}")
        stages = self.heads_per_stage
        if stages is not None and self.depths is not None and len(stages) != len(self.depths):
            raise ValueError(
                f"heads_per_stage = {list(stages)} and depths = {list(self.depths)} must have as "
                "many entries as there are stages"
            )
        for stage, heads in enumerate(stages or ()):
            width = None if self.embed_dim is None else self.embed_dim * 2**stage
            if width is not None and width % heads:
                raise ValueError(
                    f"heads_per_stage.{stage} = {heads} must divide the width of its stage, "
                    f"embed_dim * {2**stage} = {width}"
                )
        return self
