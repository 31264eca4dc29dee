"""AVSegFormer: its losses (section `train.loss`) and its architecture (section `train.model`)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from qdformer.config.base import Positive, Section, Weight
from qdformer.config.methods.base import MethodSettings, require_heads, strides_from


class AVSegFormerLoss(Section):
    """Weights of the main loss L_IoU (`mask`) and of the mixing loss L_mix (`mix`, lambda in the paper).

    `kind`: the loss of a binary mask; see `qdformer.models.avsegformer.criterion`.
    """

    mask: Weight = 1.0
    mix: Weight = 0.1
    kind: Literal["dice", "bce"] = "dice"


class AVSegFormerSettings(MethodSettings):
    """AVSegFormer's architecture; the defaults are the published values.

    `mask_stride`: stride of the mask features; the encoder processes the backbone's coarser maps. `output_stride`:
    stride of the logits. `ffn_dim`: width of the feed-forward networks of encoder and decoder, and of the MLP that
    joins the masks of the queries. `generator_layers`, `generator_ffn_dim`: those of the query generator.
    """

    losses: ClassVar[type[Section]] = AVSegFormerLoss
    title: ClassVar[str] = "AVSegFormer"
    paper: ClassVar[str] = "Gao et al., AAAI 2024"
    name: Literal["avsegformer"]
    mask_stride: Literal[4, 8] = 4
    output_stride: Literal[1, 2, 4, 8] = 1
    hidden_dim: Annotated[int, Field(ge=16, multiple_of=16)] = 256
    num_heads: Positive = 8
    num_queries: Positive = 300
    generator_layers: Positive = 6
    generator_ffn_dim: Positive = 1024
    encoder_layers: Positive = 6
    decoder_layers: Positive = 6
    ffn_dim: Positive = 2048

    @model_validator(mode="after")
    def _check_parts(self) -> AVSegFormerSettings:
        require_heads(self.hidden_dim, self.num_heads)
        if self.output_stride > self.mask_stride:
            raise ValueError(f"output_stride ({self.output_stride}) must not be above mask_stride ({self.mask_stride})")
        return self

    @property
    def map_strides(self) -> tuple[int, ...]:
        return strides_from(self.mask_stride)

    @property
    def summary(self) -> str:
        layers = f"{self.generator_layers} + {self.encoder_layers} + {self.decoder_layers}"
        return f"AVSegFormer: hidden dimension {self.hidden_dim}, {layers} layers, {self.num_queries} queries"
