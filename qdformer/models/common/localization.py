"""What the methods of sound source localization share: features of pictures and sounds, and the pairs of them.

Shapes: B clips, T frames, F = B * T, A audio features (128), D hidden dimension, h w size of the map of stride 16, P
pairs of a picture and its sound on this rank, Q pairs on all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from qdformer.models.common.pixel_method import PixelMethod
from qdformer.models.common.transformer import MLP, upsample
from qdformer.utils.constants import EMBEDDING_SIZE
from qdformer.utils.distributed import differentiable_gather, rank, sum_over_ranks

if TYPE_CHECKING:
    from qdformer.config.methods.base import MethodSettings
    from qdformer.models.common.pixels import PixelTargets


class SoundLocalizer(PixelMethod):
    """A method that compares the features of a sound with those of all positions of a picture, at stride 16.

    Differences from the public codes, which have a ResNet-18 for each of the two:

    - The features of a picture are the backbone's maps of strides 16 and 32, each projected by a 1x1 convolution, and
      added. In the public codes they are the last stage of the ResNet-18, with stride 16.
    - The features of a sound are an MLP of the frame's VGGish features instead of a ResNet-18 of the spectrogram.
    - Frames are the samples: each belongs to its own sound. Pairs within a clip are no negative ones.
    """

    output_stride = 16

    def __init__(self, settings: MethodSettings, num_classes: int, hidden_dim: int) -> None:
        super().__init__(settings, num_classes)
        self.fine = nn.Conv2d(self.backbone.channels[16], hidden_dim, 1)
        self.coarse = nn.Conv2d(self.backbone.channels[32], hidden_dim, 1)
        self.listen = MLP(EMBEDDING_SIZE, hidden_dim, hidden_dim, layers=2)

    def visual_features(self, maps: dict[int, torch.Tensor]) -> torch.Tensor:
        """[F, D, h, w]."""
        fine_FDhw = self.fine(maps[16])
        return fine_FDhw + upsample(self.coarse(maps[32]), fine_FDhw.shape[-2:])


@dataclass
class Pairs:
    """The frames of a batch as pairs of a picture and its sound, and which picture may be compared with which sound."""

    chosen_BT: torch.Tensor
    """The P frames that are pairs: all valid ones but those known to have no visible source of their sound."""
    own_PQ: torch.Tensor
    """Whether sound q is that of picture p."""
    foreign_PQ: torch.Tensor
    """Whether sound q is of another clip than picture p."""
    count: torch.Tensor
    """Q, at least 1."""

    @classmethod
    def of(cls, targets: PixelTargets, valid_BT: torch.Tensor) -> Pairs:
        without_source_BT = torch.zeros_like(valid_BT)
        without_source_BT[targets.counted_BT] = ~targets.masks_YHW.bool().flatten(1).any(1)
        chosen_BT = valid_BT & ~without_source_BT
        # A number for each frame and clip of the global batch, exact in float32.
        B, T = chosen_BT.shape
        frame_F = torch.arange(B * T, device=valid_BT.device)[chosen_BT.flatten()]
        own_P3 = torch.stack([frame_F, frame_F // T, torch.full_like(frame_F, rank())], 1).float()
        all_Q3 = differentiable_gather(own_P3)
        same_PQ3 = own_P3[:, None] == all_Q3
        return cls(
            chosen_BT, same_PQ3.all(-1), ~same_PQ3[..., 1:].all(-1), sum_over_ranks(chosen_BT.sum()).clamp(min=1)
        )
