"""TPAVI (Zhou et al., "Audio-Visual Segmentation", ECCV 2022, arXiv 2207.08351; extended to AVSS in arXiv 2301.13190).

Shapes: B clips, T frames (one per second), F = B * T, A audio features (128), D hidden dimension, C object classes,
K logits per pixel (1 for one class, else C + 1), H W pixels, h w size of a map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.common.aspp import ASPP
from qdformer.models.common.pixel_method import PixelMethod
from qdformer.models.common.pixels import number_of_logits
from qdformer.models.tpavi.criterion import Criterion
from qdformer.models.tpavi.decoder import Decoder
from qdformer.models.tpavi.interaction import PixelwiseInteraction
from qdformer.models.tpavi.output import TPAVIOutput

if TYPE_CHECKING:
    from qdformer.config.methods.tpavi import TPAVILoss, TPAVISettings


class TPAVI(PixelMethod):
    """Backbone, ASPP -> V_i, TPAVI -> Z_i and a decoder with the feature maps of four stages.

    Differences from the public code, which has one copy of the model for each backbone and data set:

    - Batch normalization of the backbone is folded into its convolutions, so that its statistics stay as pretrained.
    - The computation of TPAVI (`PixelwiseInteraction`), with padding frames left out, and of sizes (`Decoder`).
    - The video self-attention of the public code (`tpavi_vv_flag`), which its recipes do not use, is left out.
    """

    settings: TPAVISettings

    def __init__(self, settings: TPAVISettings, num_classes: int) -> None:
        super().__init__(settings, num_classes)
        hidden_dim = settings.hidden_dim
        self.strides = settings.map_strides
        self.aspp = nn.ModuleList(ASPP(self.backbone.channels[stride], hidden_dim) for stride in self.strides)
        self.interactions = nn.ModuleDict(
            {
                str(stage): PixelwiseInteraction(hidden_dim, settings.audio_bias, settings.window)
                for stage in sorted(set(settings.tpavi_stages))
            }
        )
        self.decoder = Decoder(hidden_dim, number_of_logits(num_classes))
        for part in (self.aspp, self.decoder):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def segment(
        self,
        maps: dict[int, torch.Tensor],
        audio_BTA: torch.Tensor,
        valid_BT: torch.Tensor,
        frame_size: tuple[int, int],
    ) -> TPAVIOutput:
        stages = [aspp(maps[stride]) for aspp, stride in zip(self.aspp, self.strides, strict=True)]
        fused_maps, fused_audio = [], []
        for stage, interaction in self.interactions.items():
            index = int(stage) - 1
            fuse: Any = interaction.fuse
            stages[index], aligned_BTD = fuse(stages[index], audio_BTA, valid_BT)
            fused_maps.append(functional.relu(stages[index]))
            fused_audio.append(aligned_BTD)
        logits_FKHW = self.decoder(stages, frame_size)
        return TPAVIOutput(logits_FKHW.unflatten(0, valid_BT.shape), fused_maps, fused_audio)

    def build_criterion(self, loss: TPAVILoss) -> Criterion:
        return Criterion(loss, self.num_classes)
