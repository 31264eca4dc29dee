"""Mask features at stride 4, from the encoded map at stride 8 and the backbone's map at stride 4.

Shapes: F frames, D hidden dimension, M mask channels, H W size of the map at stride 4.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.common.transformer import upsample

MASK_STRIDE = 4
"""Stride of the mask features and of the predicted masks."""


class MaskFeatures(nn.Module):
    """The last step of a feature pyramid (Lin et al., 2017): the encoded map of stride 8 is upsampled, added to the
    backbone's map of stride 4 and smoothed by a 3x3 convolution. To save computation, the maps at stride 4 have
    `hidden_dim` / 4 channels.
    """

    def __init__(self, finest_channels: int, hidden_dim: int, mask_dim: int) -> None:
        super().__init__()
        narrow = hidden_dim // 4
        self.narrow = nn.Conv2d(hidden_dim, narrow, 1)
        self.finest = nn.Conv2d(finest_channels, narrow, 1)
        self.smooth = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.out = nn.Conv2d(narrow, mask_dim, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def forward(self, finest_FCHW: torch.Tensor, encoded_FDhw: torch.Tensor) -> torch.Tensor:
        """Backbone map at stride 4, and encoded map at stride 8 -> [F, M, H, W]."""
        finest = self.finest(finest_FCHW) + upsample(self.narrow(encoded_FDhw), finest_FCHW.shape[-2:])
        return self.out(functional.relu(self.smooth(finest)))
