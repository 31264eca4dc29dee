"""Bi-Gen (Hao et al., AAAI 2024, arXiv 2308.08288): audio-visual segmentation with bidirectional generation.

Shapes: B clips, T frames, F = B * T, A audio features (128), D hidden dimension, h w size of a map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.bigen.criterion import Criterion
from qdformer.models.bigen.modules import CorrelationFusion, MotionAttention, VisualToAudio
from qdformer.models.bigen.output import BiGenOutput
from qdformer.models.common.aspp import ASPP
from qdformer.models.common.pixel_method import PixelMethod
from qdformer.models.common.pixels import number_of_logits
from qdformer.models.tpavi.decoder import Decoder
from qdformer.models.tpavi.interaction import PixelwiseInteraction

if TYPE_CHECKING:
    from qdformer.config.methods.bigen import BiGenLoss, BiGenSettings


class BiGen(PixelMethod):
    """Bi-Gen: TPAVI's structure with estimation of motion, and in training the audio reconstructed from the masks.

    The maps of the four stages are reduced to D channels, fused with the audio (`CorrelationFusion`, or TPAVI's
    `PixelwiseInteraction`), weighted by the estimated motion (`MotionAttention`) and decoded. From the coarsest map
    inside of the masks, `VisualToAudio` reconstructs the audio features. The method is defined for one class; with
    several, the logits and losses are those of TPAVI on AVSS.

    Differences from the public code (https://github.com/OpenNLPLab/AVS-bidirectional):

    - The maps are reduced by the dilated convolutions that it calls neck "aspp", and the decoder is that of TPAVI. Its
      default neck and its decoder have batch normalization, whose statistics would depend on padding frames.
    - Batch normalization of the backbone is folded into its convolutions.
    - See `CorrelationFusion`, `VisualToAudio` and `Criterion` for others. With `fusion: tpavi`, the features are not
      normalized before the attention.
    """

    settings: BiGenSettings

    def __init__(self, settings: BiGenSettings, num_classes: int) -> None:
        super().__init__(settings, num_classes)
        hidden_dim, strides = settings.hidden_dim, settings.map_strides
        self.aspp = nn.ModuleList(ASPP(self.backbone.channels[stride], hidden_dim) for stride in strides)
        self.fusions = nn.ModuleList(
            CorrelationFusion(hidden_dim)
            if settings.fusion == "correlation"
            else PixelwiseInteraction(hidden_dim, audio_bias=True, window=settings.window)
            for _ in strides
        )
        self.motion = nn.ModuleDict({str(stage): MotionAttention() for stage in sorted(set(settings.motion_stages))})
        self.decoder = Decoder(hidden_dim, number_of_logits(num_classes))
        self.to_audio = VisualToAudio(hidden_dim, settings.projection_size)
        for part in (self.aspp, self.fusions, self.decoder):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def segment(
        self,
        maps: dict[int, torch.Tensor],
        audio_BTA: torch.Tensor,
        valid_BT: torch.Tensor,
        frame_size: tuple[int, int],
    ) -> BiGenOutput:
        stages = [aspp(maps[stride]) for aspp, stride in zip(self.aspp, self.settings.map_strides, strict=True)]
        fusion: Any  # CorrelationFusion or PixelwiseInteraction
        fused = []
        for fusion, map_FDhw in zip(self.fusions, stages, strict=True):
            fused.append(fusion.fuse(map_FDhw, audio_BTA, valid_BT))
        stages = [map_FDhw for map_FDhw, _ in fused]
        for stage, motion in self.motion.items():
            stages[int(stage) - 1] = motion(stages[int(stage) - 1], valid_BT)
        return BiGenOutput(
            logits_BTKHW=self.decoder(stages, frame_size).unflatten(0, valid_BT.shape),
            stage_maps_FDhw=[functional.relu(map_FDhw) for map_FDhw, _ in fused],
            stage_audio_BTD=[aligned_BTD for _, aligned_BTD in fused],
            coarsest_FDhw=stages[-1],
            audio_BTA=audio_BTA,
            to_audio=self.to_audio,
        )

    def build_criterion(self, loss: BiGenLoss) -> Criterion:
        return Criterion(loss, self.num_classes)
