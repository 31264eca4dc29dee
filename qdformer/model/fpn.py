"""Feature pyramid: mask features at stride 4 from the encoded tokens and the backbone's finest map.

Shapes: F frames, D width, M mask channels, H W the map at stride 4.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class MaskFeatures(nn.Module):
    """Top-down pathway (Lin et al., 2017): each finer map is added to the enlarged coarser one and smoothed by a
    3x3 convolution; at stride 4, where a convolution costs the most, with a quarter of the width.
    """

    def __init__(self, finest_channels: int, width: int, mask_channels: int) -> None:
        super().__init__()
        narrow = width // 4
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.narrow = nn.Conv2d(width, narrow, 1)
        self.finest = nn.Conv2d(finest_channels, narrow, 1)
        self.smooth_finest = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.out = nn.Conv2d(narrow, mask_channels, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, finest_FCHW: torch.Tensor, levels: list[torch.Tensor]) -> torch.Tensor:
        """Backbone map at stride 4, and encoded maps at strides 8, 16 and 32 -> [F, M, H, W]."""
        fine, middle, coarse = levels
        middle = functional.relu(self.smooth[0](middle + enlarge(coarse, middle)))
        fine = functional.relu(self.smooth[1](fine + enlarge(middle, fine)))
        finest = self.finest(finest_FCHW) + enlarge(self.narrow(fine), finest_FCHW)
        return self.out(functional.relu(self.smooth_finest(finest)))


def enlarge(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`x` at the size of `like`."""
    return functional.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
