"""Feature pyramid: mask features from the visual tokens and the backbone's finest map that is used.

Shapes: F frames, S tokens of a frame (all maps, fine to coarse), D hidden dimension, C channels of the backbone's map,
M mask channels, H W size of that map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.common.transformer import flatten_map, unflatten_map, upsample

if TYPE_CHECKING:
    from qdformer.models.common.pixel_encoder import EncoderKind, Sizes


class FeaturePyramid(nn.Module):
    """Feature pyramid (Lin et al., 2017) on the visual tokens: F_v^out = FPN(F'_v) in the paper.

    In the last step, the finest map of the visual tokens is upsampled, added to the backbone's map at the masks' stride
    and smoothed by a 3x3 convolution. To save computation, these maps have `hidden_dim` / 4 channels.

    After the encoder `deformable`, whose layers have already exchanged features between the scales, this is the only
    step (as in Mask2Former, Cheng et al., 2022). After `light` there is a step for each scale: each coarser map is
    upsampled, added to the next finer one and smoothed by a 3x3 convolution.
    """

    def __init__(
        self, encoder: EncoderKind, strides: list[int], finest_channels: int, hidden_dim: int, mask_dim: int
    ) -> None:
        super().__init__()
        steps = strides[1:] if encoder == "light" else []
        self.top_down = nn.ModuleList(nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1) for _ in steps)
        narrow = hidden_dim // 4
        self.narrow = nn.Conv2d(hidden_dim, narrow, 1)
        self.finest = nn.Conv2d(finest_channels, narrow, 1)
        self.smooth = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.out = nn.Conv2d(narrow, mask_dim, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def forward(
        self, visual_FSD: torch.Tensor, sizes: Sizes, finest_FCHW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Visual tokens and the backbone's map at the masks' stride -> tokens of the pyramid [F, S, D], which are the
        visual tokens without `light`, and mask features [F, M, H, W].
        """
        levels = [
            unflatten_map(level_FSD, size)
            for level_FSD, size in zip(visual_FSD.split([h * w for h, w in sizes], dim=1), sizes, strict=True)
        ]
        if self.top_down:
            *finer, coarsest = levels
            levels = [coarsest]
            for level, smooth in zip(reversed(finer), self.top_down, strict=True):
                levels.insert(0, functional.relu(smooth(level + upsample(levels[0], level.shape[-2:]))))
            visual_FSD = torch.cat([flatten_map(level) for level in levels], dim=1)
        finest = self.finest(finest_FCHW) + upsample(self.narrow(levels[0]), finest_FCHW.shape[-2:])
        return visual_FSD, self.out(functional.relu(self.smooth(finest)))
