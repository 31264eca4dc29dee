"""QDFormer: its losses (section `train.loss`) and its architecture (section `train.model`)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from qdformer.config.base import Count, Positive, Section, Share, Weight
from qdformer.config.methods.base import MethodSettings, require_heads, strides_from


class Loss(Section):
    """Weights of the losses and of the matching costs (Eq. 8-10).

    `quantize` is lambda_quant and `commitment` is lambda_com; the paper gives neither. `quantize_reduction`: Eq. 9 is a
    `sum` of squared norms over the tokens and frames of a clip. `mean` divides its terms for the clip's tokens by the
    number N D of their values, and the term for the frames' tokens by N T D, as the loss functions of VQ-VAE's
    implementations do. The same weight then fits every number of tokens, frames and channels.

    `token_cls` and `token_match` are not in the paper, where both are 0. `token_cls` is the weight of a class loss of
    the tokens VQ(g_i) and VQ(l_i,t), computed by the class head of the mask decoder (as Mask2Former, Cheng et al.,
    2022, supervises its queries before the first decoder layer; TAViS, Luo et al., 2025, classifies audio tokens after
    Hungarian matching). `token_match` is the weight of the tokens' class cost in the matching of Eq. 10: if it exceeds
    the other costs, the tokens decide which query segments which source.
    """

    cls: Weight
    token_cls: Weight
    token_match: Weight
    no_object: Weight
    l1: Weight
    giou: Weight
    mask: Weight
    dice: Weight
    quantize: Weight
    quantize_reduction: Literal["sum", "mean"]
    commitment: Weight
    auxiliary: bool


class QDFormerSettings(MethodSettings):
    """QDFormer's architecture. The last five keys switch the parts that Table 2 of the paper ablates. `separate` takes
    separated tracks, which only the rows of a sweep have (section `separate`), at most one for each prototype.

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

    losses: ClassVar[type[Section]] = Loss
    title: ClassVar[str] = "QDFormer"
    paper: ClassVar[str] = "Li et al., CVPR 2024"
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
        require_heads(self.hidden_dim, self.num_heads)
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

    def check_losses(self, loss: Loss) -> None:
        if self.calibrate and not (self.quantize or self.recombine or loss.token_cls):
            raise ValueError(
                "model.calibrate: true without model.quantize and model.recombine leaves the tokens of the clip "
                "without a loss; expected one of the two, loss.token_cls above 0, or model.calibrate: false"
            )

    @property
    def map_strides(self) -> tuple[int, ...]:
        return strides_from(self.mask_stride)

    @property
    def takes_tracks(self) -> bool:
        return self.separate

    @property
    def summary(self) -> str:
        parts = [part for part in ("decompose", "quantize", "recombine", "calibrate") if getattr(self, part)]
        return (
            f"QDFormer: hidden dimension {self.hidden_dim}, {self.encoder_layers} + {self.decoder_layers} layers, "
            f"{self.encoder} encoder; parts enabled: {', '.join(parts) or 'none'}"
        )
