"""CATR: its losses (section `train.loss`) and its architecture (section `train.model`)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from qdformer.config.base import Positive, Section, Weight
from qdformer.config.methods.base import MethodSettings, require_heads, strides_from


class CATRLoss(Section):
    """Weights of the losses and of the matching costs; see `qdformer.models.catr.criterion`.

    `no_object`: weight of a query without a target in the class loss. `match_cls`, `match_dice`: weights of the costs
    by which queries are matched. `auxiliary`: whether the earlier decoder layers have the same losses.
    """

    cls: Weight = 1.0
    no_object: Weight = 0.1
    dice: Weight = 5.0
    focal: Weight = 5.0
    bce: Weight = 4.0
    match_cls: Weight = 1.0
    match_dice: Weight = 7.0
    auxiliary: bool = True


class CATRSettings(MethodSettings):
    """CATR's architecture; the defaults are the published values where the paper or the authors' code has them.

    `mask_stride`: stride of the mask features. Audio and video are fused in the backbone's coarsest map.
    `encoder_layers`: number of blocks of the decoupled audio-video transformer, and of layers of the spatial encoder.
    `audio_queries`: the decoder's queries start from the frame's encoded audio feature (the paper's audio-constrained
    queries) instead of zeros.
    """

    losses: ClassVar[type[Section]] = CATRLoss
    title: ClassVar[str] = "CATR"
    paper: ClassVar[str] = "Li et al., ACM MM 2023"
    name: Literal["catr"]
    mask_stride: Literal[4, 8] = 4
    hidden_dim: Annotated[int, Field(ge=16, multiple_of=16)] = 256
    num_heads: Positive = 8
    ffn_dim: Positive = 2048
    encoder_layers: Positive = 3
    decoder_layers: Positive = 3
    num_queries: Positive = 50
    mask_dim: Positive = 64
    audio_queries: bool = True

    @model_validator(mode="after")
    def _check_parts(self) -> CATRSettings:
        require_heads(self.hidden_dim, self.num_heads)
        return self

    @property
    def map_strides(self) -> tuple[int, ...]:
        return strides_from(self.mask_stride)

    @property
    def summary(self) -> str:
        layers = f"{self.encoder_layers} + {self.decoder_layers}"
        return f"CATR: hidden dimension {self.hidden_dim}, {layers} layers, {self.num_queries} queries"
