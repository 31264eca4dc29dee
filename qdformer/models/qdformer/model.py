"""QDFormer (Li et al., CVPR 2024): segments what sounds, by decomposing the sound into its sources.

Shapes: B clips, T frames (one a second), N tokens or queries, S visual tokens of a frame, A audio features (128),
D width, C object classes, H W pixels (mask logits: a quarter, rounded up).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from qdformer.config.model import Model
from qdformer.models.backbones import build_backbone
from qdformer.models.common.fpn import MASK_STRIDE, MaskFeatures
from qdformer.models.common.pixel_encoder import PixelEncoder
from qdformer.models.common.transformer import unflatten_map
from qdformer.models.qdformer.decomposition import SemanticDecoder
from qdformer.models.qdformer.fusion import Fusion
from qdformer.models.qdformer.mask_decoder import MaskDecoder
from qdformer.models.qdformer.quantizer import Quantizer, QuantizerStats
from qdformer.models.qdformer.recombination import Recombination
from qdformer.utils.constants import EMBEDDING_SIZE

FOREGROUND_THRESHOLD = 0.4
"""A pixel belongs to a sounding object where some query says so with more than this probability.

Below one half, for the focal loss leaves probabilities low; the best of 0.3 to 0.6 on the validation split of `stamps`.
"""


@dataclass
class LayerOutput:
    """What the queries of every frame say."""

    class_logits_BTNC: torch.Tensor
    """C + 1 wide, "no object" (silent in this second) last."""
    boxes_BTN4: torch.Tensor
    """Centre x, y, width, height as shares of the frame."""
    mask_logits_BTNHW: torch.Tensor
    """At stride 4."""


@dataclass
class QDFormerOutput(LayerOutput):
    """The last decoder layer's answer, the earlier layers' (in training), and what became of the sound."""

    auxiliary: list[LayerOutput] = field(default_factory=list)
    quantization: QuantizerStats | None = None
    fused_BTD: torch.Tensor | None = None
    """The audio of every frame fused with what is seen (Eq. 3), before it is decomposed."""
    tokens_BND: torch.Tensor | None = None
    """The clip's single-source tokens (Eq. 4), not quantized; None without decomposition."""


@dataclass
class Prediction:
    """What sounds where, at the size of the images."""

    semantic_BTHW: torch.Tensor
    """Class of each pixel, int64: 0 background, 1..C."""
    foreground_BTHW: torch.Tensor
    """Probability that the pixel belongs to something that sounds: the highest among the queries."""
    class_probs_BTC: torch.Tensor
    """Probability that the class sounds and is seen in this second: the highest among the queries."""
    output: QDFormerOutput


class QDFormer(nn.Module):
    """The model with the parts that Table 2 of the paper adds one by one. The queries of frame t, token i, are

    - `decompose` off ("baseline"): p_i + F_av,t, a prototype and the frame's own fused audio;
    - `separate`: p_i + F_av,ti, with the audio of the i-th of N sounds, into which the frame's was separated in the
      time domain before its features were made;
    - `decompose`: g_i + F_av,t, with the clip's single-source token (Eq. 4) in the prototype's place;
    - `quantize`: VQ(g_i) + F_av,t (Eq. 2);
    - `recombine`: the same, on visual features recombined by filters from VQ(g_i) (Eq. 5);
    - `calibrate`: VQ(l_ti), the frame's own single-source token (Eq. 6) in terms of the clip's codebook.

    Without `quantize`, VQ is left out wherever it stands.
    """

    def __init__(self, settings: Model, num_classes: int) -> None:
        super().__init__()
        hidden_dim, num_heads, ffn_dim, layers = (
            settings.hidden_dim,
            settings.num_heads,
            settings.ffn_dim,
            settings.decoder_layers,
        )
        self.settings = settings
        self.num_classes = num_classes
        self.backbone = build_backbone(settings)
        self.pixel_encoder = PixelEncoder(
            settings.encoder, self.backbone.channels, hidden_dim, num_heads, ffn_dim, settings.encoder_layers
        )
        self.mask_features = MaskFeatures(self.backbone.channels[MASK_STRIDE], hidden_dim, settings.mask_dim)
        self.fusion = Fusion(EMBEDDING_SIZE, hidden_dim, num_heads)
        self.prototypes_ND = nn.Parameter(torch.randn(settings.num_prototypes, hidden_dim))
        self.global_decoder = SemanticDecoder(hidden_dim, num_heads, ffn_dim, layers) if settings.decompose else None
        self.local_prototypes_ND = None
        if settings.calibrate and not settings.share_prototypes:
            self.local_prototypes_ND = nn.Parameter(torch.randn(settings.num_prototypes, hidden_dim))
        self.quantizer = None
        if settings.quantize:
            self.quantizer = Quantizer(
                settings.codebook_size,
                hidden_dim,
                delayed=settings.quantize_after > 0,
                normalized=settings.normalize_codes,
                ema=settings.codebook == "ema",
                reset_dead_after=settings.reset_dead_codes_after,
            )
        self.recombination = Recombination(hidden_dim, settings.num_prototypes) if settings.recombine else None
        self.local_decoder = SemanticDecoder(hidden_dim, num_heads, ffn_dim, layers) if settings.calibrate else None
        self.mask_decoder = MaskDecoder(
            hidden_dim, num_heads, ffn_dim, layers, num_classes, settings.mask_dim, settings.mask_head
        )

    def forward(
        self, images_BTCHW: torch.Tensor, audio_BTA: torch.Tensor, valid_BT: torch.Tensor | None = None
    ) -> QDFormerOutput:
        """Frames with pixels 0..255 and the VGGish features of their seconds -> `QDFormerOutput`.

        With `separate` the features are of N sounds in each second, [B, T, N, A].

        `valid_BT` is false for frames that only pad a clip: no other frame sees them. In training the output holds
        every decoder layer's answer. Raises `ValueError` for shapes that do not fit.
        """
        B, T = self._check(images_BTCHW, audio_BTA)
        if valid_BT is None:
            valid_BT = torch.ones(B, T, dtype=torch.bool, device=images_BTCHW.device)
        maps = self.backbone(images_BTCHW.flatten(0, 1))
        visual_FSD, sizes = self.pixel_encoder.project(maps)
        position_SD = self.pixel_encoder.position_encoding(sizes)

        heard_with = self.pixel_encoder.token_slice(sizes, self.settings.fusion_stride)
        fused_BTD = self.fusion(
            audio_BTA, visual_FSD[:, heard_with].unflatten(0, (B, T)), position_SD[heard_with], valid_BT
        )  # Eq. 3
        sources_BND = None
        if self.global_decoder is not None:
            sources_BND = self.global_decoder(self.prototypes_ND, fused_BTD, ~valid_BT)  # Eq. 4
        tokens_BND, queries_BTND, quantization = self._sources(fused_BTD, sources_BND, valid_BT)
        if self.recombination is not None:
            clip_BSD = visual_FSD.unflatten(0, (B, T)).flatten(1, 2)
            filters_from = tokens_BND if self.settings.filters_from == "quantized" else sources_BND
            visual_FSD = self.recombination(clip_BSD, filters_from).view_as(visual_FSD)  # Eq. 5

        encoded_FSD = self.pixel_encoder(visual_FSD, position_SD, sizes)
        finest = self.pixel_encoder.token_slice(sizes, 8)
        memory = self.pixel_encoder.memory_slice(sizes)
        said = self.mask_decoder(
            queries_BTND.flatten(0, 1),
            encoded_FSD[:, memory],
            position_SD[memory],
            self.mask_features(maps[MASK_STRIDE], unflatten_map(encoded_FSD[:, finest], sizes[0])),
            all_layers=self.training,
        )  # Eq. 7
        *auxiliary, (classes, boxes, masks) = [
            tuple(x.unflatten(0, (B, T)) for x in layer)
            for layer in zip(said.class_logits_RFNC, said.boxes_RFN4, said.mask_logits_RFNHW, strict=True)
        ]
        auxiliary = [LayerOutput(*layer) for layer in auxiliary]
        return QDFormerOutput(classes, boxes, masks, auxiliary, quantization, fused_BTD, sources_BND)

    def _sources(
        self, fused_BTD: torch.Tensor, sources_BND: torch.Tensor | None, valid_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, QuantizerStats | None]:
        """The clip's tokens as they are used [B, N, D], the queries of its frames [B, T, N, D], and what VQ did."""
        prototypes_ND, quantizer = self.prototypes_ND, self.quantizer
        if self.settings.separate:
            return prototypes_ND, prototypes_ND + fused_BTD, None
        tokens_BND = prototypes_ND.expand(len(fused_BTD), -1, -1) if sources_BND is None else sources_BND
        local_BTND = None
        if self.local_decoder is not None:
            frames_F1D = fused_BTD.flatten(0, 1)[:, None]
            if self.local_prototypes_ND is not None:
                prototypes_ND = self.local_prototypes_ND
            local_BTND = self.local_decoder(prototypes_ND, frames_F1D).unflatten(0, valid_BT.shape)  # Eq. 6

        quantization = None
        if quantizer is not None:
            quantized_BND, codes_BN = quantizer(tokens_BND)  # Eq. 2
            codebook_loss = quantizer.codebook_loss(tokens_BND, codes_BN)  # Eq. 9
            commitment_loss = quantizer.commitment_loss(tokens_BND, codes_BN)
            tokens_BND, local_codes_BTN = quantized_BND, None
            use_K = quantizer.count_codes(codes_BN)
            local_counts_K = torch.zeros_like(use_K)
            if local_BTND is not None:
                quantized_BTND, local_codes_BTN = quantizer(local_BTND)
                # Frames that only pad a clip have nothing to commit to.
                counted_BTN = valid_BT[..., None].expand_as(local_codes_BTN)
                commitment_loss = commitment_loss + quantizer.commitment_loss(local_BTND, local_codes_BTN, counted_BTN)
                local_counts_K = quantizer.count_codes(local_codes_BTN, counted_BTN)
                local_BTND = quantized_BTND
            quantization = QuantizerStats(
                codebook_loss, commitment_loss, codes_BN, local_codes_BTN, use_K, local_counts_K
            )

        queries_BTND = tokens_BND[:, None] + fused_BTD[:, :, None] if local_BTND is None else local_BTND
        return tokens_BND, queries_BTND, quantization

    def _check(self, images_BTCHW: torch.Tensor, audio_BTA: torch.Tensor) -> tuple[int, int]:
        if images_BTCHW.ndim != 5 or images_BTCHW.shape[2] != 3:
            raise ValueError(
                f"images have shape {list(images_BTCHW.shape)}; expected [clips, frames, 3, height, width]"
            )
        B, T = images_BTCHW.shape[:2]
        sounds = [self.settings.num_prototypes] if self.settings.separate else []
        if list(audio_BTA.shape) != (expected := [B, T, *sounds, EMBEDDING_SIZE]):
            many = ", one sound for each prototype (train.model.separate)" if sounds else ""
            raise ValueError(f"audio has shape {list(audio_BTA.shape)}; expected {expected} as the images{many}")
        return B, T

    @torch.inference_mode()
    def predict(
        self, images_BTCHW: torch.Tensor, audio_BTA: torch.Tensor, valid_BT: torch.Tensor | None = None
    ) -> Prediction:
        """What sounds where. Call it on a model in evaluation mode.

        A pixel is foreground where the highest (1 - p(no object)) * mask of any query exceeds `FOREGROUND_THRESHOLD`;
        it takes the class with the highest p(class) * mask among the queries. All other pixels are background.
        """
        output = self(images_BTCHW, audio_BTA, valid_BT)
        H, W = images_BTCHW.shape[-2:]
        logits_FNHW = output.mask_logits_BTNHW.flatten(0, 1)
        masks_FNHW = functional.interpolate(
            logits_FNHW, scale_factor=MASK_STRIDE, mode="bilinear", align_corners=False
        )[..., :H, :W].sigmoid()
        probabilities_FNC = output.class_logits_BTNC.flatten(0, 1).softmax(-1)
        classes_FNC, sounds_FN = probabilities_FNC[..., :-1], 1 - probabilities_FNC[..., -1]
        foreground_FHW = (sounds_FN[..., None, None] * masks_FNHW).amax(1)
        # The highest p(class) * mask of a query is that of its likeliest class: no map per class is needed.
        best_FN, class_FN = classes_FNC.max(-1)
        winner_FHW = (best_FN[..., None, None] * masks_FNHW).argmax(1)
        semantic_FHW = class_FN.gather(1, winner_FHW.flatten(1)).view_as(winner_FHW) + 1
        semantic_FHW = semantic_FHW.where(foreground_FHW > FOREGROUND_THRESHOLD, 0)
        frames = images_BTCHW.shape[:2]
        return Prediction(
            semantic_FHW.unflatten(0, frames),
            foreground_FHW.unflatten(0, frames),
            classes_FNC.amax(1).unflatten(0, frames),
            output,
        )


def parameter_groups(
    model: QDFormer, learning_rate: float, backbone_lr_mult: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for AdamW, the group with the plain `learning_rate` first.

    The backbone learns `backbone_lr_mult` times as fast; vectors (biases, norms), prototypes and codes do not decay.
    """
    backbone = {id(parameter) for parameter in model.backbone.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(("prototypes_ND", "codebook_weight", "level_LD"))
            groups.setdefault((id(parameter) in backbone, not decays), []).append(parameter)
    return [
        {
            "params": groups[in_backbone, fixed],
            "lr": learning_rate * (backbone_lr_mult if in_backbone else 1),
            "weight_decay": 0.0 if fixed else weight_decay,
        }
        for in_backbone, fixed in sorted(groups)
    ]
